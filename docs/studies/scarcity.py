# SPDX-License-Identifier: Apache-2.0
"""Scarce pairs: do several references help more, the fewer pairs there are?

  python -m docs.studies.scarcity --workdir=/tmp/scarcity \
    --second=helpful.jsonl.gz --source="hh-rlhf, helpful-base, test.jsonl.gz"

writes `scarcity.md` and `scarcity.svg` beside this file, from 150 runs for each
of two pair sets: the embedded one, and a file of pairs that is named.  Without
one there is a single set, and no verdict.  Started again, it goes on where it
was.
"""

import argparse
import contextlib
import hashlib
import logging
import math
import pathlib
import shutil
import time
from typing import NamedTuple

import jax

from configs import quickstart
from docs.studies.bad_reference import make_model, train_whole
from docs.studies.scarcity_page import write_page
from mrpo_jax import configs, files
from mrpo_jax.data import source
from mrpo_jax.errors import InputError
from mrpo_jax.progress import Progress, stage
from mrpo_jax.reports.gather import gather
from mrpo_jax.runs.config import read
from mrpo_jax.runs.workdir import known_run

HERE = pathlib.Path(__file__).parent
MODELS = ("sft-base", "sft-second")  # of the quickstart: policy, reference
HELD_OUT = 6  # a dialogue in six, as the embedded pairs are divided
# The first is what the others are compared with; of the last three each leaves
# out one more of what was published.
METHODS = {
  # DPO's loss, of a run with both references: a text is cut where it fits all
  # tokenizers of its run, so that one reference would leave other texts.
  "dpo": dict(name="mrpo", weights=(1.0, 0.0), clip=None, mixture="geometric"),
  "multi_dpo": dict(name="multi_dpo", weights="uniform"),
  "mrpo_adaptive": dict(name="mrpo"),
  "mrpo_uniform": dict(name="mrpo", weights="uniform"),
  "mrpo_no_clip": dict(name="mrpo", weights="uniform", clip=None),
  "geometric": dict(
    name="mrpo", weights="uniform", clip=None, mixture="geometric"
  ),
}


class Grid(NamedTuple):
  """What is varied, and what a run is made of."""

  fractions: tuple = (0.01, 0.03, 0.1, 0.3, 1.0)
  methods: tuple = tuple(METHODS)
  seeds: tuple = (0, 1, 2, 3, 4)  # of which pairs, and of their order
  batch: int = 16  # a batch is not more than 1 % of the pairs
  least_steps: int = 30  # a pass over 1 % of the pairs is a single step
  beta: float = 0.1  # per nat; DPO's usual value
  max_tokens: int = 64  # of a prompt, and of a response
  row_length: int = 256

  def steps(self, fraction, pairs):
    """Those of one pass over that share of so many pairs, or the least."""
    batches = math.ceil(round(fraction * pairs) / self.batch)
    return max(self.least_steps, batches)


class PairSet(NamedTuple):
  """Pairs to train on, and held-out ones."""

  name: str  # in the names of folders
  title: str
  about: str  # which file, and from where
  train: pathlib.Path
  held_out: pathlib.Path
  pairs: int  # to train on


