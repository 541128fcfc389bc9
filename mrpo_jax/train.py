# SPDX-License-Identifier: Apache-2.0
"""The training step, one XLA program, and the loop around it."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from mrpo_jax import losses, train_state
from mrpo_jax.errors import StoppedRun
from mrpo_jax.models import rows as packed
from mrpo_jax.models.spec import ModelConfig


@dataclasses.dataclass(frozen=True)
class Model:
  """A model as the step sees it; its parameters are arguments."""

  config: ModelConfig
  view: int = 0  # which tokenizer's rows it reads
  forward: tuple[tuple[str, object], ...] = ()  # kernel, remat, dtype

  def logps(self, params, views, pairs):
    """logp_BC of the pairs of a step."""
    return sum(
      packed.all_response_logps(
        self.config, params, rows, pairs, **dict(self.forward)
      )
      for rows in views[self.view]
    )


@dataclasses.dataclass(frozen=True)
class Objective:
  """What is trained against what: everything static of a step."""

  pairs: int  # B
  policy: Model
  references: tuple[Model, ...]  # K of them; 0 is the base
  names: tuple[str, ...]
  method: Callable  # losses.build(...)


def response_lengths(objective, views):
  """length_BC in the policy's tokens; 0 where a batch holds fewer pairs."""
  parts = views[objective.policy.view]
  return sum(packed.response_lengths(rows, objective.pairs) for rows in parts)


def reference_logps(objective, references, views):
  """ref_logp_BCK of the frozen references; None where there are none."""
  if not references:
    return None
  logps = [
    model.logps(params, views, objective.pairs)
    for model, params in zip(objective.references, references, strict=True)
  ]
  return jax.lax.stop_gradient(jnp.stack(logps, axis=-1))


def train_step(state, references, views, *, objective, transformation):
  """One optimizer step on exactly B pairs.

  The loss is the mean over the pairs of the step, however they are packed;
  micro-batches accumulate its gradient in float32.

  Args:
    state: TrainState, donated by the caller's jit.
    references: tuple of K frozen parameter trees.
    views: per tokenizer the tuple of Rows [A, R, T] of `pack.pack_step`.
    objective: Objective, static.
    transformation: optax transformation, static.

  Returns:
    (state, metrics): metrics are float32 scalars.
  """
  parts = views[objective.policy.view]
  length_BC = response_lengths(objective, views)
  valid_B = length_BC[:, 0] > 0
  count = jnp.maximum(jnp.sum(valid_B), 1).astype(jnp.float32)
  ref_logp_BCK = reference_logps(objective, references, views)

  def mean_loss(params, micro):
    logp_BC = packed.response_logps(
      objective.policy.config,
      params,
      micro,
      objective.pairs,
      **dict(objective.policy.forward),
    )
    loss_B = objective.method(logp_BC, ref_logp_BCK, length_BC=length_BC)
    # Pairs that stand elsewhere have constant log-probabilities here: they
    # shift this value, which nobody reads, and add nothing to its gradient.
    return jnp.sum(loss_B) / count, logp_BC

  gradient, logp_BC = accumulated_gradient(
    mean_loss, state.params, parts, objective.pairs
  )
  updates, opt_state = transformation.update(
    gradient, state.opt_state, state.params
  )
  params = optax.apply_updates(state.params, updates)
  values = pair_metrics(objective, logp_BC, ref_logp_BCK, length_BC)
  metrics = {
    name: jnp.sum(jnp.where(valid_B, value_B, 0.0)) / count
    for name, value_B in values.items()
  }
  metrics["grad_norm"] = optax.tree.norm(gradient)
  return train_state.TrainState(state.step + 1, params, opt_state), metrics


def accumulated_gradient(loss_of, params, parts, pairs):
  """(gradient, logp_BC) summed over all micro-batches, in float32.

  `loss_of(params, micro)` gives a scalar whose gradient is the share of one
  micro-batch, and the logp_BC of the responses that stand in it.
  """

  def accumulate(rows, a, carry):
    gradient, logp_BC = carry
    micro = packed.micro_batch(rows, a)
    one, more_BC = jax.grad(loss_of, has_aux=True)(params, micro)
    add = functools.partial(jax.tree.map, lambda x, y: x + y.astype(x.dtype))
    return add(gradient, one), logp_BC + more_BC

  wide = jax.tree.map(
    lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)),
    params,
  )
  carry = (wide, jnp.zeros((pairs, 2), jnp.float32))
  for rows in parts:
    step = functools.partial(accumulate, rows)
    carry = jax.lax.fori_loop(0, packed.micro_batches(rows), step, carry)
  return carry


