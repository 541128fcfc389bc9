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

from mrpo_jax.models.attention.layout import capped
from mrpo_jax.shapes import widen


@flax.struct.dataclass
class KeysValues:
  """Keys and values of some layers, turned by their positions: NBGSE."""

  keys: jax.Array
  values: jax.Array


@flax.struct.dataclass
class Cache:
  """What the attention of every layer reads, for B slots."""

  whole: KeysValues | None  # of layers that see all before
  ring: KeysValues | None  # of those with a window


class Layers:
  """Which layers keep a ring, and the place of each in its stack."""

  def __init__(self, config, length):
    windows = np.array(config.layer_windows or [0] * config.layers)
    self.is_ring_L = (windows > 0) & (windows < length)
    counts = np.stack([~self.is_ring_L, self.is_ring_L]).cumsum(1) - 1
    self.place_L = np.where(self.is_ring_L, counts[1], counts[0])
    self.whole = int((~self.is_ring_L).sum())
    self.rings = int(self.is_ring_L.sum())
    self.ring_places = int(windows[self.is_ring_L].max(initial=0))


def empty(config, slots, length, dtype):
  """A Cache of zeros for sequences of at most `length` tokens."""
  layers = Layers(config, length)

  def zeros(count, places):
    if not count:
      return None
    shape = (count, slots, config.kv_heads, places, config.head_dim)
    return KeysValues(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

  return Cache(
    zeros(layers.whole, length), zeros(layers.rings, layers.ring_places)
  )


def decoding(config, length, cache):
  """Function of a layer's number to its kernel: one token for each slot.

  Args:
    config: ModelConfig.
    length: as in `empty`.
    cache: a Cache of references (`jax.new_ref`), which the kernels write.
  """
  layers = Layers(config, length)

  def of_layer(number):
    place = jnp.asarray(layers.place_L)[number]

    def kernel(
      query_B1HE, key_B1GE, value_B1GE, layout, window=None, *, scale, softcap
    ):
      position_B = layout.positions[:, 0]
      given = query_B1HE, key_B1GE, value_B1GE, position_B, window

      def of(kept):
        return _attend(kept, place, *given, scale=scale, softcap=softcap)

      if not layers.rings:
        return of(cache.whole)
      if not layers.whole:
        return of(cache.ring)
      is_ring = jnp.asarray(layers.is_ring_L)[number]
      return jax.lax.cond(
        is_ring, lambda: of(cache.ring), lambda: of(cache.whole)
      )

    return kernel

  return of_layer


def _attend(
  kept, place, query_B1HE, key_B1GE, value_B1GE, position_B, window, **numbers
):
  """Attention of one new token a slot over what is kept, itself included."""
  _, B, G, S, E = kept.keys.shape
  slot_B, at_B = jnp.arange(B), position_B % S
  for ref, new_B1GE in ((kept.keys, key_B1GE), (kept.values, value_B1GE)):
    new_BGE = new_B1GE[:, 0].astype(ref.dtype)
    ref[place, slot_B[:, None], jnp.arange(G)[None], at_B[:, None]] = new_BGE
  key_BGSE, value_BGSE = kept.keys[place], kept.values[place]
  H = query_B1HE.shape[2]
  query_BGHE = widen(query_B1HE).reshape(B, G, H // G, E)
  score_BGHS = jnp.einsum(
    "BGHE,BGSE->BGHS",
    query_BGHE,
    key_BGSE.astype(query_BGHE.dtype),
  )
  score_BGHS = capped(score_BGHS * numbers["scale"], numbers["softcap"])
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


def insert(config, length, cache, staged, row, source_T, count, slot):
  """The Cache with one staged sequence in a slot.

  Args:
    config, length: as in `empty`.
    cache: Cache of arrays.
    staged: KeysValues, [L, R, T, G, E].
    row: in which the sequence stands.
    source_T: where in the row each of its positions stands.
    count: how many positions it has.
    slot: to write.
  """
  layers = Layers(config, length)

  def into(kept, own_L):
    if kept is None:
      return None
    S, last = kept.keys.shape[3], count - 1
    # The newest position of each place; of places without one any.
    at_S = last - (last - jnp.arange(S)) % S
    from_S = source_T[jnp.clip(at_S, 0, source_T.shape[0] - 1)]

    def copied(array_NBGSE, staged_LRTGE):
      new_NSGE = staged_LRTGE[own_L, row][:, from_S]
      new_N1GSE = jnp.swapaxes(new_NSGE, 1, 2)[:, None]
      return jax.lax.dynamic_update_slice_in_dim(
        array_NBGSE, new_N1GSE, slot, axis=1
      )

    return KeysValues(
      copied(kept.keys, staged.keys), copied(kept.values, staged.values)
    )

  return Cache(
    into(cache.whole, np.flatnonzero(~layers.is_ring_L)),
    into(cache.ring, np.flatnonzero(layers.is_ring_L)),
  )