class Trial(NamedTuple):
  """One run of the grid."""

  pairs: PairSet
  fraction: float
  method: str
  seed: int

  @property
  def name(self):
    return f"{self.pairs.name},{self.fraction:g},{self.method},{self.seed}"


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--second", help="a file of pairs, the second set")
  parser.add_argument("--source", help="where that file is from, in words")
  given = parser.parse_args()
  if bool(given.second) != bool(given.source):
    parser.error("give both --second and --source, or neither")
  workdir = pathlib.Path(given.workdir).absolute()
  # Runs share what they compile.
  jax.config.update("jax_compilation_cache_dir", str(workdir / "programs"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
  logger = logging.getLogger("mrpo_jax")
  logger.setLevel(logging.INFO)
  logger.propagate = False  # libraries give the root handlers of their own
  logger.getChild("progress").addHandler(logging.StreamHandler())
  try:
    study(workdir, given.second, given.source)
  except InputError as error:
    parser.exit(2, f"error: {error}\n")


def study(workdir, second=None, origin=None, *, grid=None, to=HERE):
  """Trains what is left of the grid, and writes the page into folder `to`.

  Args:
    workdir: folder of models, scores and runs.
    second: a file of pairs, the second set.
    origin: where that file is from, in words.
    grid: Grid.
    to: folder of the page and its figure.
  """
  grid, sets = grid or Grid(), [embedded()]
  if second:
    sets.append(divided(workdir, pathlib.Path(second), origin))
  for name in MODELS:
    make_model(workdir, name)
  trials = [
    Trial(pairs, fraction, method, seed)
    for seed in grid.seeds  # outermost: the time left is that of all costs
    for pairs in sets
    for fraction in grid.fractions
    for method in grid.methods
  ]
  train_all(workdir, grid, trials)
  found = {}
  for trial in trials:
    [run], _ = gather(workdir / "runs" / trial.name)
    found[trial] = run, files.read_json(mark_of(workdir, trial))
  with stage("writing the page"):
    write_page(to, grid, sets, found)


# Pairs.


def embedded():
  """The PairSet of the repository."""
  train, held_out = (
    configs.HH_HARMLESS / f"{split}.jsonl.gz" for split in ("train", "eval")
  )
  about = "HH-RLHF, harmless-base, as `configs/hh_harmless/NOTICE.md` says"
  pairs = len(source.load(train))
  return PairSet("harmless", "HH harmless", about, train, held_out, pairs)


def divided(workdir, file, origin):
  """The PairSet of a file; one dialogue in HELD_OUT is held out.

  By a hash of its first turn, so that no dialogue stands on both sides.
  """
  pairs, sha256 = source.load(file), files.sha256_of(file)
  folder = workdir / "pairs" / sha256[:12]
  train, held_out = [], []
  for pair in pairs:
    mark = hashlib.sha256(first_turn(pair.prompt).encode()).digest()
    side = train if int.from_bytes(mark) % HELD_OUT else held_out
    side.append(
      {
        "prompt": pair.prompt,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
      }
    )
  if not train or not held_out:
    raise InputError(f"{file}: too few dialogues to hold one in six out")
  folder.mkdir(parents=True, exist_ok=True)
  paths = [folder / "train.jsonl", folder / "eval.jsonl"]
  for path, rows in zip(paths, (train, held_out), strict=True):
    files.write_lines(path, rows)
  about = f"{origin} (`{file.name}`, sha256 `{sha256}`)"
  name = file.name.partition(".")[0]
  return PairSet(f"second-{sha256[:8]}", name, about, *paths, len(train))


def first_turn(prompt):
  if isinstance(prompt, str):
    return prompt.partition("\n\nAssistant:")[0].strip()
  return str(prompt[0]["content"])


# Runs.


def config_of(workdir, grid, trial):
  """The Config of a run."""
  models = workdir / "models"
  c = quickstart.get_config(f"mrpo,models={models}")
  c.seed, c.batch = trial.seed, grid.batch
  c.steps = grid.steps(trial.fraction, trial.pairs.pairs)
  c.data.train, c.data.eval = str(trial.pairs.train), str(trial.pairs.held_out)
  c.data.fraction = trial.fraction
  c.data.max_prompt = c.data.max_response = grid.max_tokens
  c.data.row_length = grid.row_length
  c.eval_every = c.checkpoint_every = 0  # once, at the end
  c.references = dict(
    names=("base", "second"),
    base=dict(path="policy", mode="scored"),
    second=dict(path=f"{models}/sft-second", mode="scored"),
  )
  c.loss = dict(beta=grid.beta, **METHODS[trial.method])
  return read(c.to_dict())


def mark_of(workdir, trial):
  """The file that is there where a run is done."""
  return workdir / "done" / f"{trial.name}.json"


def train_all(workdir, grid, trials):
  """Trains each run that is not done."""
  (workdir / "done").mkdir(parents=True, exist_ok=True)
  left = [one for one in trials if not mark_of(workdir, one).exists()]
  done = [one for one in trials if one not in left]
  for trial in done:  # as it would be trained today
    config = config_of(workdir, grid, trial)
    known_run(workdir / "runs" / trial.name, config.to_dict())
  with Progress("scarcity", len(trials), "runs", done=len(done)) as progress:
    for trial in left:
      seconds = train(workdir, grid, trial)
      figures = [trial.name, f"done in {seconds:.0f} s"]
      progress.update(figures=figures, now=True)


def train(workdir, grid, trial):
  """Trains one run; returns the seconds that it took."""
  folder = workdir / "runs" / trial.name
  config, started = config_of(workdir, grid, trial), time.monotonic()
  with said(workdir / "logs" / f"{trial.name}.txt") as lines:
    train_whole(config, folder, store=str(workdir / "store"))
  seconds = time.monotonic() - started
  files.write_json(
    mark_of(workdir, trial),
    {
      "seconds": seconds,
      "warnings": [
        line.removeprefix("warning: ")
        for line in lines
        if line.startswith("warning: ")
      ],
    },
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


if __name__ == "__main__":
  main()