def pair_metrics(objective, policy_logp_BC, ref_logp_BCK, length_BC):
  """dict of value_B: the loss, and rewards against each kind of reference.

  Plain names are against reference 0, `virtual/` against what stands for all
  K, `policy/` against none, `policy_mean/` against none per token.
  """
  method = objective.method
  loss_B = method(policy_logp_BC, ref_logp_BCK, length_BC=length_BC)
  values = {"loss": loss_B}
  if ref_logp_BCK is None:
    return values | {"logps/chosen": policy_logp_BC[:, 0]}
  against = functools.partial(losses.preference_metrics, beta=method.beta)
  zero_BC = jnp.zeros_like(policy_logp_BC)
  virtual_BC = method.virtual(ref_logp_BCK)
  mean_logp_BC = policy_logp_BC / jnp.maximum(length_BC, 1.0)
  values |= against(policy_logp_BC, ref_logp_BCK[..., 0])
  values |= _rewards("virtual", against(policy_logp_BC, virtual_BC))
  values |= _rewards("policy", against(policy_logp_BC, zero_BC))
  values |= _rewards("policy_mean", against(mean_logp_BC, zero_BC))
  figures = losses.reference_metrics(
    ref_logp_BCK,
    method.weigh(ref_logp_BCK),
    p=0 if method.p is None else method.p,
    epsilon_max=method.epsilon_max,
  )
  values["effective_references"] = figures.pop("effective_references")
  for k, name in enumerate(objective.names):
    for figure, value_BK in figures.items():
      values[f"references/{name}/{figure}"] = value_BK[:, k]
  return values


def _rewards(prefix, values):
  return {
    f"{prefix}/{name}": value_B
    for name, value_B in values.items()
    if name.startswith("rewards/")
  }


def compile_step(objective, transformation, state_shardings, rows_sharding):
  """The jitted train step: state donated, references a frozen argument."""
  step = functools.partial(
    train_step, objective=objective, transformation=transformation
  )
  views = 1 + max(
    [objective.policy.view, *(model.view for model in objective.references)]
  )
  return jax.jit(
    step,
    donate_argnums=(0,),
    in_shardings=(state_shardings, None, (rows_sharding,) * views),
    out_shardings=(state_shardings, None),
  )


def finite(step, metrics):
  """The metrics as floats; raises StoppedRun at the first that is not."""
  values = {name: float(value) for name, value in metrics.items()}
  for name in ("loss", "grad_norm", *sorted(values)):
    if name in values and not math.isfinite(values[name]):
      raise StoppedRun(f"{name} is {values[name]} at step {step}")
  return values


def fit(state, step_function, batches, *, steps, record, boundary, stop):
  """Runs to `steps`, reading a step's metrics while the next one computes.

  Args:
    state: TrainState after the steps already done.
    step_function: (state, views) -> (state, metrics), dispatched at once.
    batches: iterator over (step, views), from the next step on.
    steps: last step.
    record: called as record(step, metrics, seconds), in order.
    boundary: boundary(step) is True where the caller needs the state between
      two steps, to evaluate or to save it.
    stop: stop() is True when the run shall end after the current step.

  Yields:
    (step, state) at every boundary, all metrics up to it recorded.

  Raises:
    StoppedRun: at the first loss or gradient that is not finite.
  """
  pending, clock = None, time.perf_counter()

  def read():
    nonlocal pending, clock
    if pending is not None:
      step, metrics = pending
      metrics = finite(step, jax.device_get(metrics))
      now = time.perf_counter()
      record(step, metrics, now - clock)
      pending, clock = None, now

  for step, views in batches:
    state, metrics = step_function(state, views)
    read()
    pending = step, metrics
    last = step == steps or stop()
    if last or boundary(step):
      read()
      yield step, state
      clock = time.perf_counter()
    if last:
      return
