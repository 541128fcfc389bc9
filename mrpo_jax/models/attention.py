# SPDX-License-Identifier: Apache-2.0
"""Who sees whom, and the kernels that compute it."""

import jax
import jax.numpy as jnp

from mrpo_jax.shapes import check, widen


def visible(segments_RT, branches_RT):
  """mask_RTS: may position T look at position S?

  Causal within a segment (one pair of a packed row, or one sequence); a
  response sees its prompt (branch 0) and its own branch, never its sibling.
  Padding (segment 0) sees itself alone, so that its softmax is defined.
  """
  check("R T", segments_RT, "R T", branches_RT)
  place_T = jnp.arange(segments_RT.shape[1])
  before_TS = place_T[None, :, None] >= place_T[None, None, :]
  same_RTS = segments_RT[:, :, None] == segments_RT[:, None, :]
  branch_RTS = (branches_RT[:, None, :] == 0) | (
    branches_RT[:, None, :] == branches_RT[:, :, None]
  )
  real_RT1 = (segments_RT > 0)[:, :, None]
  self_TS = place_T[None, :, None] == place_T[None, None, :]
  return (real_RT1 & before_TS & same_RTS & branch_RTS) | self_TS


def within(window, positions_RT, mask_RTS):
  """mask_RTS without what lies `window` tokens or more before; 0 is no limit.

  Counted in each token's own sequence, so that packing changes nothing.
  """
  if window is None:
    return mask_RTS
  back_RTS = positions_RT[:, :, None] - positions_RT[:, None, :]
  return mask_RTS & ((back_RTS < window) | (window == 0))


def dense(query_RTHE, key_RSGE, value_RSGE, mask_RTS, *, scale, softcap):
  """softmax(scale * q k) v, written out in float32 or better: the oracle."""
  R, T, H, E = query_RTHE.shape
  G = key_RSGE.shape[2]
  query_RTGHE = widen(query_RTHE).reshape(R, T, G, H // G, E)
  score_RGHTS = jnp.einsum("RTGHE,RSGE->RGHTS", query_RTGHE, widen(key_RSGE))
  score_RGHTS = capped(score_RGHTS * scale, softcap)
  score_RGHTS = jnp.where(mask_RTS[:, None, None], score_RGHTS, -jnp.inf)
  share_RGHTS = jax.nn.softmax(score_RGHTS, axis=-1)
  out_RTGHE = jnp.einsum("RGHTS,RSGE->RTGHE", share_RGHTS, widen(value_RSGE))
  return out_RTGHE.reshape(R, T, H, E).astype(query_RTHE.dtype)


def xla(query_RTHE, key_RSGE, value_RSGE, mask_RTS, *, scale, softcap):
  """jax.nn.dot_product_attention with the dense mask."""
  if softcap is not None:  # which it does not know
    given = (query_RTHE, key_RSGE, value_RSGE, mask_RTS)
    return dense(*given, scale=scale, softcap=softcap)
  return jax.nn.dot_product_attention(
    query_RTHE,
    key_RSGE,
    value_RSGE,
    mask=mask_RTS[:, None],
    scale=scale,
    implementation="xla",
  )


def capped(score, softcap):
  """cap * tanh(score / cap), or the score where there is no cap."""
  if softcap is None:
    return score
  return softcap * jnp.tanh(score / softcap)


KERNELS = {"dense": dense, "xla": xla}
