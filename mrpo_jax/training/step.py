# SPDX-License-Identifier: Apache-2.0
"""The training step: loss, gradient, optimizer and metrics, one XLA program."""

import functools

import jax
import jax.numpy as jnp
import optax

from mrpo_jax.models import lora, weights
from mrpo_jax.rows import micro_batch, micro_batches, scope, token_counts
from mrpo_jax.training import train_state, value
from mrpo_jax.training.figures import (
  losses_of,
  method_arguments,
  policy_figures,
  policy_parts,
  reference_figures,
)
from mrpo_jax.training.metrics import pair_metrics, summary
from mrpo_jax.training.objective import Objective

# Of what a step computes: with another one, a run that goes on gives other
# numbers than one that was never stopped.
VERSION = 3
DROPOUT = 1  # tells its draws from the method's, which use the key itself


def train_step(
  state,
  base,
  references,
  views,
  given,
  *,
  objective: Objective,
  transformation,
  moves=None,
):
  """One optimizer step on exactly B pairs.

  The loss is the mean over the pairs of the step, however they are packed;
  micro-batches accumulate its gradient in float32.  Where a pair's loss
  depends on the others, their log-probabilities are computed beforehand, and
  the micro-batches accumulate the gradient through them.

  Args:
    state: TrainState, donated by the caller's jit.
    base: the policy's frozen weights, see `lora.split`; None where all of
      them are trained.  Not donated: references may share its arrays.
    references: tuple of K frozen parameter trees; None for one that was
      scored before, and for one that moves, which stands in the state.
    views: per tokenizer the tuple of Rows [A, R, T] of `pack.pack_step`.
    given: what is known of the pairs beforehand; see `reference_figures`.
    objective: Objective, static.
    transformation: optax transformation, static.
    moves: ReferenceMoves of reference 0, static; None where it stays.

  Returns:
    (state, metrics): metrics are scalars, those of tokens integers.
  """
  if moves is not None:
    state = moves(state, transformation)
  references = train_state.moved_references(state, base, references)
  fixed = reference_figures(objective, references, views, given)
  valid_B = fixed.valid_B
  count = jnp.maximum(jnp.sum(valid_B), 1).astype(jnp.float32)
  key = jax.random.fold_in(jax.random.key(state.seed), state.step)

  def figures_of(key, trained, micro):
    params = lora.join(base, trained, jax.random.fold_in(key, DROPOUT))
    return policy_figures(objective, references, key, params, micro)

  parts = policy_parts(objective, views, fixed)

  def mean(value_B):
    return jnp.sum(jnp.where(valid_B, value_B, 0.0)) / count

  def mean_loss(figures):
    # Pairs that stand in other micro-batches have constant figures here: they
    # shift this value, which nobody reads, and add nothing to its gradient.
    return mean(losses_of(objective, state.method_state, figures, fixed))

  share = mean_loss
  if objective.method.coupled:
    share = coupled_share(mean_loss, figures_of, state.params, parts, key)
  gradient, figures = accumulated_gradient(
    share, figures_of, state.params, parts, key
  )
  updates, opt_state = transformation.update(
    gradient, state.opt_state, state.params
  )
  params = optax.apply_updates(state.params, updates)
  values = pair_metrics(objective, state.method_state, figures, fixed)
  metrics = summary(values, mean)
  metrics["grad_norm"] = optax.tree.norm(gradient)
  metrics["tokens/real"], metrics["tokens/slots"] = token_counts(
    views[objective.policy.view]
  )
  policy_BC, ref_BCK, more = method_arguments(figures, fixed)
  method_state = value.updated(
    objective,
    transformation,
    state.method_state,
    lambda state: mean(losses_of(objective, state, figures, fixed)),
  )
  method_state = objective.method.update(
    method_state, policy_BC, ref_BCK, **more
  )
  state = state.replace(
    step=state.step + 1,
    params=params,
    opt_state=opt_state,
    method_state=method_state,
  )
  return state, metrics


