# SPDX-License-Identifier: Apache-2.0
"""Attention of packed rows: its mask, and the oracle of every kernel."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from mrpo_jax.shapes import widen

SAVED = "attention"  # what the backward pass needs, for `transformer.REMAT`


@flax.struct.dataclass
class RowLayout:
  """Position, pair and branch of every token of packed rows, [R, T] each."""

  positions: jax.Array  # place in the token's own sequence, from 0
  segments: jax.Array  # equal numbers are one pair or sequence; 0 is padding
  branches: jax.Array  # 0 what all have before them; from 1 on, siblings
  # What a kernel makes of these, the same in all layers; see `kernels.PREPARE`.
  prepared: Any = None


def sees(of, at, of_place_T, at_place_S, window):
  """mask_RTS: may a token of one RowLayout look at one of another?

  Causal within a segment; a response sees its prompt (branch 0) and its own
  branch, never a sibling, of which there may be any number.  Padding sees
  itself alone, so that its softmax is defined.

  Args:
    of: RowLayout [R, T] of the queries.
    at: RowLayout [R, S] of the keys.
    of_place_T: where the queries stand in their row.
    at_place_S: where the keys stand.
    window: nobody sees what lies so many tokens or more before, counted in
      each token's own sequence, so that packing changes nothing; None or 0 is
      no limit.
  """

  def rows(array_RT):
    return array_RT[:, :, None]

  def columns(array_RS):
    return array_RS[:, None, :]

  before_RTS = of_place_T[None, :, None] >= at_place_S[None, None, :]
  same_RTS = rows(of.segments) == columns(at.segments)
  branch_RTS = (columns(at.branches) == 0) | (
    columns(at.branches) == rows(of.branches)
  )
  mask_RTS = rows(of.segments > 0) & before_RTS & same_RTS & branch_RTS
  if window is not None:
    back_RTS = rows(of.positions) - columns(at.positions)
    mask_RTS &= (back_RTS < window) | (window == 0)
  return mask_RTS | (of_place_T[None, :, None] == at_place_S[None, None, :])


def dense(
  query_RTHE, key_RSGE, value_RSGE, layout, window=None, *, scale, softcap
):
  """softmax(scale * q k) v, written out in float32 or better: the oracle.

  Args:
    query_RTHE: queries, turned by their positions.
    key_RSGE: keys, turned by theirs; G divides H.
    value_RSGE: values.
    layout: RowLayout of the rows.
    window: see `sees`; an int32 scalar or None.
    scale: of the products.
    softcap: see `capped`; None for none.

  Returns:
    out_RTHE in the dtype of the queries.
  """
  R, T, H, E = query_RTHE.shape
  G = key_RSGE.shape[2]
  place_T = jnp.arange(T)
  mask_RTS = sees(layout, layout, place_T, place_T, window)
  query_RTGHE = widen(query_RTHE).reshape(R, T, G, H // G, E)
  score_RGHTS = jnp.einsum("RTGHE,RSGE->RGHTS", query_RTGHE, widen(key_RSGE))
  score_RGHTS = capped(score_RGHTS * scale, softcap)
  score_RGHTS = jnp.where(mask_RTS[:, None, None], score_RGHTS, -jnp.inf)
  share_RGHTS = jax.nn.softmax(score_RGHTS, axis=-1)
  out_RTGHE = jnp.einsum("RGHTS,RSGE->RTGHE", share_RGHTS, widen(value_RSGE))
  return out_RTGHE.reshape(R, T, H, E).astype(query_RTHE.dtype)


def capped(score, softcap):
  """cap * tanh(score / cap), or the score where there is no cap."""
  if softcap is None:
    return score
  return softcap * jnp.tanh(score / softcap)
