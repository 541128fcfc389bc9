# SPDX-License-Identifier: Apache-2.0
"""Sweep: the runs of a grid, checked, and where each of them stands."""

import contextlib
import dataclasses
import json
import pathlib

from mrpo_jax import files
from mrpo_jax.errors import InputError, blames
from mrpo_jax.runs import owner
from mrpo_jax.runs.config import (
  RENAMED,
  Config,
  read,
  with_defaults,
)
from mrpo_jax.runs.config.method import check_best, chosen_method
from mrpo_jax.runs.config.section import lists_as
from mrpo_jax.runs.models import check_folders
from mrpo_jax.runs.workdir import (
  CONFIG,
  check_length,
  differences,
  known_run,
  written,
)
from mrpo_jax.sweeps.grid import axes_of, runs_of
from mrpo_jax.text import aligned
from mrpo_jax.training import checkpoints

FILE = "sweep.json"  # in the sweep's folder: what all of its runs share
STORE = "store"  # of the references' scores, which the runs share
LOGS = "logs"  # what each run said


@dataclasses.dataclass(frozen=True)
class Sweep:
  """Runs of a grid in one folder, each a process of `mrpo train`."""

  workdir: pathlib.Path
  shared: dict  # content of FILE
  config: str  # FILE[:args]
  keys: list  # --config.KEY=VALUE of every run
  runs: list  # of grid.Trial, of this part
  steps: dict  # name of a run -> its steps; 0 where they follow from epochs

  def folder(self, run):
    return self.workdir / run.name

  def log(self, run):
    """The file of what the run said."""
    return self.workdir / LOGS / f"{run.name}.txt"

  def command(self, run):
    """The arguments of `mrpo` that train a run, and go on with it."""
    return [
      "train",
      f"--config={with_argument(self.config, run)}",
      *self.keys,
      *run.flags,
      f"--workdir={self.folder(run)}",
      f"--store={self.workdir / STORE}",
    ]

  def step(self, run):
    """The step of which the run has a checkpoint; 0 without any."""
    return checkpoints.stands_at(self.folder(run))

  def end(self, run):
    """The last step of the run; 0 of one by epochs that has not begun."""
    steps, path = self.steps[run.name], self.folder(run) / CONFIG
    if steps or not path.exists():
      return steps
    return files.read_json(path)["steps"]

  def is_done(self, run):
    return 0 < self.step(run) == self.end(run)

  def claim(self):
    """Writes FILE, in a folder that is made if it does not exist."""
    with written(self.workdir):
      (self.workdir / LOGS).mkdir(parents=True, exist_ok=True)
      if not (self.workdir / FILE).exists():
        files.write_json(self.workdir / FILE, self.shared)


def with_argument(config, run):
  """FILE[:args] of a run: its own argument joins those that are given."""
  if not run.argument:
    return config
  return f"{config}{',' if ':' in config else ':'}{run.argument}"


def checked(varied, workdir, *, config, keys, part=(0, 1), values_of):
  """The Sweep of a grid, every run of it checked; writes nothing.

  Args:
    varied: texts KEY=V1,V2 of --vary; the key `config` is an argument of the
      file's get_config.
    workdir: folder of the sweep.
    config: FILE[:args] of --config.
    keys: --config.KEY=VALUE of all runs.
    part: (i, n): the i-th of n shares of the runs, i from 0.
    values_of: (config, flags) -> nested dict of a config, not yet checked.

  Raises:
    InputError: one of the runs cannot be, or the folder holds another sweep;
      names the run.
  """
  workdir, axes = pathlib.Path(workdir), axes_of(varied)
  if workdir.exists() and not workdir.is_dir():
    raise InputError(f"--workdir {workdir} is a file; name a folder")
  given = {_key_of(flag): flag for flag in keys}
  for key in axes:
    if flag := given.get(_key_of(key)):
      raise InputError(f"{flag} and --vary {key} are both given")
  shared = {
    "config": _without(values_of(config, keys), axes),
    "vary": [*axes],
  }
  shared = json.loads(files.as_json(lists_as(list, shared), FILE))
  order = _known_order(workdir, shared)
  runs, steps, seen = runs_of(axes, order), {}, _others(workdir)
  for run in runs:
    with blames(f"run {run.name}", InputError):
      values = values_of(with_argument(config, run), [*keys, *run.flags])
      one = _checked_run(workdir / run.name, values)
    mark = json.dumps(one.to_dict(), sort_keys=True)
    if seen.setdefault(mark, run.name) != run.name:
      raise InputError(
        f"--vary: {run.name} and {seen[mark]} are the same run, with the same "
        "values; leave one out"
      )
    steps[run.name] = one.steps
  share, shares = part
  return Sweep(workdir, shared, config, keys, runs[share::shares], steps)


