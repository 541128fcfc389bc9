# SPDX-License-Identifier: Apache-2.0
"""The runs of a folder as they were left, damaged ones too."""

import dataclasses
import json
import pathlib

from mrpo_jax import files
from mrpo_jax.errors import InputError
from mrpo_jax.files import is_figure
from mrpo_jax.reports.figures import same_config
from mrpo_jax.runs.config.method import reward_beta
from mrpo_jax.runs.workdir import CONFIG, PAIRS
from mrpo_jax.training import checkpoints
from mrpo_jax.training.log import FILE as METRICS
from mrpo_jax.training.trackers.samples import SAMPLES

MOST = 2**31 - 1  # a step, as a config may name it
LARGEST = 1e30  # nats of a response; sums of more are no numbers


@dataclasses.dataclass(frozen=True)
class Run:
  """What one run has left."""

  name: str
  folder: pathlib.Path
  config: dict  # content of config.json
  # Of metrics.jsonl, dicts with an integer `step`: finite numbers, and samples.
  lines: list
  pairs: list  # records of its held-out pairs, those that are compared
  evaluated: int  # how many it evaluated

  @property
  def seed(self):
    """Of its config; None where that is no number."""
    seed = self.config.get("seed")
    return seed if type(seed) is int else None

  @property
  def tokenizer(self):
    """What says whether tokens of two runs' policies are the same."""
    return str(self.config.get("identity", {}).get("policy.tokenizer", ""))

  @property
  def data(self):
    """What says whether two runs have the same held-out pairs."""
    return str(self.config.get("identity", {}).get("data.eval", ""))

  @property
  def beta(self):
    return reward_beta(self.config["loss"])

  @property
  def samples(self):
    """[(step, list of samples)], those of step 0 before training."""
    found = ((line["step"], line.get(SAMPLES)) for line in self.lines)
    return [(step, _texts(some)) for step, some in found if _texts(some)]

  def by_step(self, figure):
    """{step: value} of a figure, where a line has it."""
    return {line["step"]: line[figure] for line in self.lines if figure in line}

  def last(self, figure):
    """The value of the last line that has the figure; None without one."""
    having = (line for line in reversed(self.lines) if figure in line)
    return next(having, {}).get(figure)

  def last_of_all(self, place):
    """{figure: value of the last line that has it} of names with that start.

    The names are given without it.
    """
    return {
      name.removeprefix(place): value
      for line in self.lines
      for name, value in line.items()
      if name.startswith(place)
    }


def gather(workdir):
  """([Run of every run in the folder], [what is wrong, in sentences]).

  The runs are the folder itself, or those at any depth below it.  What cannot
  be read of a run is left out and said.
  """
  runs, notes = [], []
  for name, folder in _folders(files.path_of(workdir)).items():
    try:
      lines, no_metrics, no_figures = _lines(folder / METRICS)
      pairs, no_pairs = _pairs(folder / PAIRS)
      config = _config(folder / CONFIG, is_evaluated=bool(pairs))
    except (InputError, OSError) as error:
      notes.append(f"{name} is left out: {error}")
      continue
    if no_metrics:
      notes.append(f"{name}: {no_metrics} lines of {METRICS} are no metrics")
    if no_figures:
      notes.append(
        f"{name}: {no_figures} figures of {METRICS} are no finite numbers and "
        "are left out"
      )
    if no_pairs:
      notes.append(f"{name}: {no_pairs} lines of {PAIRS} are no pairs")
    runs.append(Run(name, folder, config, lines, pairs, len(pairs)))
    notes += _standing(runs[-1])
  return runs, notes


def _folders(workdir):
  """{name: folder} of runs: the folder itself, or all below it."""
  if (workdir / PAIRS).exists():
    return {workdir.resolve().name: workdir}
  paths = [one.parent for one in files.below(workdir) if one.name == CONFIG]
  runs = [
    path
    for path in paths
    if (path / PAIRS).exists() or (path / METRICS).exists()
  ]
  return {path.relative_to(workdir).as_posix(): path for path in runs}


