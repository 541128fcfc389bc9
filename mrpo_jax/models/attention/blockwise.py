# SPDX-License-Identifier: Apache-2.0
"""Attention whose cost follows the real lengths of what is packed in a row.

Queries and keys are cut into blocks; of all pairs of blocks only those are
computed that hold a token which sees another, as many as there are, under
loops whose lengths are known at run time.  Softmax runs along (Milakov and
Gimelshein, arXiv:1805.02867) and its backward pass recomputes the shares from
their normaliser (FlashAttention, arXiv:2205.14135), so nothing of shape [T, T]
exists.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mrpo_jax.models.attention.layout import SAVED, RowLayout, capped, sees

BLOCK = 64  # tokens; with 128 short sequences waste more than loops cost
NEVER = -1e30  # a score that has no share; finite, so that no difference is nan


def blockwise(
  query_RTHE,
  key_RSGE,
  value_RSGE,
  layout,
  window=None,
  *,
  scale,
  softcap,
  block=BLOCK,
):
  """`layout.dense` of the same arguments, by blocks of so many tokens."""
  R, T, H, E = query_RTHE.shape
  G = key_RSGE.shape[2]
  padding = -T % block

  def pad(array):
    return jnp.pad(array, ((0, 0), (0, padding)) + ((0, 0),) * (array.ndim - 2))

  def blocks(array_RTHE, *heads):
    """[N, R, G, H / G * block, E]: each block's heads of a key together."""
    array = pad(array_RTHE).reshape(R, -1, block, *heads, E)
    places = (1, 0, 3, 4, 2, 5)
    return array.transpose(places).reshape(array.shape[1], R, G, -1, E)

  out_NRGQE = _blockwise(
    scale,
    softcap,
    blocks(query_RTHE, G, H // G),
    blocks(key_RSGE, G, 1),
    blocks(value_RSGE, G, 1),
    jax.tree.map(pad, layout),
    window,
  )
  out = out_NRGQE.reshape(-1, R, G, H // G, block, E)
  return out.transpose(1, 0, 4, 2, 3, 5).reshape(R, -1, H, E)[:, :T]


@flax.struct.dataclass
class _Plan:
  """The blocks of keys that each block of queries needs."""

  layout: RowLayout  # arrays [N, R, b]
  window: jax.Array | None
  order_NN: jax.Array  # the keys' blocks: first its own, then backwards
  count_N: jax.Array  # how many of them

  def mask(self, i, j):
    """mask_RG1bb of queries i and keys j."""
    of = jax.tree.map(lambda array_NRb: array_NRb[i], self.layout)
    at = jax.tree.map(lambda array_NRb: array_NRb[j], self.layout)
    block = of.segments.shape[-1]
    place = jnp.arange(block)
    mask_Rbb = sees(of, at, i * block + place, j * block + place, self.window)
    return mask_Rbb[:, None, None]


def _plan(layout, window, blocks):
  """The _Plan of a padded RowLayout [R, T] in so many blocks."""

  def cut(array_RT):
    R, T = array_RT.shape
    return array_RT.reshape(R, blocks, T // blocks).swapaxes(0, 1)

  layout = jax.tree.map(cut, layout)
  is_real = layout.segments > 0
  far = jnp.iinfo(jnp.int32).max

  def ends(array_NRb):
    """(least, greatest) of the real tokens of each block."""
    least_NR = jnp.min(jnp.where(is_real, array_NRb, far), axis=-1)
    return least_NR, jnp.max(jnp.where(is_real, array_NRb, -1), axis=-1)

  first_NR, last_NR = ends(layout.segments)
  needed_NNR = first_NR[:, None] <= last_NR[None]
  needed_NNR &= first_NR[None] <= last_NR[:, None]
  low_NR, high_NR = ends(layout.branches)
  # Siblings do not see each other: skipped where the keys' block is of other
  # branches than the queries', and has nothing of what comes before them all.
  apart_NNR = (low_NR[None] > high_NR[:, None]) | (
    high_NR[None] < low_NR[:, None]
  )
  needed_NNR &= ~(apart_NNR & (low_NR[None] > 0))
  if window is not None:
    early_NR, late_NR = ends(layout.positions)
    back_NNR = early_NR[:, None] - late_NR[None]
    needed_NNR &= (back_NNR < window) | (window == 0)
  block_N = jnp.arange(blocks)
  needed_NN = jnp.any(needed_NNR, axis=-1) & (block_N[:, None] >= block_N[None])
  needed_NN |= block_N[:, None] == block_N[None]
  # A token's own block comes first: its greatest score is then finite.
  order_NN = jnp.argsort(jnp.where(needed_NN, -block_N[None], 1), axis=1)
  return _Plan(layout, window, order_NN, jnp.sum(needed_NN, axis=1))


def _products(left, right, einsum):
  wide = jnp.promote_types(left.dtype, jnp.float32)
  return jnp.einsum(einsum, left, right, preferred_element_type=wide)


def _scores(query_RGQE, key_RGbE, mask_RGMbb, scale, softcap):
  """(score_RGQb, the same where nothing is hidden): float32 or better."""
  score_RGQb = _products(query_RGQE, key_RGbE, "RGQE,RGbE->RGQb")
  open_RGQb = capped(score_RGQb * scale, softcap)
  R, G, Q, b = open_RGQb.shape
  score_RGMbb = open_RGQb.reshape(R, G, Q // b, b, b)
  score_RGMbb = jnp.where(mask_RGMbb, score_RGMbb, NEVER)
  return score_RGMbb.reshape(R, G, Q, b), open_RGQb


def block_counts(layout, block=BLOCK):
  """count_N: with how many blocks of keys each block of queries is computed.

  `layout` is the RowLayout [R, T] of some rows; of windows nothing is known.
  """
  T = layout.segments.shape[1]

  def pad(array_RT):
    return jnp.pad(array_RT, ((0, 0), (0, -T % block)))

  return _plan(jax.tree.map(pad, layout), None, -(-T // block)).count_N


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _blockwise(scale, softcap, query, key, value, layout, window):
  return _forward(scale, softcap, query, key, value, layout, window)[0]


def _forward(scale, softcap, query, key, value, layout, window):
  """Arrays [N, R, G, Q or b, E]; see `blockwise`."""
  N, R, G, Q, E = query.shape
  wide = jnp.promote_types(query.dtype, jnp.float32)
  plan = _plan(layout, window, N)

  def one_block(i, outcome):
    out, norm_NRGQ = outcome

    def one_pair(n, carry):
      top_RGQ, sum_RGQ, seen_RGQE = carry
      j = plan.order_NN[i, n]
      score_RGQb, _ = _scores(query[i], key[j], plan.mask(i, j), scale, softcap)
      new_top_RGQ = jnp.maximum(top_RGQ, jnp.max(score_RGQb, axis=-1))
      share_RGQb = jnp.exp(score_RGQb - new_top_RGQ[..., None])
      fade_RGQ = jnp.exp(top_RGQ - new_top_RGQ)
      more_RGQE = _products(
        share_RGQb.astype(value.dtype), value[j], "RGQb,RGbE->RGQE"
      )
      return (
        new_top_RGQ,
        sum_RGQ * fade_RGQ + jnp.sum(share_RGQb, axis=-1),
        seen_RGQE * fade_RGQ[..., None] + more_RGQE,
      )

    start = (
      jnp.full((R, G, Q), NEVER, wide),
      jnp.zeros((R, G, Q), wide),
      jnp.zeros((R, G, Q, E), wide),
    )
    top_RGQ, sum_RGQ, seen_RGQE = jax.lax.fori_loop(
      0, plan.count_N[i], one_pair, start
    )
    seen_RGQE = (seen_RGQE / sum_RGQ[..., None]).astype(out.dtype)
    return out.at[i].set(seen_RGQE), norm_NRGQ.at[i].set(
      top_RGQ + jnp.log(sum_RGQ)
    )

  start = jnp.zeros_like(query), jnp.zeros((N, R, G, Q), wide)
  with jax.named_scope("blockwise"):
    out, norm_NRGQ = jax.lax.fori_loop(0, N, one_block, start)
  out, norm_NRGQ = checkpoint_name((out, norm_NRGQ), SAVED)
  return out, (query, key, value, plan, out, norm_NRGQ)


def _backward(scale, softcap, kept, grad_out):
  query, key, value, plan, out, norm_NRGQ = kept
  wide = norm_NRGQ.dtype
  # Not a sum of products, which XLA's CPU backend takes apart where R is 1.
  pull_NRGQ = jnp.einsum(
    "NRGQE,NRGQE->NRGQ",
    grad_out.astype(wide),
    out.astype(wide),
    precision="highest",
  )

  def one_block(i, grads):
    grad_query, grad_key, grad_value = grads

    def one_pair(n, carry):
      grad_query_RGQE, grad_key, grad_value = carry
      j = plan.order_NN[i, n]
      score_RGQb, open_RGQb = _scores(
        query[i], key[j], plan.mask(i, j), scale, softcap
      )
      share_RGQb = jnp.exp(score_RGQb - norm_NRGQ[i][..., None])
      grad_value_RGbE = _products(
        share_RGQb.astype(value.dtype), grad_out[i], "RGQb,RGQE->RGbE"
      )
      pull_RGQb = _products(grad_out[i], value[j], "RGQE,RGbE->RGQb")
      grad_RGQb = share_RGQb * (pull_RGQb - pull_NRGQ[i][..., None]) * scale
      if softcap is not None:  # the slope of the cap, from what it gave
        grad_RGQb *= 1.0 - jnp.square(open_RGQb / softcap)
      grad_RGQb = grad_RGQb.astype(key.dtype)
      grad_key_RGbE = _products(grad_RGQb, query[i], "RGQb,RGQE->RGbE")
      return (
        grad_query_RGQE + _products(grad_RGQb, key[j], "RGQb,RGbE->RGQE"),
        grad_key.at[j].add(grad_key_RGbE),
        grad_value.at[j].add(grad_value_RGbE),
      )

    start = jnp.zeros(query.shape[1:], wide), grad_key, grad_value
    grad_query_RGQE, grad_key, grad_value = jax.lax.fori_loop(
      0, plan.count_N[i], one_pair, start
    )
    return grad_query.at[i].set(grad_query_RGQE), grad_key, grad_value

  start = tuple(jnp.zeros(array.shape, wide) for array in (query, key, value))
  with jax.named_scope("blockwise_gradient"):
    grads = jax.lax.fori_loop(0, query.shape[0], one_block, start)
  given = (query, key, value)
  grads = [g.astype(array.dtype) for g, array in zip(grads, given, strict=True)]
  return *grads, None, None


_blockwise.defvjp(_forward, _backward)
