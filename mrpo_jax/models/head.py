# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of scored tokens without a logits tensor.

The vocabulary projection runs over chunks of scored positions, forward and
backward, and only over as many chunks as the rows hold: nothing of shape
[rows, T, V] exists, and prompts and padding cost nothing here.
"""

import functools

import jax
import jax.numpy as jnp

from mrpo_jax.shapes import check

CHUNK_TOKENS = 2048  # positions projected at once, over all rows


def chunk_size(R, M):
  """Scored positions of each row in one chunk: at most a quarter of M."""
  return max(1, min(CHUNK_TOKENS // R, -(-M // 4)))


def token_logps(hidden_RMD, head_VD, targets_RM, used=None, *, chunk=None):
  """log p(target) at each scored position.

  Args:
    hidden_RMD: hidden states at the scored positions, in order.
    head_VD: vocabulary projection, one row per token.
    targets_RM: the token ids to score.
    used: int32 scalar; only the first `used` places of every row are
      computed, the others give 0.  None means all.
    chunk: places of each row in one chunk; None chooses from the shapes.

  Returns:
    logp_RM: nats, float32; gradients flow to hidden_RMD and head_VD.

  Numerics: products accumulate in float32, the log-sum-exp is float32.
  """
  check("R M D", hidden_RMD, "V D", head_VD, "R M", targets_RM)
  R, M, _ = hidden_RMD.shape
  used = jnp.asarray(M if used is None else used, jnp.int32)
  chunk = min(M, chunk or chunk_size(R, M))
  padding = -M % chunk
  hidden_RMD = jnp.pad(hidden_RMD, ((0, 0), (0, padding), (0, 0)))
  targets_RM = jnp.pad(targets_RM, ((0, 0), (0, padding)))
  chunks = jnp.minimum((used + chunk - 1) // chunk, (M + padding) // chunk)
  logp_RM = _token_logps(chunk, hidden_RMD, head_VD, targets_RM, chunks)[:, :M]
  return jnp.where(jnp.arange(M)[None] < used, logp_RM, 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_logps(chunk, hidden_RMD, head_VD, targets_RM, chunks):
  return _forward(chunk, hidden_RMD, head_VD, targets_RM, chunks)[0]


def _logits(hidden_RcD, head_VD):
  wide = jnp.promote_types(hidden_RcD.dtype, jnp.float32)
  head_VD = head_VD.astype(hidden_RcD.dtype)
  return jnp.einsum(
    "RcD,VD->RcV", hidden_RcD, head_VD, preferred_element_type=wide
  )


def _cut(array, i, chunk):
  return jax.lax.dynamic_slice_in_dim(array, i * chunk, chunk, axis=1)


def _paste(array, piece, i, chunk):
  return jax.lax.dynamic_update_slice_in_dim(array, piece, i * chunk, axis=1)


def _is_target(targets_Rc, V):
  # A comparison shards over V where a gather would collect the vocabulary.
  return targets_Rc[:, :, None] == jnp.arange(V)[None, None, :]


def _forward(chunk, hidden_RMD, head_VD, targets_RM, chunks):
  wide = jnp.promote_types(hidden_RMD.dtype, jnp.float32)

  def body(i, carry):
    logp_RM, norm_RM = carry
    logits_RcV = _logits(_cut(hidden_RMD, i, chunk), head_VD)
    norm_Rc = jax.nn.logsumexp(logits_RcV, axis=-1)
    hit_RcV = _is_target(_cut(targets_RM, i, chunk), head_VD.shape[0])
    target_Rc = jnp.sum(jnp.where(hit_RcV, logits_RcV, 0.0), axis=-1)
    logp_RM = _paste(logp_RM, target_Rc - norm_Rc, i, chunk)
    return logp_RM, _paste(norm_RM, norm_Rc, i, chunk)

  zero_RM = jnp.zeros(targets_RM.shape, wide)
  with jax.named_scope("head"):
    logp_RM, norm_RM = jax.lax.fori_loop(0, chunks, body, (zero_RM, zero_RM))
  return logp_RM, (hidden_RMD, head_VD, targets_RM, chunks, norm_RM)


def _backward(chunk, kept, grad_RM):
  hidden_RMD, head_VD, targets_RM, chunks, norm_RM = kept

  def body(i, carry):
    grad_hidden_RMD, grad_head_VD = carry
    hidden_RcD = _cut(hidden_RMD, i, chunk)
    logits_RcV = _logits(hidden_RcD, head_VD)
    share_RcV = jnp.exp(logits_RcV - _cut(norm_RM, i, chunk)[:, :, None])
    hit_RcV = _is_target(_cut(targets_RM, i, chunk), head_VD.shape[0])
    grad_Rc1 = _cut(grad_RM, i, chunk)[:, :, None]
    grad_RcV = grad_Rc1 * (hit_RcV.astype(share_RcV.dtype) - share_RcV)
    grad_RcV = grad_RcV.astype(hidden_RMD.dtype)
    grad_hidden_RcD = jnp.einsum(
      "RcV,VD->RcD", grad_RcV, head_VD.astype(hidden_RMD.dtype)
    )
    grad_head_VD += jnp.einsum(
      "RcV,RcD->VD",
      grad_RcV,
      hidden_RcD,
      preferred_element_type=grad_head_VD.dtype,
    )
    return _paste(grad_hidden_RMD, grad_hidden_RcD, i, chunk), grad_head_VD

  start = (
    jnp.zeros_like(hidden_RMD),
    jnp.zeros(head_VD.shape, jnp.promote_types(head_VD.dtype, jnp.float32)),
  )
  with jax.named_scope("head_gradient"):
    grad_hidden_RMD, grad_head_VD = jax.lax.fori_loop(0, chunks, body, start)
  return grad_hidden_RMD, grad_head_VD.astype(head_VD.dtype), None, None


_token_logps.defvjp(_forward, _backward)