def _key_of(flag):
  """The key of --config.KEY=VALUE, or of -config.KEY, by its present name."""
  key = flag.partition("=")[0].lstrip("-").removeprefix("config.")
  return RENAMED.get(key, key)


def _checked_run(folder, values):
  """The Config of a run that can start, or go on, in its folder."""
  config = read(values)
  if not isinstance(config, Config):
    raise InputError("only runs of language models are swept")
  check_best(config, chosen_method(config))
  check_folders(config)
  known_run(folder, config.to_dict())
  check_length(folder, config)
  return config


def _without(values, axes):
  """The nested dict without the keys that vary."""
  values = lists_as(tuple, values)
  for key in axes:
    *parents, name = key.split(".")
    section = values
    for parent in parents:
      section = section.get(parent) if isinstance(section, dict) else None
    if isinstance(section, dict):
      section.pop(name, None)
  return values


def _known_order(workdir, shared):
  """The order of the keys in names: that of the first command in the folder.

  Raises:
    InputError: the folder holds another sweep; what differs is named.
  """
  if not (workdir / FILE).exists():
    if (workdir / CONFIG).exists():
      raise InputError(
        f"--workdir {workdir} holds a run, no sweep; name another folder"
      )
    return ()
  known = files.read_json(workdir / FILE)
  advice = f"--workdir {workdir} holds another sweep"
  order = known.get("vary")
  is_right = {
    "vary": isinstance(order, list) and all(isinstance(k, str) for k in order),
    "config": isinstance(known.get("config"), dict),
  }
  for key, right in is_right.items():
    if not right:
      raise InputError(
        f"{workdir / FILE}: {key!r} is not as it was written; use another "
        "--workdir"
      )
  if sorted(order) != sorted(shared["vary"]):
    raise InputError(
      f"{advice}, which varies {', '.join(order)}; vary the same keys, with "
      "any values, or use another --workdir"
    )
  # Keys that are new since then have their defaults.
  there = _without(with_defaults(known["config"]), order)
  found = [*differences(shared["config"], lists_as(list, there))]
  if found:
    raise InputError(
      f"{advice}: {'; '.join(map(str, found))}; use another --workdir"
    )
  return tuple(order)


def _others(workdir):
  """{config as text: name} of the runs that the folder holds already."""
  found = {}
  for path in sorted(workdir.glob(f"*/{CONFIG}")):
    with contextlib.suppress(InputError, OSError):  # `known_run` says it
      content = files.read_json(path)
      content.pop("identity", None)
      found.setdefault(json.dumps(content, sort_keys=True), path.parent.name)
  return found


def listed(sweep):
  """Aligned text: the runs in their order, and where each stands."""
  rows = [("run", "stands at", "")]
  for run in sweep.runs:
    step, steps = sweep.step(run), sweep.end(run)
    state = "done" if 0 < step == steps else "not begun"
    if 0 < step < steps:
      state = f"step {step} of {steps}"
    held = (
      "in use by another process" if owner.is_held(sweep.folder(run)) else ""
    )
    rows.append((run.name, state, held))
  return aligned(rows)
