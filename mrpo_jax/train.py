# SPDX-License-Identifier: Apache-2.0
"""The training step, one XLA program, and the loop around it."""

import dataclasses
import functools
import math
import time

import jax
import jax.numpy as jnp
import optax

from mrpo_jax import losses
from mrpo_jax.data import pack
from mrpo_jax.errors import StoppedRun
from mrpo_jax.models import leaves
from mrpo_jax.models import rows as packed
from mrpo_jax.objective import (
  Objective,
  losses_of,
  method_arguments,
  pair_metrics,
  policy_figures,
  policy_parts,
  reference_figures,
  summary,
)

# Of what a step computes: with another one, a run that goes on gives other
# numbers than one that was never stopped.
VERSION = 2
DROPOUT = 1  # tells its draws from the method's, which use the key itself


@dataclasses.dataclass(frozen=True)
class Moves:
  """How reference 0 follows the policy; 0 steps mean that it does not."""

  every: int = 0  # TR-DPO: steps between updates
  rate: float = 1.0  # how far it moves then; 1: the policy itself
  round: int = 0  # APO: steps of a round
  alpha: float = 0.0  # how far the next round starts beyond the outcome

  @property
  def names(self):
    """What of `TrainState.moving` it needs."""
    if self.round:
      return ("reference", "previous")
    return ("reference",) if self.every else ()

  def __call__(self, state, transformation):
    """The state from which the next step starts.

    Source: TR-DPO, arXiv:2404.09656; APO, arXiv:2410.06293, equation 3.7: the
    next round's policy and reference are the extrapolated outcome, and its
    optimizer starts anew.
    """
    is_first = state.step == 0

    def updated(state):
      reference = losses.ema(
        state.moving["reference"], state.params, rate=self.rate
      )
      return state.replace(moving={**state.moving, "reference": reference})

    def next_round(state):
      params = losses.accelerate(
        state.params, state.moving["previous"], alpha=self.alpha
      )
      return state.replace(
        params=params,
        opt_state=transformation.init(params),
        moving={"reference": params, "previous": state.params},
      )

    for steps, moved in ((self.every, updated), (self.round, next_round)):
      if steps:
        is_due = ~is_first & (state.step % steps == 0)
        state = jax.lax.cond(is_due, moved, lambda state: state, state)
    return state


