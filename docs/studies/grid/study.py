# SPDX-License-Identifier: Apache-2.0
"""A study: a table of variants, a config for each, and a page of results."""

import argparse
import logging
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax

from docs.studies.grid import pair_sets
from docs.studies.grid.results import Results
from docs.studies.grid.runs import Trial, gathered, train_all
from mrpo_jax import files
from mrpo_jax.errors import InputError
from mrpo_jax.progress import stage

PAGES = pathlib.Path(__file__).parents[1]


class Study(NamedTuple):
  """What a grid of runs is made of, and what is made of it."""

  name: str  # of its module, its page and its figure
  variants: tuple  # of tuples of text and numbers
  seeds: tuple
  make_models: Callable  # workdir -> None, what runs read beside the pairs
  config_of: Callable  # (workdir, Trial) -> Config
  page: Callable  # (list of Results, list of marks) -> Markdown
  draw: Callable  # (list of Results, path) -> None
  pairs_of: Callable = lambda workdir, pairs: pairs  # PairSet -> what it uses


def main(study, about, **more):
  """The command of a study.

  Args:
    study: function of the values of `more` -> Study.
    about: a sentence for its help.
    more: {name: help} of further flags, which have to be given.
  """
  parser = argparse.ArgumentParser(description=about)
  parser.add_argument("--workdir", required=True)
  for name, text in more.items():
    parser.add_argument(f"--{name}", required=True, help=text)
  parser.add_argument("--second", help="a file of pairs, the second set")
  parser.add_argument("--source", help="where that file is from, in words")
  given = parser.parse_args()
  if bool(given.second) != bool(given.source):
    parser.error("give both --second and --source, or neither")
  workdir = pathlib.Path(given.workdir).absolute()
  begin(workdir)
  try:
    sets = [pair_sets.embedded()]
    if given.second:
      sets.append(pair_sets.divided(workdir, given.second, given.source))
    run(study(**{name: getattr(given, name) for name in more}), workdir, sets)
  except InputError as error:
    parser.exit(2, f"error: {error}\n")


def command(study, about):
  """The command of a study that takes a workdir alone.

  Args:
    study: workdir -> None.
    about: a sentence for its help.
  """
  parser = argparse.ArgumentParser(description=about)
  parser.add_argument("--workdir", required=True)
  workdir = pathlib.Path(parser.parse_args().workdir).absolute()
  begin(workdir)
  try:
    study(workdir)
  except InputError as error:
    parser.exit(2, f"error: {error}\n")


def begin(workdir):
  """Shows the progress of a command, whose runs share what they compile."""
  jax.config.update("jax_compilation_cache_dir", str(workdir / "programs"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
  logger = logging.getLogger("mrpo_jax")
  logger.setLevel(logging.INFO)
  logger.propagate = False  # libraries give the root handlers of their own
  logger.getChild("progress").addHandler(logging.StreamHandler())


def run(study, workdir, sets, to=PAGES):
  """Trains what is left of the grid, and writes the page into folder `to`.

  Args:
    study: Study.
    workdir: folder of models, scores and runs.
    sets: list of PairSet.
    to: folder of the page and its figure.
  """
  study.make_models(workdir)
  sets = [study.pairs_of(workdir, pairs) for pairs in sets]
  trials = [
    Trial(pairs, variant, seed)
    for seed in study.seeds  # outermost: the time left is that of all costs
    for pairs in sets
    for variant in study.variants
  ]
  train_all(workdir, study.name, trials, study.config_of)
  found = gathered(workdir, trials)
  with stage("writing the page"):
    results = [Results(pairs, study.seeds, found) for pairs in sets]
    study.draw(results, to / f"{study.name}.svg")
    text = study.page(results, [mark for _, mark in found.values()])
    files.write_atomically(to / f"{study.name}.md", text.encode())
