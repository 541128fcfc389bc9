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
  look_every: tuple[int, ...] = ()  # of several looks at the policy
  round: int = 0  # steps of a round, whose data follow from the state; 0: none

  def logs(self, step):
    """Is there a line of this step?"""
    return step == 1 or self.pauses(step) or self._at(step, self.log_every)

  def evaluates(self, step):
    return self.eval_every is not None and self._at(step, self.eval_every)

  def looks(self, step):
    """Which of the looks are due, by their places; all of them at step 0."""
    return [
      place
      for place, every in enumerate(self.look_every)
      if step == 0 or self._at(step, every)
    ]

  def pauses(self, step):
    """Is the state needed after this step, to evaluate or to save it?"""
    needed = self.evaluates(step) or bool(self.looks(step))
    return needed or self._at(step, self.checkpoint_every)

  def ends_round(self, step):
    """Do the next step's data follow from the state after this one?"""
    return bool(self.round) and step % self.round == 0

  def _at(self, step, every):
    return step == self.steps or bool(every) and step % every == 0


def train(run_step, state, next_batch, log, *, due, evaluate, look, save, stop):
  """Trains to the last step, or to the first after which it is asked to stop.

  A step's metrics are read while the next step computes.

  Args:
    run_step: (state, batch) -> (state, metrics), dispatched at once.
    state: after the steps already done.
    next_batch: state -> (state, step, batch) of the next step; the batch on the
      devices.
    log: log.Log.
    due: Due.
    evaluate: state -> (state, figures of held-out data).
    look: (step, state) -> what stands in the line of that step of the looks
      that are due.
    save: called as save(step, state, figures) when all lines up to that step
      are written; figures is None where nothing was evaluated.
    stop: stop(step) is True when the run shall end after that step.

  Returns:
    (step, state) at the end.

  Raises:
    StoppedRun: at the first loss or gradient that is not finite.
  """
  while True:
    state, step, batch = log.timed(next_batch, state)
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
      if due.looks(step):
        log.join(look(step, state))
      log.write()
      save(step, state, figures)
    elif due.ends_round(step):
      log.flush()  # what comes before the next step is no part of this one
    if last:
      return step, state
