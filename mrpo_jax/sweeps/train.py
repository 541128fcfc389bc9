# SPDX-License-Identifier: Apache-2.0
"""Training of a sweep: a process for each run, one after the other."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time

from mrpo_jax import files
from mrpo_jax.errors import InputError, StoppedRun
from mrpo_jax.progress import Progress
from mrpo_jax.reports.report import report
from mrpo_jax.runs import owner
from mrpo_jax.text import counted

logger = logging.getLogger(__name__)

POLL = 1.0  # seconds between looks at runs that other processes have
AGAIN = 30.0  # seconds until a run is tried again that was another process's
LAST = 2**20  # bytes of a log in which its error is looked for
CHILD = "mrpo_jax.sweeps.child"


def train(sweep):
  """Trains all runs of the sweep that are not done, then prints the report.

  A run that fails is said, and the others go on.  One that another process has
  is left to it, and waited for at the end.

  Raises:
    StoppedRun: runs have failed; the report is written all the same.
    KeyboardInterrupt: Ctrl-C; the run under way has saved.
  """
  sweep.claim()
  left = [run for run in sweep.runs if not sweep.is_done(run)]
  done = len(sweep.runs) - len(left)
  if done:
    logger.info(f"{done} of {counted(len(sweep.runs), 'run')} done before")
  child, failed = Child(), {}
  with (
    child.signals(),
    Progress("sweep", len(sweep.runs), "runs", done=done) as progress,
  ):
    for run, seconds, problem in _ended(sweep, left, child):
      if problem:
        failed[run.name] = problem
        logger.warning(f"{run.name} failed: {problem}")
      how = "failed" if problem else "done"
      figures = [run.name, f"{how} in {seconds:.0f} s"]
      progress.update(figures=figures, now=True)
  if child.stopped:
    logger.info("the sweep is stopped; the same command goes on")
    if child.interrupted:
      raise KeyboardInterrupt
    return
  _report(sweep.workdir)
  if failed:
    what = "; ".join(f"{name} ({why})" for name, why in failed.items())
    raise StoppedRun(
      f"{len(failed)} of {counted(len(sweep.runs), 'run')} failed: {what}; the "
      "same command tries them again"
    )


def _ended(sweep, runs, child):
  """(run, seconds, what went wrong or "") of each run when it has ended."""
  left, not_before, said = [*runs], {}, set()
  while left and not child.stopped:
    run = next((one for one in left if _is_free(sweep, one, not_before)), None)
    if run is None:
      for one in left:
        if one.name not in said:
          logger.info(f"waiting for {one.name}, which another process has")
        said.add(one.name)
      time.sleep(POLL)
      continue
    started, problem = time.monotonic(), ""
    if not sweep.is_done(run):  # else another process has ended it
      logger.info(f"{run.name} begins; {sweep.log(run)} has what it says")
      problem = child.train(sweep, run)
    if problem and not child.stopped and sweep.is_done(run):
      logger.warning(f"{run.name} is done, though its process says: {problem}")
      problem = ""
    if owner.is_anothers(problem):
      not_before[run.name] = time.monotonic() + AGAIN
    elif not child.stopped:
      left.remove(run)
      yield run, time.monotonic() - started, problem


def _is_free(sweep, run, not_before):
  if sweep.is_done(run):
    return True
  is_late = time.monotonic() >= not_before.get(run.name, 0.0)
  # Where that cannot be seen, the run itself finds it out.
  return is_late and not owner.is_held(sweep.folder(run))


class Child:
  """The process of the run under way; Ctrl-C and SIGTERM are passed on to it.

  Attributes:
    stopped: was the sweep asked to end?
    interrupted: was it by Ctrl-C?
  """

  def __init__(self):
    self.stopped = self.interrupted = False
    self._process = None

  @contextlib.contextmanager
  def signals(self):
    """A context in which both end the sweep when its run has saved."""
    before = {
      one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)
    }
    if before[signal.SIGINT] == signal.SIG_IGN:  # in the background
      del before[signal.SIGINT]
    for one in before:
      signal.signal(one, self._pass_on)
    try:
      yield
    finally:
      for one, handler in before.items():
        signal.signal(one, handler)

  def _pass_on(self, number, _):
    self.stopped = True
    self.interrupted |= number == signal.SIGINT
    if self._process is not None:
      with contextlib.suppress(ProcessLookupError):
        self._process.send_signal(number)

  def train(self, sweep, run):
    """Trains one run to its end; returns what went wrong, or ""."""
    path = sweep.log(run)
    with open(path, "ab") as log:
      start = log.tell()
      self._process = subprocess.Popen(
        [sys.executable, "-m", CHILD, str(os.getpid()), *sweep.command(run)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        process_group=0,  # the terminal sends Ctrl-C to the sweep alone
      )
      if self.stopped:  # before there was a process to tell
        self._process.send_signal(signal.SIGTERM)
      code = self._process.wait()
      self._process = None
    if code == 0 and sweep.is_done(run):
      return ""
    if code == 0:
      return f"stopped at step {sweep.step(run)}"
    if code < 0:
      return f"ended by {signal.Signals(-code).name}, see {path}"
    return _last_error(path, start) or f"exit code {code}, see {path}"


def _last_error(path, start):
  """The last line of an error in a log from that byte on; "" for none.

  It is among the last things that were said, so no more is read.
  """
  with open(path, "rb") as log:
    log.seek(max(start, log.seek(0, os.SEEK_END) - LAST))
    lines = log.read().decode("utf-8", "replace").splitlines()
  found = [line for line in lines if line.startswith("error: ")]
  return found[-1].removeprefix("error: ") if found else ""


def _report(workdir):
  """Prints the report; of several parts one writes it at a time.

  The last one reads what all have done.
  """
  while True:
    with contextlib.ExitStack() as stack:
      try:
        stack.enter_context(files.alone(workdir / "report"))
      except InputError:  # another part writes it
        time.sleep(POLL)
        continue
      try:
        print(report(workdir))
      except InputError as error:
        logger.warning(f"no report: {error}")
      return