def summed_figures(figures_of, params, parts, key):
  """Figures summed over all micro-batches: of every pair, without a gradient.

  `figures_of(key, params, micro)` is `policy_figures` of one micro-batch.
  """

  def add(figures, key, micro):
    return _sum(figures, figures_of(key, params, micro))

  start = _no_figures(figures_of, params, parts, key)
  return _over_micro_batches(add, start, parts, key)


def coupled_share(mean_loss, figures_of, params, parts, key):
  """One micro-batch's share of a loss that looks across the batch.

  The gradient of the loss at the figures of all pairs, times those of the
  micro-batch: a scalar whose gradients add up to that of the whole loss.
  """
  with jax.named_scope("coupled"):
    pull = jax.grad(mean_loss)(summed_figures(figures_of, params, parts, key))

  def share(figures):
    products = jax.tree.map(jnp.vdot, pull, figures)
    return sum(jax.tree.leaves(products))

  return share


def accumulated_gradient(share, figures_of, params, parts, key):
  """(gradient, figures) summed over all micro-batches, in float32.

  `share(figures)` is a scalar whose gradient is that micro-batch's share.
  Embedding, head and every layer add their part to the sum where that stands:
  no second gradient exists, but of layers that are narrower than the sum, and
  of the embedding on a mesh.
  """

  def add(total, key, micro):
    sums, figures = total
    refs = jax.tree.map(jax.new_ref, sums)

    def loss(params):
      figures = figures_of(key, weights.summed(params, refs), micro)
      return share(figures), figures

    def taker(path, ref, array):
      # On a mesh the embedding is looked up in a shard_map, and JAX does not
      # add to a ref through it.
      in_place = path[0].key == "blocks" and ref.dtype == array.dtype
      return ref if in_place else jax.ad.GradValue()

    def ended(ref, taker, grad):
      if taker is not ref:
        jax.ref.addupdate(ref, ..., grad.astype(ref.dtype))
      return jax.freeze(ref)

    value, pull, one = jax.vjp(loss, params, has_aux=True)
    takers = jax.tree.map_with_path(taker, refs, params)
    (grads,) = pull.with_refs(takers)(jnp.ones_like(value))
    return jax.tree.map(ended, refs, takers, grads), _sum(figures, one)

  start = jax.tree.map(_zeros, params)
  start = start, _no_figures(figures_of, params, parts, key)
  return _over_micro_batches(add, start, parts, key)


def _zeros(array):
  return jnp.zeros(array.shape, jnp.promote_types(array.dtype, jnp.float32))


def _sum(total, one):
  return jax.tree.map(lambda x, y: x + y.astype(x.dtype), total, one)


def _no_figures(figures_of, params, parts, key):
  micro = micro_batch(parts[0], 0)
  return jax.tree.map(_zeros, jax.eval_shape(figures_of, key, params, micro))


def _over_micro_batches(add, total, parts, key):
  """`add(total, key, micro)`, a tree, of one micro-batch after the other.

  The number of micro-batches in use is known at run time alone: nothing is
  computed for the others, and a run compiles once.
  """
  for n, part in enumerate(parts):

    def one(a, total, n=n, part=part):
      micro_key = jax.random.fold_in(jax.random.fold_in(key, n), a)
      return add(total, micro_key, micro_batch(part, a))

    with jax.named_scope(scope(part[0])):
      total = jax.lax.fori_loop(0, micro_batches(part[0]), one, total)
  return total


def compile_step(
  objective, transformation, state_shardings, rows_sharding, moves=None
):
  """The jitted train step: only the state is donated."""
  step = functools.partial(
    train_step, objective=objective, transformation=transformation, moves=moves
  )
  views = (rows_sharding,) * objective.views
  return jax.jit(
    step,
    donate_argnums=(0,),
    in_shardings=(state_shardings, None, None, views, None),
    out_shardings=(state_shardings, None),
  )
