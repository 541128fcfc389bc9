# SPDX-License-Identifier: Apache-2.0
"""Key-value cache of a decoder: where keys and values stand, and move to.

Position p of a slot stands at place p modulo the places there are.  Layers
with a window have as many places as their window: a ring, in which a new token
takes the place of the one that has just left the window.

While a block of tokens is decoded the cache is only read.  Their keys and
values stand apart, at the same place for every slot, which is a write that any
device does in place; after the block they move into the cache.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mrpo_jax.generation import attention
from mrpo_jax.models.attention.kernels import own_keys


@flax.struct.dataclass
class KeysValues:
  """Keys and values, turned by their positions, of every layer or of some.

  A tuple of layers where the model's weights stand apart (`weights.apart`);
  else arrays with an axis of layers in front.
  """

  keys: jax.Array | tuple  # BGES, which CPUs multiply faster
  values: jax.Array | tuple  # BGSE


@flax.struct.dataclass
class Cache:
  """What the attention of every layer reads, for B slots."""

  whole: KeysValues | None  # of layers that see all before
  ring: KeysValues | None  # of those with a window


@flax.struct.dataclass
class Requests:
  """Staged sequences that go into slots."""

  count: jax.Array  # of N
  slot_N: jax.Array
  row_N: jax.Array  # in which each is staged
  source_NT: jax.Array  # where in the row each of its positions stands
  length_N: jax.Array  # positions


class Shape:
  """Shape of a Cache: which layers keep a ring, and how it is split.

  Attributes:
    spec: PartitionSpec of its arrays.
  """

  def __init__(self, config, slots, length, block, dtype, partition, *, apart):
    """The shape for so many slots of at most `length` positions.

    Args:
      config: ModelConfig.
      slots: B; the rows of the mesh divide it.
      length: positions.
      block: tokens that are decoded at once.
      dtype: of keys and values.
      partition: Partition; slots are its rows.
      apart: do layers stand apart?
    """
    windows = np.array(config.layer_windows or [0] * config.layers)
    self._is_ring_L = (windows > 0) & (windows < length)
    counts = np.stack([~self._is_ring_L, self._is_ring_L]).cumsum(1) - 1
    self._place_L = np.where(self._is_ring_L, counts[1], counts[0])
    self._ring = int(windows[self._is_ring_L].max(initial=0))
    # A block may begin at the last position.
    self._length, self._block = length + block, block
    self._config, self._slots, self._dtype = config, slots, dtype
    self._partition, self._apart = partition, apart
    spec = PartitionSpec(partition.rows, partition.kv_heads)
    self.spec = spec if apart else PartitionSpec(None, *spec)

  def empty(self):
    """A Cache of zeros."""
    rings = int(self._is_ring_L.sum())
    wholes = len(self._is_ring_L) - rings
    return Cache(
      self._zeros(wholes, self._length), self._zeros(rings, self._ring)
    )

  def recent(self):
    """KeysValues of zeros for a block of tokens."""
    return self.kept(self._zeros(len(self._is_ring_L), self._block))

  def _zeros(self, layers, places):
    if not layers:
      return None
    B, G, E = self._slots, self._config.kv_heads, self._config.head_dim
    found = []
    for shape in ((B, G, E, places), (B, G, places, E)):
      if self._apart:
        found.append(
          tuple(jnp.zeros(shape, self._dtype) for _ in range(layers))
        )
      else:
        found.append(jnp.zeros((layers, *shape), self._dtype))
    return KeysValues(*found)

  def kept(self, arrays):
    """A Cache or KeysValues, split as it has to stay."""
    mesh = self._partition.mesh
    if mesh is None:
      return arrays
    return jax.lax.with_sharding_constraint(
      arrays, NamedSharding(mesh, self.spec)
    )

  # Decoding.

  def decoding(self, cache, recent, i, start_B):
    """Function of a layer's number to its kernel: one token for each slot.

    Args:
      cache: Cache of what stands before the block.
      recent: KeysValues of references (`jax.new_ref`), which kernels write.
      i: number of the token in its block.
      start_B: position of the first token of the block.
    """

    def of_layer(number):
      def kernel(query, key, value, layout, window=None, **how):
        of = query, key, value, start_B, window

        def over(kept):
          return self._attend(kept, recent, number, i, *of, **how)

        if self._apart or self._is_ring_L.all() or not self._is_ring_L.any():
          is_ring = self._is_ring_L[number if self._apart else 0]
          return over(cache.ring if is_ring else cache.whole)
        return jax.lax.cond(
          jnp.asarray(self._is_ring_L)[number],
          lambda: over(cache.ring),
          lambda: over(cache.whole),
        )

      return kernel

    return of_layer

  def _attend(self, kept, recent, number, i, query, key, value, *of, **how):
    """Attention of one new token a slot, on each device's own slots."""
    partition, apart = self._partition, self._apart
    place = (self._place_L if apart else jnp.asarray(self._place_L))[number]
    together = partition.heads == partition.kv_heads
    H, G = query.shape[2], key.shape[2]
    arrays = [kept.keys, kept.values, recent.keys, recent.values]
    if apart:
      arrays = [
        of_layers[k]
        for of_layers, k in zip(
          arrays, (place, place, number, number), strict=True
        )
      ]

    def here(keys, values, new_keys, new_values, place, number, i, *of):
      if not apart:
        keys, values = keys[place], values[place]
      at = () if apart else (number,)
      attention.write((new_keys, new_values), at, i, of[1:3])
      kept = [(keys, values), (new_keys[at or ...], new_values[at or ...])]
      if not together:
        own_G = own_keys(partition, H, G)
        kept = jax.tree.map(lambda array: array[:, own_G], kept)
      return attention.attend(kept, i, of[0], *of[3:], **how)

    rows, none = PartitionSpec(partition.rows), PartitionSpec()
    of_heads = PartitionSpec(partition.rows, None, partition.heads)
    of_keys = PartitionSpec(partition.rows, None, partition.kv_heads)
    in_specs = (
      *[self.spec] * 4,
      *[none] * 3,
      *(of_heads, of_keys, of_keys, rows, none),
    )
    return partition.run(here, in_specs, of_heads)(
      *arrays, place, number, i, query, key, value, *of
    )

  def merged(self, cache, recent, start_B):
    """The Cache with the keys and values of a block; both are arrays."""
    partition = self._partition
    wholes, rings = self._layers()

    def here(cache, recent, start_B):
      return Cache(
        _moved(cache.whole, self._of_layers(recent, wholes), start_B),
        _turned(cache.ring, self._of_layers(recent, rings), start_B),
      )

    specs = (self.spec, self.spec, PartitionSpec(partition.rows))
    return partition.run(here, specs, self.spec)(cache, recent, start_B)

  def _layers(self):
    """Numbers of the layers that see all, and of those with a ring."""
    return map(np.flatnonzero, (~self._is_ring_L, self._is_ring_L))

  def _of_layers(self, arrays, numbers):
    """The KeysValues of these layers."""
    if self._apart:
      return KeysValues(
        tuple(arrays.keys[i] for i in numbers),
        tuple(arrays.values[i] for i in numbers),
      )
    if len(numbers) == len(self._is_ring_L):
      return arrays
    return jax.tree.map(lambda array: array[numbers], arrays)

  # Prompts.

  def insert(self, cache, staged, requests):
    """The Cache with staged sequences in slots.

    Args:
      cache: Cache of arrays.
      staged: KeysValues, [L, R, T, G, E] both.
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
          lambda: self._inserted(cache, staged, requests, i, slot),
          lambda: cache,
        )

      return jax.lax.fori_loop(0, requests.count, one, cache)

    none = PartitionSpec()
    heads = PartitionSpec(None, None, None, partition.kv_heads)
    in_specs = (self.spec, heads, none)
    return partition.run(here, in_specs, self.spec)(cache, staged, requests)

  def _inserted(self, cache, staged, requests, i, slot):
    source_T, last = requests.source_NT[i], requests.length_N[i] - 1
    row = requests.row_N[i]

    def into(kept, numbers, places):
      if kept is None:
        return None
      # The newest position of each place; of places without one any.
      at_S = last - (last - jnp.arange(places)) % places
      from_S = source_T[jnp.clip(at_S, 0, source_T.shape[0] - 1)]

      def copied(of_layers, staged_LRTGE, axes):
        """`axes` of SGE as the cache has them."""
        if self._apart:
          return tuple(
            _placed(
              array, staged_LRTGE[number, row][from_S].transpose(axes), slot, 0
            )
            for array, number in zip(of_layers, numbers, strict=True)
          )
        new = staged_LRTGE[numbers, row][:, from_S]
        axes = 0, *(axis + 1 for axis in axes)
        return _placed(of_layers, new.transpose(axes), slot, 1)

      return KeysValues(
        copied(kept.keys, staged.keys, (1, 2, 0)),
        copied(kept.values, staged.values, (1, 0, 2)),
      )

    wholes, rings = self._layers()
    return Cache(
      into(cache.whole, wholes, self._length),
      into(cache.ring, rings, self._ring),
    )


def _placed(kept, new, slot, axis):
  """What a slot keeps, in the array of all slots, which are that axis."""
  return jax.lax.dynamic_update_slice_in_dim(
    kept, jnp.expand_dims(new, axis), slot, axis
  )


def _moved(kept, recent, start_B):
  """KeysValues of layers that see all, with those of a block."""
  if kept is None:
    return None

  def one(slot, kept):
    def placed(array, new, axis):
      """`axis` of the places, counted from the last."""
      slots, places = array.ndim - 4, array.ndim + axis
      new = jax.lax.dynamic_slice_in_dim(new, slot, 1, slots)
      at = [0] * array.ndim
      at[slots], at[places] = slot, start_B[slot].astype(slot.dtype)
      return jax.lax.dynamic_update_slice(array, new, at)

    def all_placed(arrays, new, axis):
      return jax.tree.map(lambda a, b: placed(a, b, axis), arrays, new)

    return KeysValues(
      all_placed(kept.keys, recent.keys, -1),
      all_placed(kept.values, recent.values, -2),
    )

  return jax.lax.fori_loop(0, start_B.size, one, kept)


def _turned(kept, recent, start_B):
  """KeysValues of rings, with those of a block."""
  if kept is None:
    return None

  def turned(axis):
    def one(array, new):
      S, P = array.shape[axis], new.shape[axis]
      # Which of the block's tokens is the newest of each place.
      end_B1 = start_B[:, None] + P - 1
      j_BS = P - 1 - (end_B1 - jnp.arange(S)[None]) % S
      ones = (1, 1, S) if axis == -1 else (1, S, 1)
      j = j_BS.reshape(*[1] * (array.ndim - 4), -1, *ones)
      new = jnp.take_along_axis(
        new, jnp.maximum(j, 0), axis=axis, mode="promise_in_bounds"
      )
      return jnp.where(j >= 0, new, array)

    return one

  return KeysValues(
    jax.tree.map(turned(-1), kept.keys, recent.keys),
    jax.tree.map(turned(-2), kept.values, recent.values),
  )
