# SPDX-License-Identifier: Apache-2.0
"""The training log: metrics.jsonl, trackers, progress bar."""

import itertools
import logging
import math
import os
import time

import jax

from mrpo_jax import files, processes
from mrpo_jax.buckets import Staged
from mrpo_jax.errors import StoppedRun
from mrpo_jax.progress import Progress
from mrpo_jax.training.trackers.samples import SAMPLES, are_samples

logger = logging.getLogger(__name__)

FILE = "metrics.jsonl"
GAPS = 5  # that are named
TOKENS = ("tokens/real", "tokens/slots")
CONSOLE = (  # title, figure, how it is written
  ("loss", "loss", ".4f"),
  ("accuracy", "rewards/accuracies", ".3f"),
  ("margin", "rewards/margins", "+.4f"),
)


def metrics_until(workdir, step):
  """The lines of metrics.jsonl up to a step: finite numbers, and samples.

  What is nothing of that kind is left out and said.
  """
  path = files.path_of(workdir) / FILE
  lines, strange = files.readable_lines(path)
  kept, left_out = [], 0
  for line in lines:
    good = {name: x for name, x in line.items() if _may_stand(name, x)}
    if not isinstance(good.get("step"), int):
      strange += 1
    elif line["step"] <= step:
      kept.append(good)
      left_out += len(line) - len(good)
  if strange:
    logger.warning(f"{path}: {strange} lines are no metrics and are left out")
  if left_out:
    logger.warning(
      f"{path}: {left_out} figures are no finite numbers and are left out"
    )
  return kept


def _may_stand(name, value):
  return are_samples(value) if name == SAMPLES else files.is_figure(value)


def _say_gaps(path, kept, wanted):
  """Warns of steps that had a line and have none now."""
  have = {line["step"] for line in kept}
  gaps = []  # of (first, last), neighbours among the lines
  for is_there, steps in itertools.groupby(wanted, have.__contains__):
    if not is_there:
      first, *_, last = [*steps] * 2
      gaps.append(f"{first} to {last}" if last > first else f"{first}")
  if gaps:
    more = f" and {len(gaps) - GAPS} more gaps" if len(gaps) > GAPS else ""
    logger.warning(
      f"{path} has lost the lines of the steps {', '.join(gaps[:GAPS])}{more}"
    )


class Metrics:
  """One JSON object a line, written at once, and told to trackers.

  A context: leaving it closes the file and the trackers.
  """

  def __init__(self, workdir, *, step, logged=lambda step: False, trackers=()):
    """Keeps the lines up to `step`: later ones will be computed again.

    Args:
      workdir: folder of the run.
      step: how many are done.
      logged: logged(step): was there a line of it?  What is gone is said.
      trackers: are told each new line, and closed in the end.
    """
    self._staged = Staged(workdir)
    path = self._staged.folder / FILE
    kept = metrics_until(workdir, step) if step else []
    _say_gaps(path, kept, [one for one in range(1, step + 1) if logged(one)])
    if kept:
      files.write_lines(path, kept)
    elif path.exists():
      path.unlink()
    self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
    self._trackers = trackers

  def write(self, step, values):
    line = files.as_json({"step": step, **values}, self._file.name)
    self._file.write(line + "\n")
    self._file.flush()
    for tracker in self._trackers:
      tracker.write(step, values)

  def sync(self):
    """Waits until what is written survives the machine too."""
    os.fsync(self._file.fileno())
    self._staged.sync()
    for tracker in self._trackers:
      tracker.sync()

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    failed = True
    try:
      self._file.close()
      self._staged.close()
      failed = kind is not None
    finally:
      for tracker in self._trackers:
        tracker.close(failed=failed)


