# SPDX-License-Identifier: Apache-2.0
"""Key-value cache of a decoder, and the attention that reads it.

Position p of a slot stands at place p modulo the places there are.  Layers
with a window have as many places as their window: a ring, in which a new token
takes the place of the one that has just left the window.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mrpo_jax.models.attention.kernels import own_keys
from mrpo_jax.models.attention.layout import capped
from mrpo_jax.shapes import widen


@flax.struct.dataclass
class KeysValues:
  """Keys and values, turned by their positions: BGSE of each layer, or NBGSE.

  Layers stand apart where the model's weights do; see `weights.apart`.
  """

  keys: jax.Array | tuple
  values: jax.Array | tuple


@flax.struct.dataclass
class Cache:
  """What the attention of every layer reads, for B slots."""

  whole: KeysValues | None  # of layers that see all before
  ring: KeysValues | None  # of those with a window


class Shape:
  """Shape of a Cache: which layers keep a ring, and how it is split.

  Attributes:
    length: positions that a slot can hold.
    is_ring_L: which layers keep a ring.
  """

  def __init__(self, config, slots, length, dtype, partition, *, apart):
    """The shape for so many slots of at most `length` positions.

    Args:
      config: ModelConfig.
      slots: B; the rows of the mesh divide it.
      length: positions.
      dtype: of keys and values.
      partition: Partition; slots are its rows.
      apart: do layers stand apart?
    """
    windows = np.array(config.layer_windows or [0] * config.layers)
    self.length, self.is_ring_L = length, (windows > 0) & (windows < length)
    counts = np.stack([~self.is_ring_L, self.is_ring_L]).cumsum(1) - 1
    self._place_L = np.where(self.is_ring_L, counts[1], counts[0])
    self._ring = int(windows[self.is_ring_L].max(initial=0))
    self._config, self._slots, self._dtype = config, slots, dtype
    self._partition, self._apart = partition, apart
    self.spec = PartitionSpec(partition.rows, partition.kv_heads)
    if not apart:
      self.spec = PartitionSpec(None, *self.spec)

  def empty(self):
    """A Cache of zeros, on the devices that will fill it."""

    def zeros(count, places):
      if not count:
        return None
      config = self._config
      shape = (self._slots, config.kv_heads, places, config.head_dim)
      if not self._apart:
        return KeysValues(*jnp.zeros((2, count, *shape), self._dtype))
      layers = [jnp.zeros(shape, self._dtype) for _ in range(2 * count)]
      return KeysValues(tuple(layers[::2]), tuple(layers[1::2]))

    rings = int(self.is_ring_L.sum())
    wholes = len(self.is_ring_L) - rings
    return Cache(zeros(wholes, self.length), zeros(rings, self._ring))

  def kept(self, cache):
    """The Cache split as it has to stay."""
    mesh = self._partition.mesh
    if mesh is None:
      return cache
    return jax.lax.with_sharding_constraint(
      cache, NamedSharding(mesh, self.spec)
    )

  def decoding(self, cache):
    """Function of a layer's number to its kernel: one token for each slot.

    Args:
      cache: a Cache of references (`jax.new_ref`), which the kernels write.
    """

    def of_layer(number):
      is_ring = self.is_ring_L[number] if self._apart else None
      if self.is_ring_L.all() or not self.is_ring_L.any():
        is_ring = self.is_ring_L[0]
      if is_ring is None:
        is_ring = jnp.asarray(self.is_ring_L)[number]
      place_L = self._place_L if self._apart else jnp.asarray(self._place_L)
      place = place_L[number]

      def kernel(query, key, value, layout, window=None, **numbers):
        of = query, key, value, layout.positions[:, 0], window

        def over(kept):
          return self._attend(kept, place, *of, **numbers)

        if isinstance(is_ring, np.bool_):
          return over(cache.ring if is_ring else cache.whole)
        return jax.lax.cond(
          is_ring, lambda: over(cache.ring), lambda: over(cache.whole)
        )

      return kernel

    return of_layer

  def _attend(self, kept, place, query, key, value, position_B, window, **how):
    """Attention of one new token a slot, on each device's own slots."""
    partition = self._partition
    together = partition.heads == partition.kv_heads
    H, G = query.shape[2], key.shape[2]
    refs = kept.keys, kept.values
    if self._apart:
      refs = [of_layers[place] for of_layers in refs]

    def here(keys, values, place, query, *of):
      at = () if self._apart else (place,)
      own_G = None if together else own_keys(partition, H, G)
      return _attend((keys, values), at, own_G, query, *of, **how)

    rows = PartitionSpec(partition.rows)
    of_heads = PartitionSpec(partition.rows, None, partition.heads)
    of_keys = PartitionSpec(partition.rows, None, partition.kv_heads)
    none = PartitionSpec()
    in_specs = (
      *(self.spec, self.spec, none),
      *(of_heads, of_keys, of_keys, rows, none),
    )
    return partition.run(here, in_specs, of_heads)(
      *refs, place, query, key, value, position_B, window
    )

  def insert(self, cache, staged, requests):
    """The Cache with staged sequences in slots.

    Args:
      cache: Cache of arrays.
      staged: KeysValues, [L, R, T, G, E].
      requests: Requests; those from `count` on are none.
    """
    partition = self._partition

    def here(cache, staged, requests):
      B = self._slots // partition.size(partition.rows)
      first = partition.place(partition.rows) * B

      def one(i, cache):
        slot = requests.slot_N[i] - first
        return jax.lax.cond(
          (slot >= 0) & (slot < B),
          lambda: self._insert(cache, staged, requests, i, slot),
          lambda: cache,
        )

      return jax.lax.fori_loop(0, requests.count, one, cache)

    none = PartitionSpec()
    heads = PartitionSpec(None, None, None, partition.kv_heads)
    in_specs = (self.spec, heads, none)
    return partition.run(here, in_specs, self.spec)(cache, staged, requests)

  def _insert(self, cache, staged, requests, i, slot):
    source_T, last = requests.source_NT[i], requests.length_N[i] - 1
    row = requests.row_N[i]

    def into(kept, own_L, places):
      if kept is None:
        return None
      # The newest position of each place; of places without one any.
      at_S = last - (last - jnp.arange(places)) % places
      from_S = source_T[jnp.clip(at_S, 0, source_T.shape[0] - 1)]

      def copied(of_layers, staged_LRTGE):
        if self._apart:
          return tuple(
            _placed(array_BGSE, staged_LRTGE[number, row][from_S], slot, 0)
            for array_BGSE, number in zip(of_layers, own_L, strict=True)
          )
        return _placed(of_layers, staged_LRTGE[own_L, row][:, from_S], slot, 1)

      return KeysValues(
        copied(kept.keys, staged.keys), copied(kept.values, staged.values)
      )

    wholes, rings = map(np.flatnonzero, (~self.is_ring_L, self.is_ring_L))
    return Cache(
      into(cache.whole, wholes, self.length),
      into(cache.ring, rings, self._ring),
    )


