# SPDX-License-Identifier: Apache-2.0
"""The training loop, and at which of its steps it logs, evaluates and saves."""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Due:
  """At which steps something happens; a period of 0: at the last alone."""

  steps: int  # of the run
  log_every: int = 1
  eval_every: int | None = None  # None: nothing is held out
  checkpoint_every: int = 0

  def logs(self, step):
    """Is there a line of this step?"""
    return step == 1 or self.pauses(step) or self._at(step, self.log_every)

  def evaluates(self, step):
    return self.eval_every is not None and self._at(step, self.eval_every)

  def pauses(self, step):
    """Is the state needed after this step, to evaluate or to save it?"""
    return self.evaluates(step) or self._at(step, self.checkpoint_every)

  def _at(self, step, every):
    return step == self.steps or bool(every) and step % every == 0


def train(run_step, state, batches, log, *, due, evaluate, save, stop):
  """Trains to the last step, or to the first after which it is asked to stop.

  A step's metrics are read while the next step computes.

  Args:
    run_step: (state, batch) -> (state, metrics), dispatched at once.
    state: after the steps already done.
    batches: iterator over (step, batch), from the next step on, endless; the
      batch on the devices.
    log: log.Log.
    due: Due.
    evaluate: state -> (state, figures of held-out data).
    save: called as save(step, state, figures) when all lines up to that step
      are written; figures is None where nothing was evaluated.
    stop: stop(step) is True when the run shall end after that step.

  Returns:
    (step, state) at the end.

  Raises:
    StoppedRun: at the first loss or gradient that is not finite.
  """
  for step, batch in log.timed(batches):
    # The batch is on the devices: a step that reaches for the host is a fault.
    with jax.transfer_guard("disallow"):
      state, metrics = run_step(state, batch)
    log.take(step, metrics)  # and reads the step before
    last = step == due.steps or stop(step)
    if last or due.pauses(step):
      log.flush()
      figures = None
      if due.evaluates(step):
        state, figures = evaluate(state)
        log.join(figures)
      log.write()
      save(step, state, figures)
    if last:
      return step, state