class Log:
  """What is told of a run's steps, each when the next one is on its way.

  The line of a step waits for an evaluation at the same step to join it.  A
  context: leaving it closes the files.
  """

  def __init__(
    self,
    workdir,
    *,
    start,
    due,
    constants,
    rate,
    watch,
    logged=None,
    unit="pairs",
    trackers=(),
    counts=None,
  ):
    """Opens the files, on the first process, and starts the progress.

    Args:
      workdir: folder of the run.
      start: steps done; lines of later ones will be computed again.
      due: loop.Due.
      constants: dict of figures that stand in every line.
      rate: learning rate of a step.
      watch: called as watch(step, metrics), in order, before the line.
      logged: of a run that goes on: logged(step), was there a line of it?
        None: as `due` says.
      unit: of the constants, how many examples a step takes.
      trackers: of the first process; see `Metrics`.
      counts: step -> figures that stand in its line; None: there are none.
    """
    self._counts = counts or (lambda step: {})
    self._due, self._constants, self._unit = due, constants, unit
    self._rate, self._watch = rate, watch
    self._metrics = None
    if processes.is_first():
      logged = logged or due.logs
      self._metrics = Metrics(
        workdir, step=start, logged=logged, trackers=trackers
      )
    self._progress = Progress("step", due.steps, done=start)
    self._first, self._steps, self._busy = start + 1, 0, 0.0
    self._pending = None  # (step, metrics, waited) of a step not yet read
    self._line = None  # (step, values) of a line not yet written
    self._waited = self._clock = 0.0

  def __enter__(self):
    return self

  def __exit__(self, *raised):
    self._progress.__exit__()
    if self._metrics is not None:
      self._metrics.__exit__(*raised)

  def timed(self, next_batch, state):
    """What next_batch(state) gives, with the time that the devices wait."""
    begun = time.perf_counter()
    if self._pending is None:  # at the start, and after a pause
      self._clock = begun
    found = next_batch(state)
    busy = self._pending is not None and not _is_done(self._pending[1])
    self._waited = 0.0 if busy else time.perf_counter() - begun
    return found

  def take(self, step, metrics):
    """A step that was dispatched; reads the one before."""
    self.flush()
    self._pending = step, metrics, self._waited

  def flush(self):
    """Waits for the step that was taken last; refuses what is not finite."""
    if self._pending is None:
      return
    step, metrics, waited = self._pending
    metrics = finite(step, jax.device_get(metrics))
    now = time.perf_counter()
    self._record(step, metrics, now - self._clock, waited)
    self._pending, self._clock = None, now

  def join(self, figures):
    """Adds the figures of an evaluation to the line of its step."""
    if self._line is not None:
      self._line[1].update(figures)

  def begin(self, values):
    """The line of step 0: of the policy before its first step."""
    self._line = 0, values
    self.write()
    self._progress.restart(0)  # what came before says nothing of a step

  def write(self):
    """Writes the line that waits; no line of a saved step may be lost."""
    self._write_line()
    if self._metrics is not None:
      self._metrics.sync()

  def _record(self, step, metrics, seconds, waited):
    tokens = {
      name: int(metrics.pop(name)) for name in TOKENS if name in metrics
    }
    self._watch(step, metrics)
    self._steps, self._busy = self._steps + 1, self._busy + seconds
    now = step in (self._first, self._due.steps)
    self._progress.update(figures=self._figures(metrics), now=now)
    if self._due.logs(step):
      self._line = (
        step,
        {
          **metrics,
          "learning_rate": self._rate(step),
          **tokens,
          **self._constants,
          **self._counts(step),
          "seconds": round(seconds, 4),
          "seconds/input": round(waited, 4),
        },
      )
    if not self._due.pauses(step):
      self._write_line()

  def _write_line(self):
    if self._line is None:
      return
    (step, values), self._line = self._line, None
    if self._metrics is not None:
      self._metrics.write(step, values)

  def _figures(self, metrics):
    """Of a step, as texts; examples/s over the steps of this process."""
    texts = [
      f"{title} {metrics[name]:{form}}"
      for title, name, form in CONSOLE
      if name in metrics
    ]
    done = self._constants[self._unit] * self._steps
    return [*texts, f"{done / max(self._busy, 1e-9):.1f} {self._unit}/s"]


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
