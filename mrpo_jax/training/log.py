# SPDX-License-Identifier: Apache-2.0
"""The training log: metrics.jsonl, TensorBoard events, progress bar."""

import logging
import math
import os
import pathlib
import time

import jax

from mrpo_jax import files, processes
from mrpo_jax.errors import StoppedRun

logger = logging.getLogger(__name__)

TOKENS = ("tokens/real", "tokens/slots")


class Metrics:
  """One JSON object a line, written at once, and TensorBoard beside it."""

  def __init__(self, workdir, *, step):
    """Keeps the lines up to `step`: later ones will be computed again."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    kept = [line for line in files.read_lines(path) if line["step"] <= step]
    if kept:
      files.write_lines(path, kept)
    elif path.exists():
      path.unlink()
    self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
    self._events = _events(workdir)

  def write(self, step, values):
    line = files.as_json({"step": step, **values}, self._file.name)
    self._file.write(line + "\n")
    self._file.flush()
    if self._events is not None:
      for tag, value in values.items():
        self._events.add_scalar(tag, value, step)

  def sync(self):
    """Waits until what is written survives the machine too."""
    os.fsync(self._file.fileno())

  def close(self):
    self._file.close()
    if self._events is not None:
      self._events.close()


def _events(workdir):
  try:
    from tensorboard.summary import Writer
  except ImportError:
    logger.info("no TensorBoard events: pip install mrpo-jax[tensorboard]")
    return None
  return Writer(str(workdir))


class Log:
  """What is told of a run's steps, each when the next one is on its way.

  The line of a step waits for an evaluation at the same step to join it.  A
  context: leaving it closes the files.
  """

  def __init__(self, workdir, *, start, due, constants, rate, watch):
    """Opens the files, on the first process, and the progress bar.

    Args:
      workdir: folder of the run.
      start: steps done; lines of later ones will be computed again.
      due: loop.Due.
      constants: dict of figures that stand in every line.
      rate: learning rate of a step.
      watch: called as watch(step, metrics), in order, before the line.
    """
    self._due, self._constants = due, constants
    self._rate, self._watch = rate, watch
    self._metrics = None
    if processes.is_first():
      self._metrics = Metrics(workdir, step=start)
    self._bar = processes.bar(total=due.steps, initial=start)
    self._pending = None  # (step, metrics, waited) of a step not yet read
    self._line = None  # (step, values) of a line not yet written
    self._waited = self._clock = 0.0

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._bar.close()
    if self._metrics is not None:
      self._metrics.close()

  def timed(self, batches):
    """The same batches, with the time that the devices wait for each."""
    batches = iter(batches)
    while True:
      begun = time.perf_counter()
      if self._pending is None:  # at the start, and after a pause
        self._clock = begun
      batch = next(batches)
      busy = self._pending is not None and not _is_done(self._pending[1])
      self._waited = 0.0 if busy else time.perf_counter() - begun
      yield batch

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

  def write(self):
    """Writes the line that waits; no line of a saved step may be lost."""
    self._write_line()
    if self._metrics is not None:
      self._metrics.sync()

  def _record(self, step, metrics, seconds, waited):
    tokens = {name: int(metrics.pop(name)) for name in TOKENS}
    self._watch(step, metrics)
    self._bar.update()
    self._bar.set_postfix(loss=f"{metrics['loss']:.4f}")
    if self._due.logs(step):
      self._line = (
        step,
        {
          **metrics,
          "learning_rate": self._rate(step),
          **tokens,
          **self._constants,
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
    steps = self._due.steps
    if self._bar.disable and (step == 1 or step % max(1, steps // 5) == 0):
      logger.info(f"step {step}/{steps}  loss {values['loss']:.4f}")


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
