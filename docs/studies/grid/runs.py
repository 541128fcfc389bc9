# SPDX-License-Identifier: Apache-2.0
"""Runs of a grid: each trial is trained once, and marked where it is done."""

import contextlib
import logging
import shutil
import time
from typing import NamedTuple

from docs.studies.grid.models import train_whole
from docs.studies.grid.pair_sets import PairSet
from mrpo_jax import files
from mrpo_jax.progress import Progress
from mrpo_jax.reports.gather import gather
from mrpo_jax.runs.export import export
from mrpo_jax.runs.workdir import known_run

WARNING = "warning: "


class Trial(NamedTuple):
  """One run of a grid."""

  pairs: PairSet
  variant: tuple  # of text and numbers: what the study varies
  seed: int

  @property
  def name(self):
    varied = (x if isinstance(x, str) else f"{x:g}" for x in self.variant)
    return ",".join([self.pairs.name, *varied, str(self.seed)])


def mark_of(workdir, trial):
  """The file that is there where a run is done."""
  return workdir / "done" / f"{trial.name}.json"


def train_all(workdir, title, trials, config_of):
  """Trains each run that is not done.

  Args:
    workdir: folder of the study.
    title: a word for its progress.
    trials: list of Trial.
    config_of: (workdir, trial) -> Config.
  """
  (workdir / "done").mkdir(parents=True, exist_ok=True)
  left = [one for one in trials if not mark_of(workdir, one).exists()]
  done = [one for one in trials if one not in left]
  for trial in done:  # as it would be trained today
    config = config_of(workdir, trial)
    known_run(workdir / "runs" / trial.name, config.to_dict())
  with Progress(title, len(trials), "runs", done=len(done)) as progress:
    for trial in left:
      seconds = train(workdir, trial, config_of(workdir, trial))
      figures = [trial.name, f"done in {seconds:.0f} s"]
      progress.update(figures=figures, now=True)


def train(workdir, trial, config, *, model=None):
  """Trains one run; returns the seconds that it took.

  Args:
    workdir: folder of the study.
    trial: Trial, or whatever has a `name`.
    config: Config.
    model: folder that its model is exported to; None: nowhere.
  """
  folder, started = workdir / "runs" / trial.name, time.monotonic()
  with said(workdir / "logs" / f"{trial.name}.txt") as lines:
    train_whole(config, folder, store=str(workdir / "store"))
    if model is not None and not model.exists():
      export(folder, model)
  seconds = time.monotonic() - started
  warnings = [
    line.removeprefix(WARNING) for line in lines if line.startswith(WARNING)
  ]
  files.write_json(
    mark_of(workdir, trial), {"seconds": seconds, "warnings": warnings}
  )
  shutil.rmtree(folder / "checkpoints")  # nothing reads them any more
  return seconds


@contextlib.contextmanager
def said(path):
  """A list that gets each line of a run, which is written to a file too."""
  path.parent.mkdir(parents=True, exist_ok=True)
  logger, lines = logging.getLogger("mrpo_jax"), []
  handler = logging.FileHandler(path, encoding="utf-8")
  handler.addFilter(lambda record: lines.append(record.getMessage()) or True)
  logger.addHandler(handler)
  try:
    yield lines
  finally:
    logger.removeHandler(handler)
    handler.close()


def gathered(workdir, trials):
  """{Trial: (gather.Run, {"seconds", "warnings"})} of what is done."""
  found = {}
  for trial in trials:
    [run], _ = gather(workdir / "runs" / trial.name)
    found[trial] = run, files.read_json(mark_of(workdir, trial))
  return found