@flax.struct.dataclass
class Requests:
  """Staged sequences that go into slots."""

  count: jax.Array  # of N
  slot_N: jax.Array
  row_N: jax.Array  # in which each is staged
  source_NT: jax.Array  # where in the row each of its positions stands
  length_N: jax.Array  # positions


def _placed(kept, new, slot, axis):
  """[..., S, G, E] written at a slot of [..., B, G, S, E]."""
  new = jnp.expand_dims(jnp.swapaxes(new, axis, axis + 1), axis)
  return jax.lax.dynamic_update_slice_in_dim(kept, new, slot, axis)


def _attend(
  refs, at, own_G, query_B1HE, key_B1GE, value_B1GE, position_B, window, **how
):
  """Attention of one new token a slot over what is kept, itself included."""
  S = refs[0].shape[-2]
  B, _, G, _ = key_B1GE.shape
  where = jnp.arange(B)[:, None], jnp.arange(G)[None], (position_B % S)[:, None]
  kept = []
  for ref, new_B1GE in zip(refs, (key_B1GE, value_B1GE), strict=True):
    ref[(*at, *where)] = new_B1GE[:, 0].astype(ref.dtype)
    kept.append(ref[at or ...])
  key_BGSE, value_BGSE = kept if own_G is None else (a[:, own_G] for a in kept)
  _, _, H, E = query_B1HE.shape
  G = key_BGSE.shape[1]
  query_BGHE = widen(query_B1HE).reshape(B, G, H // G, E)
  score_BGHS = jnp.einsum(
    "BGHE,BGSE->BGHS", query_BGHE, key_BGSE.astype(query_BGHE.dtype)
  )
  score_BGHS = capped(score_BGHS * how["scale"], how["softcap"])
  back_BS = (position_B[:, None] - jnp.arange(S)[None]) % S
  sees_BS = back_BS <= position_B[:, None]
  if window is not None:
    sees_BS &= (back_BS < window) | (window == 0)
  score_BGHS = jnp.where(sees_BS[:, None, None], score_BGHS, -jnp.inf)
  share_BGHS = jax.nn.softmax(score_BGHS, axis=-1)
  seen_BGHE = jnp.einsum(
    "BGHS,BGSE->BGHE", share_BGHS, value_BGSE.astype(share_BGHS.dtype)
  )
  return seen_BGHE.reshape(B, 1, H, E).astype(query_B1HE.dtype)


def keeping(chosen, staged):
  """Function of a layer's number to the kernel that also keeps what it sees.

  Args:
    chosen: the kernel of packed rows.
    staged: KeysValues of references, [L, R, T, G, E].
  """

  def of_layer(number):
    def kernel(query_RTHE, key_RTGE, value_RTGE, *of_whom, **numbers):
      staged.keys[number] = key_RTGE.astype(staged.keys.dtype)
      staged.values[number] = value_RTGE.astype(staged.values.dtype)
      return chosen(query_RTHE, key_RTGE, value_RTGE, *of_whom, **numbers)

    return kernel

  return of_layer
