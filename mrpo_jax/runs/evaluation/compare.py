# SPDX-License-Identifier: Apache-2.0
"""Comparison of models by a judge of their answers to the same prompts.

DIR/<name>.jsonl holds the answers of each model, DIR/judgements.jsonl what the
judge says of them, DIR/results.json the figures.  The same command goes on
where it was killed.
"""

import contextlib
import itertools
import logging
import pathlib

from mrpo_jax import files, hub
from mrpo_jax.data.source import prompt_id
from mrpo_jax.errors import InputError
from mrpo_jax.evaluation import judges
from mrpo_jax.evaluation.win_rates import head_to_head
from mrpo_jax.runs.evaluation import RESULTS
from mrpo_jax.runs.evaluation.judgements import Judgements
from mrpo_jax.runs.evaluation.responses import (
  named,
  read_responses,
  refuse_other_samples,
)
from mrpo_jax.runs.inference.generate import OWN, generate
from mrpo_jax.runs.inference.policy import find_step
from mrpo_jax.runs.inference.prompts import read_prompts
from mrpo_jax.runs.inference.reward import RewardModel
from mrpo_jax.text import aligned, bracketed

logger = logging.getLogger(__name__)

JUDGED = "judgements.jsonl"
TEST = "exact two-sided sign test on prompts"
HEADER = (
  *("second against first", "n", "win rate [95 %]", "length-controlled [95 %]"),
  *("won", "tied", "lost", "order bias [95 %]", "flips", "p"),
)
LEGEND = """\
n: answers of each model; win rate: of the second model, a tie is a half;
length-controlled: as if answers were equally long (AlpacaEval's minimal form);
order bias: how much more often than not the answer wins that stands first,
flips: pairs whose other answer wins in the other order; p: exact two-sided sign
test on prompts that are no tie.  Intervals: bootstrap over prompts; [all
agree]: each has the same mean, of which no interval follows."""


def compare(
  models,
  prompts,
  judge,
  to,
  *,
  responses=(),
  workdirs=(),
  source,
  given,
  seed=0,
  timeout=judges.TIMEOUT,
  **sampling,
):
  """Writes the answers, their judgements and results.json; gives the table.

  Args:
    models: folders of models; the first of all is the baseline.  Each may be
      NAME=FOLDER, and so may what follows.
    prompts: file of them, see `inference.prompts.read_prompts`.
    judge: a command, "module:name", or the folder of a reward model.
    to: folder to write, or to go on with.
    responses: files of answers that are there; they come before the models.
    workdirs: those of runs, which come after the models.
    source: inference.model.Source of how models are held, and of the step of
      runs.
    given: as `inference.generate.generate` takes it.
    seed: of the samples, and of the intervals' draws.
    timeout: seconds that a command may take for an answer.
    **sampling: further keywords of `generate`.

  Raises:
    InputError: something that was given is wrong, or the judge fails.
  """
  if len(models) + len(responses) + len(workdirs) < 2:
    raise InputError(
      "give at least two of --model=FOLDER, --workdir=DIR and "
      "--responses=FILE to compare"
    )
  to = pathlib.Path(to)
  taken = [name.partition(".")[0] for name in (JUDGED, RESULTS)]
  whole = named([*responses, *models, *workdirs], taken)
  there = whole[: len(responses)]
  sources = _sources(whole[len(responses) :], len(models), source)
  judge = judges.judge_of(judge, timeout=timeout, of_folder=RewardModel)
  asked = read_prompts(prompts, keys=OWN)
  answers = [read_responses(*one, asked) for one in there]
  identity = files.sha256_of(prompts)
  with _folder(to):
    with files.alone(to / JUDGED):
      Judgements(to / JUDGED, judge, identity)  # refuses those of others
    for one, model in sources.items():
      logger.info(f"answers of {one.path}, the model {one.name!r}")
      said = to / f"{one.name}.jsonl"
      generate(model, prompts, said, given=given, seed=seed, **sampling)
      answers.append(read_responses(one.name, said, asked))
    refuse_other_samples(answers)
    with files.alone(to / JUDGED):
      known = Judgements(to / JUDGED, judge, identity)
      results = _results(known, judge, answers, asked, seed)
      files.write_json(to / RESULTS, results, sort_keys=False)
  return text(results)


