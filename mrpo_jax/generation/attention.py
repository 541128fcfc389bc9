# SPDX-License-Identifier: Apache-2.0
"""Attention of one new token a slot, and the kernel that keeps prompts."""

import jax
import jax.numpy as jnp

from mrpo_jax.models.attention.layout import capped
from mrpo_jax.shapes import widen


def keeping(chosen, staged):
  """Function of a layer's number to the kernel that also keeps what it sees.

  Args:
    chosen: the kernel of packed rows.
    staged: KeysValues of references, [L, R, T, G, E] both; rows may be shorter
      than T.
  """

  def of_layer(number):
    def kernel(query_RTHE, key_RTGE, value_RTGE, *of_whom, **numbers):
      T = key_RTGE.shape[1]
      staged.keys[number, :, :T] = key_RTGE.astype(staged.keys.dtype)
      staged.values[number, :, :T] = value_RTGE.astype(staged.values.dtype)
      return chosen(query_RTHE, key_RTGE, value_RTGE, *of_whom, **numbers)

    return kernel

  return of_layer


def write(refs, at, i, new_B1GE):
  """Writes keys and values of the i-th token of a block."""
  keys, values = refs
  key_BGE, value_BGE = (new[:, 0].astype(keys.dtype) for new in new_B1GE)
  all_of_them = slice(None)
  keys[(*at, all_of_them, all_of_them, all_of_them, i)] = key_BGE
  values[(*at, all_of_them, all_of_them, i)] = value_BGE


def attend(kept, i, query_B1HE, start_B, window, *, scale, softcap):
  """Attention of one new token a slot over cache and block, itself included.

  Args:
    kept: keys and values of the cache, and of the block up to this token.
    i: number of the token in the block.
    query_B1HE: queries.
    start_B: position of the block's first token.
    window: see `layout.sees`.
    scale, softcap: see `layout.dense`.
  """
  B, _, H, E = query_B1HE.shape
  (keys_BGES, _), (keys_BGEP, _) = kept
  G, S, P = *keys_BGES.shape[1::2], keys_BGEP.shape[3]
  query_BGHE = widen(query_B1HE).reshape(B, G, H // G, E)
  score_BGHS = jnp.concatenate(
    [
      jnp.einsum("BGHE,BGES->BGHS", query_BGHE, keys.astype(query_BGHE.dtype))
      for keys, _ in kept
    ],
    axis=3,
  )
  score_BGHS = capped(score_BGHS * scale, softcap)
  # How long before the block's start; what was never there lies before 0.
  back_BS = (start_B[:, None] - 1 - jnp.arange(S)[None]) % S + 1
  is_there_BS = back_BS <= start_B[:, None]
  back_BS = jnp.concatenate(
    [back_BS, jnp.broadcast_to(-jnp.arange(P)[None], (B, P))], axis=1
  )
  is_there_BP = jnp.broadcast_to((jnp.arange(P) <= i)[None], (B, P))
  sees_BS = jnp.concatenate([is_there_BS, is_there_BP], axis=1)
  if window is not None:
    sees_BS &= (back_BS + i < window) | (window == 0)
  score_BGHS = jnp.where(sees_BS[:, None, None], score_BGHS, -jnp.inf)
  share_BGHS = jax.nn.softmax(score_BGHS, axis=3)
  seen_BGHE = sum(
    jnp.einsum("BGHS,BGSE->BGHE", share, values.astype(share.dtype))
    for share, (_, values) in zip(
      (share_BGHS[..., :S], share_BGHS[..., S:]), kept, strict=True
    )
  )
  return seen_BGHE.reshape(B, 1, H, E).astype(query_B1HE.dtype)
