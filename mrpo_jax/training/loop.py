# SPDX-License-Identifier: Apache-2.0
"""The training loop: steps, and reading their metrics one step late."""

import math
import time

import jax

from mrpo_jax.errors import StoppedRun


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
