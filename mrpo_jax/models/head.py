# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of scored tokens without a logits tensor.

The vocabulary projection runs over chunks of scored positions, forward and
backward, and only over as many chunks as the rows hold: nothing of shape
[rows, T, V] exists, and prompts and padding cost nothing here.
"""

import functools

import jax
import jax.numpy as jnp

from mrpo_jax.models.attention import capped
from mrpo_jax.shapes import check

CHUNK_TOKENS = 2048  # positions projected at once, over all rows
DIFFERENTIABLE = ("logp", "kl")


def chunk_size(R, M):
  """Scored positions of each row in one chunk: at most a quarter of M."""
  return max(1, min(CHUNK_TOKENS // R, -(-M // 4)))


def token_logps(hidden_RMD, head_VD, targets_RM, used=None, *, chunk=None):
  """log p(target) at each scored position: logp_RM of `token_figures`."""
  figures = token_figures(hidden_RMD, head_VD, targets_RM, used, chunk=chunk)
  return figures["logp"]


def token_figures(
  hidden_RMD,
  head_VD,
  targets_RM,
  used=None,
  *,
  also=(),
  against=None,
  softcaps=(None, None),
  chunk=None,
):
  """What the next-token distribution says at each scored position.

  Args:
    hidden_RMD: hidden states at the scored positions, in order.
    head_VD: vocabulary projection, one row per token.
    targets_RM: the token ids to score.
    used: int32 scalar; only the first `used` places of every row are
      computed, the others give 0.  None means all.
    also: names of further figures, of "entropy" and "log_sum_sq".
    against: (hidden_RMD, head_VD) of a reference with the same vocabulary, for
      "kl" and "ref_logp".
    softcaps: of the logits, and of the reference's; see `attention.capped`.
    chunk: places of each row in one chunk; None chooses from the shapes.

  Returns:
    dict of value_RM; nats, float32:
      logp: log p(target); gradients flow to hidden_RMD and head_VD.
      entropy: -sum_v p(v) log p(v); no gradient.
      log_sum_sq: log sum_v p(v)^2; no gradient.
      ref_logp: log r(target) of the reference; no gradient.
      kl: sum_v r(v) log(r(v) / p(v)), with its gradient through p.

  Numerics: products accumulate in float32, the log-sum-exp is float32.
  """
  check("R M D", hidden_RMD, "V D", head_VD, "R M", targets_RM)
  R, M, _ = hidden_RMD.shape
  used = jnp.asarray(M if used is None else used, jnp.int32)
  chunk = min(M, chunk or chunk_size(R, M))
  padding = -M % chunk

  def pad(array):
    return jnp.pad(array, ((0, 0), (0, padding)) + ((0, 0),) * (array.ndim - 2))

  if against is not None:
    check("R M _", hidden_RMD, "R M D", against[0])
    check("V _", head_VD, "V D", against[1])
    against = jax.lax.stop_gradient((pad(against[0]), against[1]))
  chunks = jnp.minimum((used + chunk - 1) // chunk, (M + padding) // chunk)
  figures = _token_figures(
    chunk,
    tuple(also),
    tuple(softcaps),
    pad(hidden_RMD),
    head_VD,
    pad(targets_RM),
    chunks,
    against,
  )
  is_used_1M = jnp.arange(M)[None] < used
  figures = {
    name: jnp.where(is_used_1M, value_RM[:, :M], 0.0)
    for name, value_RM in figures.items()
  }
  return {
    name: value_RM
    if name in DIFFERENTIABLE
    else jax.lax.stop_gradient(value_RM)
    for name, value_RM in figures.items()
  }


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _token_figures(
  chunk, also, softcaps, hidden_RMD, head_VD, targets_RM, chunks, against
):
  given = (hidden_RMD, head_VD, targets_RM, chunks, against)
  return _forward(chunk, also, softcaps, *given)[0]


def _logits(hidden_RcD, head_VD, softcap):
  wide = jnp.promote_types(hidden_RcD.dtype, jnp.float32)
  head_VD = head_VD.astype(hidden_RcD.dtype)
  logits_RcV = jnp.einsum(
    "RcD,VD->RcV", hidden_RcD, head_VD, preferred_element_type=wide
  )
  return capped(logits_RcV, softcap)


def _cut(array, i, chunk):
  return jax.lax.dynamic_slice_in_dim(array, i * chunk, chunk, axis=1)


def _paste(array, piece, i, chunk):
  return jax.lax.dynamic_update_slice_in_dim(array, piece, i * chunk, axis=1)


def _is_target(targets_Rc, V):
  # A comparison shards over V where a gather would collect the vocabulary.
  return targets_Rc[:, :, None] == jnp.arange(V)[None, None, :]


def _log_probabilities(hidden_RMD, head_VD, softcap, i, chunk):
  """(logits_RcV, norm_Rc): their difference is the log-probability."""
  logits_RcV = _logits(_cut(hidden_RMD, i, chunk), head_VD, softcap)
  return logits_RcV, jax.nn.logsumexp(logits_RcV, axis=-1)


def _pick(logits_RcV, targets_Rc):
  hit_RcV = _is_target(targets_Rc, logits_RcV.shape[-1])
  return jnp.sum(jnp.where(hit_RcV, logits_RcV, 0.0), axis=-1)


def _forward(
  chunk, also, softcaps, hidden_RMD, head_VD, targets_RM, chunks, against
):
  softcap, ref_softcap = softcaps
  wide = jnp.promote_types(hidden_RMD.dtype, jnp.float32)
  names = ("logp", "norm", *also)
  if against is not None:
    names += ("ref_logp", "ref_norm", "kl")

  def body(i, carry):
    targets_Rc = _cut(targets_RM, i, chunk)
    logits_RcV, norm_Rc = _log_probabilities(
      hidden_RMD, head_VD, softcap, i, chunk
    )
    found = {"logp": _pick(logits_RcV, targets_Rc) - norm_Rc, "norm": norm_Rc}
    logp_RcV = logits_RcV - norm_Rc[:, :, None]
    if "entropy" in also:
      found["entropy"] = -jnp.sum(jnp.exp(logp_RcV) * logp_RcV, axis=-1)
    if "log_sum_sq" in also:
      found["log_sum_sq"] = jax.nn.logsumexp(2.0 * logp_RcV, axis=-1)
    if against is not None:
      ref_RcV, ref_norm_Rc = _log_probabilities(*against, ref_softcap, i, chunk)
      found["ref_logp"] = _pick(ref_RcV, targets_Rc) - ref_norm_Rc
      found["ref_norm"] = ref_norm_Rc
      ref_logp_RcV = ref_RcV - ref_norm_Rc[:, :, None]
      gap_RcV = ref_logp_RcV - logp_RcV
      found["kl"] = jnp.sum(jnp.exp(ref_logp_RcV) * gap_RcV, axis=-1)
    return {
      name: _paste(carry[name], found[name].astype(wide), i, chunk)
      for name in names
    }

  start = {name: jnp.zeros(targets_RM.shape, wide) for name in names}
  with jax.named_scope("head"):
    found = jax.lax.fori_loop(0, chunks, body, start)
  norms = found.pop("norm"), found.pop("ref_norm", None)
  given = (hidden_RMD, head_VD, targets_RM, chunks, against)
  return found, (*given, norms)


def _backward(chunk, also, softcaps, kept, grads):
  softcap, ref_softcap = softcaps
  hidden_RMD, head_VD, targets_RM, chunks, against, norms = kept
  norm_RM, ref_norm_RM = norms

  def logits(hidden_RMD, head_VD, softcap, i):
    return _logits(_cut(hidden_RMD, i, chunk), head_VD, softcap)

  def share(logits_RcV, norm_RM, i):
    return jnp.exp(logits_RcV - _cut(norm_RM, i, chunk)[:, :, None])

  def body(i, carry):
    grad_hidden_RMD, grad_head_VD = carry
    logits_RcV = logits(hidden_RMD, head_VD, softcap, i)
    share_RcV = share(logits_RcV, norm_RM, i)
    hit_RcV = _is_target(_cut(targets_RM, i, chunk), head_VD.shape[0])
    grad_Rc1 = _cut(grads["logp"], i, chunk)[:, :, None]
    grad_RcV = grad_Rc1 * (hit_RcV.astype(share_RcV.dtype) - share_RcV)
    if against is not None:
      grad_Rc1 = _cut(grads["kl"], i, chunk)[:, :, None]
      ref_RcV = share(logits(*against, ref_softcap, i), ref_norm_RM, i)
      grad_RcV += grad_Rc1 * (share_RcV - ref_RcV)
    if softcap is not None:  # the slope of the cap, from what it gave
      grad_RcV *= 1.0 - jnp.square(logits_RcV / softcap)
    grad_RcV = grad_RcV.astype(hidden_RMD.dtype)
    grad_hidden_RcD = jnp.einsum(
      "RcV,VD->RcD", grad_RcV, head_VD.astype(hidden_RMD.dtype)
    )
    grad_head_VD += jnp.einsum(
      "RcV,RcD->VD",
      grad_RcV,
      _cut(hidden_RMD, i, chunk),
      preferred_element_type=grad_head_VD.dtype,
    )
    return _paste(grad_hidden_RMD, grad_hidden_RcD, i, chunk), grad_head_VD

  start = (
    jnp.zeros_like(hidden_RMD),
    jnp.zeros(head_VD.shape, jnp.promote_types(head_VD.dtype, jnp.float32)),
  )
  with jax.named_scope("head_gradient"):
    grad_hidden_RMD, grad_head_VD = jax.lax.fori_loop(0, chunks, body, start)
  return grad_hidden_RMD, grad_head_VD.astype(head_VD.dtype), None, None, None


_token_figures.defvjp(_forward, _backward)
