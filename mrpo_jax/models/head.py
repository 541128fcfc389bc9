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
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mrpo_jax.models.attention.layout import capped
from mrpo_jax.models.head_sums import NEVER, Sums
from mrpo_jax.models.partition import WHOLE
from mrpo_jax.models.weights import Summed, dense
from mrpo_jax.shapes import check

CHUNK_TOKENS = 2048  # positions projected at once, over all rows
VOCABULARY = 2048  # tokens of the vocabulary projected onto at once
DIFFERENTIABLE = ("logp", "kl")


class Given(NamedTuple):
  """The arrays that figures are made of."""

  models: tuple  # (hidden_RMD, head_VD) of the model, then of its reference
  targets: jax.Array  # [R, M]
  chunks: jax.Array  # how many chunks of places are in use


class Tile(NamedTuple):
  """Sizes of what is projected at once."""

  chunk: int  # places of each row
  v: int  # tokens of the vocabulary


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
  partitions=(WHOLE, WHOLE),
):
  """Figures of the next-token distribution at each scored position.

  Args:
    hidden_RMD: hidden states at the scored positions, in order.
    head_VD: vocabulary projection, one row per token; an array, a QArray or
      a Summed.
    targets_RM: the token ids to score.
    used: int32 scalar; only the first `used` places of every row are
      computed, the others give 0.  None means all.
    also: names of further figures, of "entropy", "log_sum_sq", "is_greedy".
    against: (hidden_RMD, head_VD) of a reference with the same vocabulary, for
      "kl" and "ref_logp".
    softcaps: of the logits, and of the reference's; see `layout.capped`.
    chunk: places of each row in one chunk; None chooses from the shapes.
    vocabulary: tokens of the vocabulary in one block; None chooses.
    partitions: Partition of the model over a mesh, and of the reference, whose
      logits are divided as the model's are.

  Returns:
    dict of value_RM; nats, float32:
      logp: log p(target); gradients flow to hidden_RMD and head_VD.
      entropy: -sum_v p(v) log p(v); no gradient.
      log_sum_sq: log sum_v p(v)^2; no gradient.
      is_greedy: 1 where the target is the likeliest token, of equally likely
        ones the first, else 0; no gradient.
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
  partition = partitions[0]
  chunk = min(M, chunk or chunk_size(R // partition.size(partition.rows), M))
  padding = -M % chunk

  def pad(array):
    return jnp.pad(array, ((0, 0), (0, padding)) + ((0, 0),) * (array.ndim - 2))

  models, names = [(pad(hidden_RMD), head_VD)], list(also)
  if against is not None:
    check(  # X: the reference may be of another width
      hidden_RMX=hidden_RMD,
      head_VX=head_VD,
      against_hidden_RMD=against[0],
      against_head_VD=against[1],
    )
    models.append(jax.lax.stop_gradient((pad(against[0]), against[1])))
    names.append("kl")
  chunks = jnp.minimum((used + chunk - 1) // chunk, (M + padding) // chunk)
  V = head_VD.shape[0] // partition.size(partition.vocab)
  figures = _token_figures(
    Tile(chunk, _block(V, vocabulary or VOCABULARY)),
    tuple(names),
    tuple(softcaps[: len(models)]),
    tuple(partitions[: len(models)]),
    Given(tuple(models), pad(targets_RM), chunks),
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
def _token_figures(tile, names, softcaps, partitions, given, total):
  return _forward(tile, names, softcaps, partitions, given, total)[0]


def _forward(tile, names, softcaps, partitions, given, total):
  """(figures, what the backward pass needs), on every device of the mesh.

  Args:
    tile: Tile, static.
    names: of `head_sums.FIGURES`, static.
    softcaps, partitions: of each model, static.
    given: Given, of all devices.
    total: what the head's gradient is added to, or None.
  """
  rows = PartitionSpec(partitions[0].rows)
  here = functools.partial(_forward_here, tile, names, softcaps, partitions)
  run = partitions[0].run(here, (_specs(partitions, given),), rows)
  figures, norms = run(given)
  return figures, (given, total, norms)


def _backward(tile, names, softcaps, partitions, kept, grads):
  """Gradients of hidden states and head.

  The head's is None where it is frozen, or was added to a given total.
  """
  given, total, norms = kept
  rows, specs = PartitionSpec(partitions[0].rows), _specs(partitions, given)
  of_head = specs.models[0][1] if _is_trained(given) else PartitionSpec()
  here = functools.partial(_backward_here, tile, softcaps, partitions)
  in_specs = (specs, of_head, rows, rows)
  run = partitions[0].run(here, in_specs, (rows, of_head))
  grads = run(given, total, norms, grads)
  return Given((grads, *[None] * len(given.models[1:])), None, None), None


def _is_trained(given):
  """A quantised head is frozen, and so is its gradient."""
  return isinstance(given.models[0][1], jax.Array)


def _specs(partitions, given):
  """The Given of PartitionSpecs by which the devices find theirs."""
  rows, vocab = PartitionSpec(partitions[0].rows), partitions[0].vocab
  models = tuple(
    (rows, partition.of_weights(head_VD, vocab))
    for partition, (_, head_VD) in zip(partitions, given.models, strict=True)
  )
  return Given(models, rows, PartitionSpec())


class _Block:
  """Some rows of the vocabulary projection: the b-th block of v tokens.

  Of V tokens that this device has.
  """

  def __init__(self, b, v, V, partition):
    self.start = jnp.minimum(b * v, V - v)  # the last one may reach back
    here_11v = self.start + jnp.arange(v)[None, None]
    # False for what the block before has done.
    self.is_new_11v = None if V % v == 0 else here_11v >= b * v
    self.tokens_11v = partition.place(partition.vocab) * V + here_11v

  def of(self, model, partition):
    """head_vD of a model, in the dtype of its activations."""
    hidden_RMD, head_VD = model
    v = self.tokens_11v.size
    rows = jax.tree.map(
      lambda array: jax.lax.dynamic_slice_in_dim(array, self.start, v), head_VD
    )
    head_vD = dense(rows, hidden_RMD.dtype)
    if not partition.embed:
      return head_vD
    return jax.lax.all_gather(head_vD, partition.embed, axis=1, tiled=True)

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


def _forward_here(tile, names, softcaps, partitions, given):
  """(figures, norms) of this device's rows."""
  hidden_RMD, head_VD = given.models[0]
  V, vocab = head_VD.shape[0], partitions[0].vocab
  wide = jnp.promote_types(hidden_RMD.dtype, jnp.float32)

  def one_block(b, sums):
    block = _Block(b, tile.v, V, partitions[0])
    heads = list(map(block.of, given.models, partitions))

    def one_chunk(i, sums):
      cut = functools.partial(_cut, i=i, chunk=tile.chunk)
      hidden = [cut(hidden_RMD) for hidden_RMD, _ in given.models]
      logits = list(map(block.logits, hidden, heads, softcaps))
      hit_Rcv = block.hits(cut(given.targets))
      found = jax.tree.map(cut, sums).add(logits, hit_Rcv)
      paste = functools.partial(_paste, i=i, chunk=tile.chunk)
      return jax.tree.map(paste, sums, found)

    return jax.lax.fori_loop(0, given.chunks, one_chunk, sums)

  zero_RM = jnp.zeros(given.targets.shape, wide)
  sums = Sums.start(zero_RM, len(given.models), names)
  with jax.named_scope("head"):
    sums = jax.lax.fori_loop(0, -(-V // tile.v), one_block, sums)
  return (sums.together(vocab) if vocab else sums).result()


def grad_logits(logits, norms, hit_Rcv, grads, softcap, is_new_11v=None):
  """Gradient of a block's products, from those of its tokens' figures.

  Args:
    logits: logits_Rcv of the model, and of its reference where it has one.
    norms: norm_Rc of each softmax.
    hit_Rcv: True at the targets.
    grads: dict of grad_Rc of "logp" and "kl".
    softcap: of the model's logits; the products come before it.
    is_new_11v: False for tokens of an earlier block; None: all are new.

  Returns:
    grad_Rcv.
  """
  share_Rcv, *others = (
    jnp.exp(logits_Rcv - norm_Rc[:, :, None])
    for logits_Rcv, norm_Rc in zip(logits, norms, strict=True)
  )
  hit_Rcv = hit_Rcv.astype(share_Rcv.dtype)
  grad_Rcv = grads["logp"][:, :, None] * (hit_Rcv - share_Rcv)
  for ref_share_Rcv in others:
    grad_Rcv += grads["kl"][:, :, None] * (share_Rcv - ref_share_Rcv)
  if softcap is not None:  # the slope of the cap, from what it gave
    grad_Rcv *= 1.0 - jnp.square(logits[0] / softcap)
  if is_new_11v is None:
    return grad_Rcv
  return jnp.where(is_new_11v, grad_Rcv, 0.0)


def _backward_here(tile, softcaps, partitions, given, total, norms, grads):
  """(gradient of the hidden states, of the head) of this device's part."""
  (hidden_RMD, head_VD), partition = given.models[0], partitions[0]
  V, dtype, wide = head_VD.shape[0], hidden_RMD.dtype, norms[0].dtype
  is_trained = _is_trained(given)
  grad_head_VD = total
  if is_trained and total is None:
    grad_head_VD = jax.new_ref(jnp.zeros_like(head_VD))

  def one_block(b, grad_hidden_RMD):
    block = _Block(b, tile.v, V, partition)
    heads = list(map(block.of, given.models, partitions))

    def one_chunk(i, carry):
      grad_hidden_RMD, grad_head_vD = carry
      cut = functools.partial(_cut, i=i, chunk=tile.chunk)
      hidden = [cut(hidden_RMD) for hidden_RMD, _ in given.models]
      grad_Rcv = grad_logits(
        list(map(block.logits, hidden, heads, softcaps)),
        list(map(cut, norms)),
        block.hits(cut(given.targets)),
        jax.tree.map(cut, grads),
        softcaps[0],
        block.is_new_11v,
      )
      grad_nv = _flat(grad_Rcv.astype(dtype))
      grad_hidden_RcD = cut(grad_hidden_RMD) + jnp.matmul(
        grad_nv, heads[0], preferred_element_type=wide
      ).reshape(hidden[0].shape)
      if is_trained:
        grad_head_vD += jnp.matmul(
          grad_nv.T, _flat(hidden[0]), preferred_element_type=wide
        )
      grad_hidden_RMD = _paste(grad_hidden_RMD, grad_hidden_RcD, i, tile.chunk)
      return grad_hidden_RMD, grad_head_vD

    zero_vD = jnp.zeros(heads[0].shape, wide) if is_trained else ()
    grad_hidden_RMD, grad_head_vD = jax.lax.fori_loop(
      0, given.chunks, one_chunk, (grad_hidden_RMD, zero_vD)
    )
    if is_trained:
      grad_head_vD = _scattered(grad_head_vD, partition)
      rows = jax.ds(block.start, tile.v)
      grad_head_vD = grad_head_vD.astype(grad_head_VD.dtype)
      jax.ref.addupdate(grad_head_VD, rows, grad_head_vD)
    return grad_hidden_RMD

  grad_hidden_RMD = jnp.zeros(hidden_RMD.shape, wide)
  with jax.named_scope("head_gradient"):
    grad_hidden_RMD = jax.lax.fori_loop(
      0, -(-V // tile.v), one_block, grad_hidden_RMD
    )
  if partition.vocab:
    grad_hidden_RMD = jax.lax.psum(grad_hidden_RMD, partition.vocab)
  is_own = is_trained and total is None
  grad_head_VD = jax.freeze(grad_head_VD) if is_own else None
  return grad_hidden_RMD.astype(dtype), grad_head_VD


def _scattered(grad_head_vD, partition):
  """The sum over the rows of all devices, each of which keeps its width."""
  others = tuple(axis for axis in partition.rows if axis not in partition.embed)
  if others:
    grad_head_vD = jax.lax.psum(grad_head_vD, others)
  if not partition.embed:
    return grad_head_vD
  return jax.lax.psum_scatter(
    grad_head_vD, partition.embed, scatter_dimension=1, tiled=True
  )


_token_figures.defvjp(_forward, _backward)
