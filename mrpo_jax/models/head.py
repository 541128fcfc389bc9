# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of scored tokens without a logits tensor.

The vocabulary projection runs over blocks of the vocabulary and, for each,
over chunks of scored positions, as many as the rows hold: nothing of shape
[rows, T, V] exists, prompts and padding cost nothing here, and the gradient of
each block of the head is summed where it is and written once.

On a mesh each device does that with its own rows and its own tokens of the
vocabulary.  Of the weights it collects one block at a time; of the softmax,
sums of one number per token are put together at the end.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mrpo_jax.models.attention.layout import capped
from mrpo_jax.models.partition import WHOLE
from mrpo_jax.models.weights import Summed, dense
from mrpo_jax.shapes import check

CHUNK_TOKENS = 2048  # positions projected at once, over all rows
VOCABULARY = 2048  # tokens of the vocabulary projected onto at once
NEVER = -1e30  # a logit without probability; finite, so that 0 times it is 0
DIFFERENTIABLE = ("logp", "kl")


def chunk_size(R, M):
  """Scored positions of each row in one chunk: at most an eighth of M."""
  return max(1, min(CHUNK_TOKENS // R, -(-M // 8)))


def token_logps(hidden_RMD, head_VD, targets_RM, used=None, **keywords):
  """log p(target) at each scored position: logp_RM of `token_figures`."""
  return token_figures(hidden_RMD, head_VD, targets_RM, used, **keywords)[
    "logp"
  ]


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
  vocabulary=None,
  splits=(WHOLE, WHOLE),
):
  """What the next-token distribution says at each scored position.

  Args:
    hidden_RMD: hidden states at the scored positions, in order.
    head_VD: vocabulary projection, one row per token; an array, a QArray or
      a Summed.
    targets_RM: the token ids to score.
    used: int32 scalar; only the first `used` places of every row are
      computed, the others give 0.  None means all.
    also: names of further figures, of "entropy" and "log_sum_sq".
    against: (hidden_RMD, head_VD) of a reference with the same vocabulary, for
      "kl" and "ref_logp".
    softcaps: of the logits, and of the reference's; see `layout.capped`.
    chunk: places of each row in one chunk; None chooses from the shapes.
    vocabulary: tokens of the vocabulary in one block; None chooses.
    splits: Split of the model over a mesh, and of the reference, whose logits
      are divided as the model's are.

  Returns:
    dict of value_RM; nats, float32:
      logp: log p(target); gradients flow to hidden_RMD and head_VD.
      entropy: -sum_v p(v) log p(v); no gradient.
      log_sum_sq: log sum_v p(v)^2; no gradient.
      ref_logp: log r(target) of the reference; no gradient.
      kl: sum_v r(v) log(r(v) / p(v)), with its gradient through p.

  Numerics: products accumulate in float32, the log-sum-exp is float32.
  """
  total = None
  if isinstance(head_VD, Summed):
    head_VD, total = head_VD.array, head_VD.total
  check(hidden_RMD=hidden_RMD, head_VD=head_VD, targets_RM=targets_RM)
  R, M, _ = hidden_RMD.shape
  used = jnp.asarray(M if used is None else used, jnp.int32)
  split = splits[0]
  chunk = min(M, chunk or chunk_size(R // split.size(split.rows), M))
  padding = -M % chunk

  def pad(array):
    return jnp.pad(array, ((0, 0), (0, padding)) + ((0, 0),) * (array.ndim - 2))

  if against is not None:
    check(  # X: the reference may be of another width
      hidden_RMX=hidden_RMD,
      head_VX=head_VD,
      against_hidden_RMD=against[0],
      against_head_VD=against[1],
    )
    against = jax.lax.stop_gradient((pad(against[0]), against[1]))
  chunks = jnp.minimum((used + chunk - 1) // chunk, (M + padding) // chunk)
  V = head_VD.shape[0] // split.size(split.vocab)
  figures = _token_figures(
    (chunk, _block(V, vocabulary or VOCABULARY)),
    tuple(also),
    tuple(softcaps),
    tuple(splits),
    pad(hidden_RMD),
    head_VD,
    pad(targets_RM),
    chunks,
    against,
    total,
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


def _block(V, most):
  """The least size that cuts V into as few blocks of at most `most`."""
  return -(-V // -(-V // most))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _token_figures(sizes, also, softcaps, splits, *given):
  return _forward(sizes, also, softcaps, splits, *given)[0]


def _forward(sizes, also, softcaps, splits, *given):
  """(figures, what the backward pass needs), on every device of the mesh.

  `given` is what `_forward_here` takes, of all devices, and the total that the
  head's gradient is added to, or None.
  """
  *given, total = given
  rows = PartitionSpec(splits[0].rows)
  here = functools.partial(_forward_here, sizes, also, softcaps, splits)
  run = splits[0].run(here, _specs(splits, *given), rows)
  figures, norms = run(*given)
  return figures, (*given, total, norms)


def _backward(sizes, also, softcaps, splits, kept, grads):
  """Gradients of hidden states and head.

  The head's is None where it is frozen, or was added to a given total.
  """
  *given, total, norms = kept
  rows = PartitionSpec(splits[0].rows)
  specs = _specs(splits, *given)
  here = functools.partial(_backward_here, sizes, softcaps, splits)
  of_head = specs[1] if _is_trained(given[1]) else PartitionSpec()
  run = splits[0].run(here, (*specs, of_head, rows, rows), (rows, of_head))
  return *run(*given, total, norms, grads), *[None] * 4


def _is_trained(head_VD):
  """A quantised head is frozen, and so is its gradient."""
  return isinstance(head_VD, jax.Array)


def _specs(splits, hidden_RMD, head_VD, targets_RM, chunks, against):
  """How `_forward_here` finds its arguments split."""
  rows, vocab = PartitionSpec(splits[0].rows), splits[0].vocab
  of_reference = None
  if against is not None:
    of_reference = rows, splits[1].of_weights(against[1], vocab)
  of_head = splits[0].of_weights(head_VD, vocab)
  return rows, of_head, rows, PartitionSpec(), of_reference


class _Block:
  """Some rows of the vocabulary projection: the b-th block of v tokens.

  Of V tokens that this device has.
  """

  def __init__(self, b, v, V, split):
    self.start = jnp.minimum(b * v, V - v)  # the last one may reach back
    here_11v = self.start + jnp.arange(v)[None, None]
    # False for what the block before has done.
    self.is_new_11v = None if V % v == 0 else here_11v >= b * v
    self.tokens_11v = split.place(split.vocab) * V + here_11v

  def of(self, head_VD, dtype, split):
    """head_vD in the dtype of the activations."""
    v = self.tokens_11v.size
    rows = jax.tree.map(
      lambda array: jax.lax.dynamic_slice_in_dim(array, self.start, v), head_VD
    )
    head_vD = dense(rows, dtype)
    if not split.embed:
      return head_vD
    return jax.lax.all_gather(head_vD, split.embed, axis=1, tiled=True)

  def logits(self, hidden_RcD, head_vD, softcap):
    wide = jnp.promote_types(hidden_RcD.dtype, jnp.float32)
    logits_nv = jnp.matmul(
      _flat(hidden_RcD), head_vD.T, preferred_element_type=wide
    )
    logits_Rcv = logits_nv.reshape(*hidden_RcD.shape[:2], -1)
    logits_Rcv = capped(logits_Rcv, softcap)
    if self.is_new_11v is None:
      return logits_Rcv
    return jnp.where(self.is_new_11v, logits_Rcv, NEVER)

  def hits(self, targets_Rc):
    """hit_Rcv: a comparison shards over V, a gather would collect it."""
    hit_Rcv = targets_Rc[:, :, None] == self.tokens_11v
    return hit_Rcv if self.is_new_11v is None else hit_Rcv & self.is_new_11v


def _flat(array_Rcx):
  """Of rows and chunk one axis: XLA's CPU backend knows that product."""
  return array_Rcx.reshape(-1, array_Rcx.shape[-1])


def _cut(array, i, chunk):
  return jax.lax.dynamic_slice_in_dim(array, i * chunk, chunk, axis=1)


def _paste(array, piece, i, chunk):
  return jax.lax.dynamic_update_slice_in_dim(array, piece, i * chunk, axis=1)


def _seen(sums, logits_Rcv, hit_Rcv):
  """Running sums of the softmax with the logits of one more block.

  `top`, the greatest logit; `sum` of exp(logit - top); `hit`, the target's
  logit.  Returns (sums, share_Rcv, fade_Rc): exp(logit - top), and what
  earlier sums are worth against the new top.
  """
  top_Rc = jnp.maximum(sums["top"], jnp.max(logits_Rcv, axis=-1))
  share_Rcv = jnp.exp(logits_Rcv - top_Rc[:, :, None])
  fade_Rc = jnp.exp(sums["top"] - top_Rc)
  found = {
    "top": top_Rc,
    "sum": sums["sum"] * fade_Rc + jnp.sum(share_Rcv, axis=-1),
    "hit": sums["hit"] + jnp.sum(jnp.where(hit_Rcv, logits_Rcv, 0.0), axis=-1),
  }
  return found, share_Rcv, fade_Rc


def _together(sums, split):
  """Sums over the tokens of all devices, from those of each."""
  top_RM = jax.lax.pmax(sums["top"], split.vocab)
  fade_RM = jnp.exp(sums["top"] - top_RM)
  lowered_RM = sums["top"] - top_RM
  sums = {**sums, "sum": sums["sum"] * fade_RM}
  if "entropy" in sums:
    sums["entropy"] = sums["entropy"] * fade_RM + lowered_RM * sums["sum"]
  if "log_sum_sq" in sums:
    sums["log_sum_sq"] *= jnp.square(fade_RM)
  if "kl" in sums:
    sums["kl"] *= fade_RM
  return jax.lax.psum(sums, split.vocab) | {"top": top_RM}


def _forward_here(
  sizes,
  also,
  softcaps,
  splits,
  hidden_RMD,
  head_VD,
  targets_RM,
  chunks,
  against,
):
  (chunk, v), V = sizes, head_VD.shape[0]
  softcap, ref_softcap = softcaps
  dtype = hidden_RMD.dtype
  wide = jnp.promote_types(dtype, jnp.float32)
  zero_RM = jnp.zeros(targets_RM.shape, wide)
  start = {"top": jnp.full_like(zero_RM, NEVER), "sum": zero_RM, "hit": zero_RM}
  sums = {"policy": start | dict.fromkeys(also, zero_RM)}
  if against is not None:
    sums["reference"] = start | {"kl": zero_RM}

  def one_block(b, sums):
    block = _Block(b, v, V, splits[0])
    head_vD = block.of(head_VD, dtype, splits[0])
    if against is not None:
      ref_head_vD = block.of(against[1], against[0].dtype, splits[1])

    def one_chunk(i, sums):
      old = jax.tree.map(lambda sum_RM: _cut(sum_RM, i, chunk), sums)
      hit_Rcv = block.hits(_cut(targets_RM, i, chunk))
      logits_Rcv = block.logits(_cut(hidden_RMD, i, chunk), head_vD, softcap)
      found, share_Rcv, fade_Rc = _seen(old["policy"], logits_Rcv, hit_Rcv)
      if "entropy" in also:  # the sum of share * (logit - top)
        below_Rcv = share_Rcv * (logits_Rcv - found["top"][:, :, None])
        lowered_Rc = old["policy"]["top"] - found["top"]
        old_Rc = (
          old["policy"]["entropy"] + lowered_Rc * old["policy"]["sum"]
        ) * fade_Rc
        found["entropy"] = old_Rc + jnp.sum(below_Rcv, axis=-1)
      if "log_sum_sq" in also:  # the sum of share^2
        square_Rc = jnp.sum(jnp.square(share_Rcv), axis=-1)
        old_Rc = old["policy"]["log_sum_sq"] * jnp.square(fade_Rc)
        found["log_sum_sq"] = old_Rc + square_Rc
      found = {"policy": found}
      if against is not None:
        ref_Rcv = block.logits(
          _cut(against[0], i, chunk), ref_head_vD, ref_softcap
        )
        of_ref = old["reference"]
        ref, share_Rcv, fade_Rc = _seen(of_ref, ref_Rcv, hit_Rcv)
        # The sum of share * (reference's logit - policy's).
        gap_Rc = jnp.sum(share_Rcv * (ref_Rcv - logits_Rcv), axis=-1)
        ref["kl"] = of_ref["kl"] * fade_Rc + gap_Rc
        found["reference"] = ref
      return jax.tree.map(
        lambda sum_RM, new_Rc: _paste(sum_RM, new_Rc, i, chunk), sums, found
      )

    return jax.lax.fori_loop(0, chunks, one_chunk, sums)

  with jax.named_scope("head"):
    sums = jax.lax.fori_loop(0, -(-V // v), one_block, sums)
  if splits[0].vocab:
    sums = {name: _together(of, splits[0]) for name, of in sums.items()}
  policy, norms = sums["policy"], {}
  for name, of in sums.items():
    # Places past the chunks in use have no sum; their figures are dropped.
    of["sum"] = jnp.maximum(of["sum"], 1.0)  # the top's own share is 1
    norms[name] = of["top"] + jnp.log(of["sum"])
  figures = {"logp": policy["hit"] - norms["policy"]}
  if "entropy" in also:
    mean_RM = policy["entropy"] / policy["sum"]
    figures["entropy"] = jnp.log(policy["sum"]) - mean_RM
  if "log_sum_sq" in also:
    square_RM = jnp.maximum(policy["log_sum_sq"], 1.0)
    figures["log_sum_sq"] = jnp.log(square_RM) - 2 * jnp.log(policy["sum"])
  if against is not None:
    ref = sums["reference"]
    figures["ref_logp"] = ref["hit"] - norms["reference"]
    figures["kl"] = ref["kl"] / ref["sum"] + (
      norms["policy"] - norms["reference"]
    )
  return figures, norms


def _backward_here(
  sizes,
  softcaps,
  splits,
  hidden_RMD,
  head_VD,
  targets_RM,
  chunks,
  against,
  total,
  norms,
  grads,
):
  (chunk, v), V, split = sizes, head_VD.shape[0], splits[0]
  softcap, ref_softcap = softcaps
  dtype = hidden_RMD.dtype
  wide = norms["policy"].dtype
  is_trained = _is_trained(head_VD)
  grad_head_VD = total
  if is_trained and total is None:
    grad_head_VD = jax.new_ref(jnp.zeros_like(head_VD))

  def one_block(b, grad_hidden_RMD):
    block = _Block(b, v, V, split)
    head_vD = block.of(head_VD, dtype, split)
    if against is not None:
      ref_head_vD = block.of(against[1], against[0].dtype, splits[1])

    def share(logits_Rcv, name, i):
      return jnp.exp(logits_Rcv - _cut(norms[name], i, chunk)[:, :, None])

    def one_chunk(i, carry):
      grad_hidden_RMD, grad_head_vD = carry
      hidden_RcD = _cut(hidden_RMD, i, chunk)
      logits_Rcv = block.logits(hidden_RcD, head_vD, softcap)
      share_Rcv = share(logits_Rcv, "policy", i)
      hit_Rcv = block.hits(_cut(targets_RM, i, chunk))
      grad_Rc1 = _cut(grads["logp"], i, chunk)[:, :, None]
      grad_Rcv = grad_Rc1 * (hit_Rcv.astype(wide) - share_Rcv)
      if against is not None:
        grad_Rc1 = _cut(grads["kl"], i, chunk)[:, :, None]
        ref_Rcv = block.logits(
          _cut(against[0], i, chunk), ref_head_vD, ref_softcap
        )
        grad_Rcv += grad_Rc1 * (share_Rcv - share(ref_Rcv, "reference", i))
      if softcap is not None:  # the slope of the cap, from what it gave
        grad_Rcv *= 1.0 - jnp.square(logits_Rcv / softcap)
      if block.is_new_11v is not None:
        grad_Rcv = jnp.where(block.is_new_11v, grad_Rcv, 0.0)
      grad_nv = _flat(grad_Rcv.astype(dtype))
      grad_hidden_RcD = _cut(grad_hidden_RMD, i, chunk) + jnp.matmul(
        grad_nv, head_vD, preferred_element_type=wide
      ).reshape(hidden_RcD.shape)
      if is_trained:
        grad_head_vD += jnp.matmul(
          grad_nv.T, _flat(hidden_RcD), preferred_element_type=wide
        )
      return _paste(grad_hidden_RMD, grad_hidden_RcD, i, chunk), grad_head_vD

    start = (
      grad_hidden_RMD,
      jnp.zeros(head_vD.shape, wide) if is_trained else (),
    )
    grad_hidden_RMD, grad_head_vD = jax.lax.fori_loop(
      0, chunks, one_chunk, start
    )
    if is_trained:
      grad_head_vD = _scattered(grad_head_vD, split).astype(grad_head_VD.dtype)
      jax.ref.addupdate(grad_head_VD, jax.ds(block.start, v), grad_head_vD)
    return grad_hidden_RMD

  grad_hidden_RMD = jnp.zeros(hidden_RMD.shape, wide)
  with jax.named_scope("head_gradient"):
    grad_hidden_RMD = jax.lax.fori_loop(
      0, -(-V // v), one_block, grad_hidden_RMD
    )
  if split.vocab:
    grad_hidden_RMD = jax.lax.psum(grad_hidden_RMD, split.vocab)
  is_own = is_trained and total is None
  return (
    grad_hidden_RMD.astype(dtype),
    jax.freeze(grad_head_VD) if is_own else None,
  )


def _scattered(grad_head_vD, split):
  """The sum over the rows of all devices, each of which keeps its width."""
  others = tuple(axis for axis in split.rows if axis not in split.embed)
  if others:
    grad_head_vD = jax.lax.psum(grad_head_vD, others)
  if not split.embed:
    return grad_head_vD
  return jax.lax.psum_scatter(
    grad_head_vD, split.embed, scatter_dimension=1, tiled=True
  )


_token_figures.defvjp(_forward, _backward)
