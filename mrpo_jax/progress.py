# SPDX-License-Identifier: Apache-2.0
"""Progress of long work: a bar on a terminal, else a line now and then."""

import contextlib
import logging
import os
import time

import tqdm

from mrpo_jax import files, processes
from mrpo_jax.external import Withdrawn

logger = logging.getLogger(__name__)

SECONDS = 10.0  # at least, between two lines where no terminal is


class Progress:
  """How far long work has come, how fast it is, and how long it will take.

  On a terminal a bar, in its place; elsewhere lines of the log, at least
  SECONDS apart.  Of several processes the first one shows it.  A context:
  leaving it gives the line of the bar back.
  """

  def __init__(self, title, total, unit="", *, done=0, clock=time.monotonic):
    """Starts the clock.

    Args:
      title: a word or two about the work.
      total: how much there is of it.
      unit: of that, in a word.
      done: how much of that was done before; no speed follows from it.
      clock: seconds.
    """
    self._title, self._total, self._unit = title, total, unit
    self._done, self._before, self._clock = done, done, clock
    self._start = self._said = clock()
    self._bar = tqdm.tqdm(
      total=total,
      initial=done,
      bar_format="{desc} |{bar:20}|",
      dynamic_ncols=True,
      leave=None,  # a bar within another goes
      disable=None if processes.is_first() else True,
    )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._bar.close()

  def update(self, done=1, figures=(), *, now=False):
    """Counts what was done, and shows it where it is time.

    Args:
      done: how much more.
      figures: texts that stand beside it.
      now: say it in any case?
    """
    self._done += done
    count = f"{self._title} {self._done}/{self._total} {self._unit}".rstrip()
    text = "  ".join([count, *figures])
    if self._done < self._total:
      text += f"  {tqdm.tqdm.format_interval(self._left())} left"
    if not self._bar.disable:
      self._bar.set_description_str(text, refresh=False)
      self._bar.update(done)
    elif now or self._clock() - self._said >= SECONDS:
      self._said = self._clock()
      logger.info(text)

  def restart(self, done):
    """Counts `done` more, and starts the clock: no speed follows from it."""
    self._done += done
    self._before, self._start = self._done, self._clock()
    self._bar.update(done)

  def per_second(self, amount):
    """`amount`, of all that was done since the clock started, a second."""
    return amount / max(self._clock() - self._start, 1e-9)

  def _left(self):
    done = max(self._done - self._before, 1)
    return (self._clock() - self._start) / done * (self._total - self._done)


@contextlib.contextmanager
def stage(what):
  """Says what begins, a compilation say, and how many seconds it took."""
  logger.info(what)
  started = time.perf_counter()
  yield
  logger.info(f"{what} took {time.perf_counter() - started:.1f} s")


def appended(path, answers, requests, line_of, *, title, unit, done=0):
  """Yields (request, answer) when the answer's line stands in a file.

  Args:
    path: of the file; lines are added to its end.
    answers: what an `external.Command` yields, or another generator.
    requests: what it answers, a list.
    line_of: (request, answer) -> the object of the line.
    title, unit, done: of the progress that is shown.

  Raises:
    InputError: the answers fail; those before stay.
    Withdrawn: they do not count, and the file is as it was before.
  """
  total = done + len(requests)
  with (
    open(path, "ab") as file,
    Progress(title, total, unit, done=done) as progress,
    contextlib.closing(answers),
  ):
    start, asked = file.tell(), 0
    try:
      # The answers first: their end is looked at, too.
      for answer, request in zip(answers, requests, strict=True):
        text = files.as_json(line_of(request, answer), path)
        file.write(f"{text}\n".encode())
        file.flush()
        yield request, answer
        asked += 1
        progress.update(1, (f"{progress.per_second(asked):.1f} a second",))
    except Withdrawn:
      file.truncate(start)
      raise
    finally:
      os.fsync(file.fileno())