@contextlib.contextmanager
def _folder(path):
  """Makes a folder; what fails before anything is in it leaves none."""
  path = path.absolute()
  missing = [one for one in (path, *path.parents) if not one.exists()]
  path.mkdir(parents=True, exist_ok=True)
  try:
    yield
  except BaseException:
    with contextlib.suppress(OSError):  # the first that is not empty
      for one in missing:
        one.rmdir()
    raise


def _sources(whole, models, source):
  """{Contestant: its Source}: so many models, then runs; all are there."""
  found = {}
  for place, one in enumerate(whole):
    if place < models:
      hub.read_config(one.path)
      found[one] = source._replace(model=one.path, step="")
    else:
      step = str(find_step(one.path, source.step or "newest"))
      found[one] = source._replace(workdir=one.path, step=step)
  if source.step and len(whole) == models:
    raise InputError("--step is of runs: give it with --workdir=DIR")
  return found


def _results(known, judge, answers, prompts, seed):
  """The content of results.json."""
  pairs = [*itertools.combinations(answers, 2)]
  items = sorted(answers[0].texts)
  requests = {}
  for a, b in pairs:
    requests |= _requests(a, b, items, prompts, judge.orders)
  preferences = dict(zip(requests, known.of(answers, requests), strict=True))
  clusters = [prompt_id(prompts[index].pair) for index, _ in items]
  found = []
  for a, b in pairs:
    forward, backward = (
      [preferences[first.name, second.name, *item] for item in items]
      if order in judge.orders
      else None
      for order, (first, second) in enumerate([(a, b), (b, a)])
    )
    difference_N = [len(b.texts[item]) - len(a.texts[item]) for item in items]
    figures = head_to_head(
      forward,
      backward,
      difference_N=difference_N,
      clusters_N=clusters,
      seed=seed,
    )
    found.append({"first": a.name, "second": b.name, **figures})
  return {
    "judge": judge.name,
    "test": TEST,
    "models": [one.name for one in answers],
    **(found[0] if len(found) == 1 else {"comparisons": found}),
  }


def _requests(a, b, items, prompts, orders):
  """{tuple of judgements.KEYS: request} of two models' Responses."""
  several = any(sample for _, sample in items)
  found = {}
  for index, sample in items:
    for order in orders:
      first, second = (b, a) if order else (a, b)
      found[first.name, second.name, index, sample] = {
        "prompt": prompts[index].row["prompt"],
        "first": first.texts[index, sample],
        "second": second.texts[index, sample],
        "index": index,
        **({"sample": sample} if several else {}),
        "order": order,
      }
  return found


def text(results):
  """The table of results.json, and what its columns mean."""
  rows = [
    [
      f"{one['second']} against {one['first']}",
      str(one["n"]),
      _share(one["win_rate"], one["interval"]),
      _share(one["length_controlled"], one["length_controlled_interval"]),
      *(str(one[name]) for name in ("wins", "ties", "losses")),
      _share(one["order_bias"], one["order_bias_interval"]),
      _share(one["flips"]),
      f"{one['p']:.2g}",
    ]
    for one in results.get("comparisons", [results])
  ]
  lines = [aligned([HEADER, *rows]), "", LEGEND]
  if len(rows) > 1:
    lines.append(f"{len(rows)} comparisons: each p is of one alone.")
  return "\n".join(lines)


def _share(value, interval=()):
  if value is None:
    return "-"
  ends = [100 * end for end in interval]
  return f"{100 * value:.1f}%" + (f" {bracketed(ends, '.1f')}" if ends else "")