def moved_references(state, base, references):
  """References with the one that moves in its present place."""
  if "reference" not in state.moving:
    return references
  first = leaves.join(base, state.moving["reference"])
  return (first, *references[1:])


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
    base: the policy's frozen weights, see `leaves.split`; None where all of
      them are trained.  Not donated: references may share its arrays.
    references: tuple of K frozen parameter trees; None for one that was
      scored before, and for one that moves, which stands in the state.
    views: per tokenizer the tuple of Rows [A, R, T] of `pack.pack_step`.
    given: what is known of the pairs beforehand; see `reference_figures`.
    objective: Objective, static.
    transformation: optax transformation, static.
    moves: Moves of reference 0, static; None where it stays.

  Returns:
    (state, metrics): metrics are scalars, those of tokens integers.
  """
  if moves is not None:
    state = moves(state, transformation)
  references = moved_references(state, base, references)
  frozen = reference_figures(objective, references, views, given)
  valid_B = frozen["valid_B"]
  count = jnp.maximum(jnp.sum(valid_B), 1).astype(jnp.float32)
  key = jax.random.fold_in(jax.random.key(state.seed), state.step)

  def figures_of(key, trained, micro):
    params = leaves.join(base, trained, jax.random.fold_in(key, DROPOUT))
    return policy_figures(objective, references, key, params, micro)

  parts = policy_parts(objective, views, frozen)

  def mean(value_B):
    return jnp.sum(jnp.where(valid_B, value_B, 0.0)) / count

  def mean_loss(figures):
    # Pairs that stand in other micro-batches have constant figures here: they
    # shift this value, which nobody reads, and add nothing to its gradient.
    return mean(losses_of(objective, state.method_state, figures, frozen))

  share = mean_loss
  if objective.method.coupled:
    with jax.named_scope("coupled"):
      pull = jax.grad(mean_loss)(
        summed_figures(figures_of, state.params, parts, key)
      )

    def share(figures):
      products = jax.tree.map(jnp.vdot, pull, figures)
      return sum(jax.tree.leaves(products))

  gradient, figures = accumulated_gradient(
    share, figures_of, state.params, parts, key
  )
  updates, opt_state = transformation.update(
    gradient, state.opt_state, state.params
  )
  params = optax.apply_updates(state.params, updates)
  values = pair_metrics(objective, state.method_state, figures, frozen)
  metrics = summary(values, mean)
  metrics["grad_norm"] = optax.tree.norm(gradient)
  metrics["tokens/real"], metrics["tokens/slots"] = pack.token_counts(
    views[objective.policy.view]
  )
  policy_BC, ref_BCK, more = method_arguments(figures, frozen)
  method_state = objective.method.update(
    state.method_state, policy_BC, ref_BCK, **more
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
      figures = figures_of(key, leaves.summed(params, refs), micro)
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
  micro = packed.micro_batch(parts[0], 0)
  return jax.tree.map(_zeros, jax.eval_shape(figures_of, key, params, micro))


def _over_micro_batches(add, total, parts, key):
  """`add(total, key, micro)`, a tree, of one micro-batch after the other.

  The number of micro-batches in use is known at run time alone: nothing is
  computed for the others, and a run compiles once.
  """
  for n, part in enumerate(parts):

    def one(a, total, n=n, part=part):
      micro_key = jax.random.fold_in(jax.random.fold_in(key, n), a)
      return add(total, micro_key, packed.micro_batch(part, a))

    with jax.named_scope(packed.scope(part[0])):
      total = jax.lax.fori_loop(0, packed.micro_batches(part[0]), one, total)
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


def finite(step, metrics):
  """The metrics as floats; raises StoppedRun at the first that is not."""
  values = {name: float(value) for name, value in metrics.items()}
  for name in ("loss", "grad_norm", *sorted(values)):
    if name in values and not math.isfinite(values[name]):
      raise StoppedRun(f"{name} is {values[name]} at step {step}")
  return values


def _is_done(metrics):
  """Are they computed?  Asked without waiting."""
  arrays = jax.tree.leaves(metrics)
  return all(a.is_ready() for a in arrays if isinstance(a, jax.Array))


def fit(state, step_function, batches, *, steps, record, boundary, visit, stop):
  """Runs to `steps`, reading a step's metrics while the next one computes.

  Args:
    state: TrainState after the steps already done.
    step_function: (state, batch) -> (state, metrics), dispatched at once.
    batches: iterator over (step, batch), from the next step on, endless; the
      batch on the devices.
    steps: last step.
    record: called as record(step, metrics, seconds, waited), in order; waited
      is how long the devices had nothing to do for want of data, at most.
    boundary: boundary(step) is True where the caller needs the state between
      two steps, to evaluate or to save it.
    visit: (step, state) -> state, called at every boundary and at the end,
      when all metrics up to it are recorded.
    stop: stop(step) is True when the run shall end after that step.

  Returns:
    (step, state) at the end.

  Raises:
    StoppedRun: at the first loss or gradient that is not finite.
  """
  pending, clock = None, time.perf_counter()
  batches = iter(batches)

  def following():
    """(step, batch, seconds waited) of the next step."""
    begun = time.perf_counter()
    step, batch = next(batches)
    busy = pending is not None and not _is_done(pending[1])
    return step, batch, 0.0 if busy else time.perf_counter() - begun

  def read():
    nonlocal pending, clock
    if pending is not None:
      step, metrics, waited = pending
      metrics = finite(step, jax.device_get(metrics))
      now = time.perf_counter()
      record(step, metrics, now - clock, waited)
      pending, clock = None, now

  while True:
    step, batch, waited = following()
    # The batch is on the devices: a step that reaches for the host is a fault.
    with jax.transfer_guard("disallow"):
      state, metrics = step_function(state, batch)
    read()
    pending = step, metrics, waited
    last = step == steps or stop(step)
    if last or boundary(step):
      read()
      state = visit(step, state)
      clock = time.perf_counter()
    if last:
      return step, state