def _config(path, *, is_evaluated):
  """Content of config.json; InputError where a report cannot read it."""
  config = files.read_json(path)
  for key in ("references", "identity"):
    if not isinstance(config.get(key, {}), dict):
      raise InputError(f"config.{key} is no section")
  names = config.get("references", {}).get("names") or []
  if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
    raise InputError("config.references.names is no list of names")
  if is_evaluated:
    reward_beta(config.get("loss", {}))
  return config


def _lines(path):
  """(lines with a step, one for each, in order; how many others; left out).

  Of a line what is neither a finite number nor the samples is left out.
  """
  lines, strange = files.readable_lines(path)
  kept, left_out = {}, 0
  for line in lines:
    good = {k: x for k, x in line.items() if k == SAMPLES or is_figure(x)}
    step = good.get("step")
    if isinstance(step, int) and 0 <= step <= MOST:
      kept[step] = good
      left_out += len(line) - len(good)
    else:
      strange += 1
  return [kept[step] for step in sorted(kept)], strange, left_out


def _pairs(path):
  lines, strange = files.readable_lines(path)
  kept = {one["pair"]: one for one in lines if _is_pair(one)}
  return [*kept.values()], strange + len(lines) - len(kept)


def _is_pair(one):
  references = one.get("references")
  said = one.get("policy", one.get("rewards"))  # those of a reward model
  return (
    isinstance(one.get("pair"), int)
    and isinstance(one.get("prompt", ""), str)
    and isinstance(references, list)
    and all(map(_are_two, [said, one.get("tokens"), *references]))
    and one["tokens"][0] > 0
  )


def _are_two(values):
  return (
    isinstance(values, list)
    and len(values) == 2
    and all(is_figure(value) and abs(value) < LARGEST for value in values)
  )


def _texts(samples):
  """The samples of a line that have a prompt and a response."""
  if not isinstance(samples, list):
    return []
  return [
    one
    for one in samples
    if isinstance(one, dict) and isinstance(one.get("response"), str)
  ]


def _standing(run):
  """A sentence where a run has not come to its end."""
  steps = run.config.get("steps")
  if not isinstance(steps, int) or "bandit" in run.config:
    return  # a bandit keeps no checkpoint
  step = checkpoints.stands_at(run.folder)
  if step == 0:
    yield f"{run.name}: holds no checkpoint"
  elif step != steps:
    yield f"{run.name}: stands at step {step} of {steps}"


def groups_of(runs):
  """{label: names} of runs of one config and data but for the seed.

  A label is what their names have in common: "beta=1 (3 seeds)" of
  "beta=1,seed=0" and others.  Where that is another's, or nothing, it is the
  name of the first.
  """
  by_config, taken = {}, {run.name for run in runs}
  for run in runs:
    if run.seed is not None:
      by_config.setdefault(_but_for_seed(run), {}).setdefault(
        run.seed, run.name
      )
  found = {}
  for seeds in by_config.values():
    if len(seeds) < 2:
      continue
    (seed, first), *_ = seeds.items()
    shared = _without_seed(first, seed)
    labels = [f"{name} ({len(seeds)} seeds)" for name in (shared, first)]
    is_taken = not shared or labels[0] in taken
    found[labels[is_taken]] = [*seeds.values()]
    taken.add(labels[is_taken])
  return found


def _without_seed(name, seed):
  """The name of a run, of folders of key=value,..., without its seed."""
  folders = [
    ",".join(part for part in folder.split(",") if part != f"seed={seed}")
    for folder in name.split("/")
  ]
  return "/".join(filter(None, folders))


def repeated(runs):
  """A sentence for each run with the config, data and seed of another."""
  found = {}
  for run in runs:
    key = _but_for_seed(run), run.seed
    other = found.setdefault(key, run.name)
    if run.seed is not None and other != run.name:
      yield (
        f"{run.name}: config, data and seed are those of {other}; it counts as "
        "no further seed"
      )


def _but_for_seed(run):
  return json.dumps([same_config(run.config), run.data], sort_keys=True)
