# SPDX-License-Identifier: Apache-2.0
"""Results of a grid on the pairs that all runs kept, and verdicts by rule."""

import dataclasses

import numpy as np

from mrpo_jax import losses
from mrpo_jax.evaluation.statistics import paired_interval
from mrpo_jax.reports import figures, paired
from mrpo_jax.text import with_interval

SMALL = 0.02  # a smaller gain in accuracy is no gain of the claimed size
HOLDS = "**holds**"
FAILS = "**does not hold**"
OPEN = "**cannot be told at this size**"
ONE_SET = "cannot be told from one pair set"


class Results:
  """What the runs of one pair set came to, on the pairs that all of them kept.

  Attributes:
    pairs: PairSet, of which a study may have set validation pairs apart.
    seeds: of the study, in their order.
    left_out: held-out pairs that one of the runs dropped.
    prompts: what the prompt of each pair is known by.
    count: how many pairs there are.
    marks: {(*variant, seed): {"seconds", "warnings"}}.
  """

  def __init__(self, pairs, seeds, found):
    self.pairs, self.seeds = pairs, seeds
    mine = {
      (*trial.variant, trial.seed): one
      for trial, one in found.items()
      if trial.pairs == pairs
    }
    kept = [{one["pair"] for one in run.pairs} for run, _ in mine.values()]
    shared = set.intersection(*kept)
    self.left_out = len(set.union(*kept)) - len(shared)
    self._runs = {key: _only(run, shared) for key, (run, _) in mine.items()}
    self.marks = {key: mark for key, (_, mark) in mine.items()}
    one = next(iter(self._runs.values()))
    self._places = [record["pair"] for record in one.pairs]
    self.prompts = figures.prompts_of(one.pairs)
    self.count = len(self._places)

  def runs(self, *variant):
    """The runs of a variant, in the order of the seeds."""
    return [self._runs[*variant, seed] for seed in self.seeds]

  def values(self, *variant, of):
    """[seeds, held-out pairs] of `of`(records) -> {pair: value}."""
    found = [of(run.pairs) for run in self.runs(*variant)]
    return np.array([[one[place] for place in self._places] for one in found])

  def right(self, *variant, of=figures.reference_margins):
    """1.0 where the margin is positive, else 0.0."""
    return (self.values(*variant, of=of) > 0).astype(float)

  def figure(self, *variant, name):
    """Mean over seeds of what the last line of metrics.jsonl that has it says.

    None where no run has it.
    """
    found = [run.last(name) for run in self.runs(*variant)]
    return None if None in found else float(np.mean(found))

  def training(self, *variant, name):
    """Mean over seeds and steps of a figure of the training pairs."""
    found = [[*run.by_step(name).values()] for run in self.runs(*variant)]
    return float(np.mean(found)) if all(found) else None

  def interval(self, difference_RN):
    """95 %, over prompts and seeds."""
    return paired_interval(difference_RN, self.prompts)

  def text(self, difference_RN):
    """Mean and interval of a difference."""
    interval = self.interval(difference_RN)
    return with_interval(difference_RN.mean(), interval, "+.3f")

  def differences(self, variants):
    """{label: its paired differences to the first}, of reports.paired.

    Args:
      variants: {label: variant}, in their order.
    """
    return paired.differences(
      {label: self.runs(*variant) for label, variant in variants.items()}
    )

  def seconds(self, keep=lambda key: True):
    """Of the runs whose (*variant, seed) is to be kept."""
    return [mark["seconds"] for key, mark in self.marks.items() if keep(key)]


def _only(run, shared):
  kept = [one for one in run.pairs if one["pair"] in shared]
  return dataclasses.replace(run, pairs=kept)


def mixture_margins(pairs, *, beta, **loss):
  """{pair: log-ratio difference, nats} against the mixture of a loss."""
  policy_BC = np.array([one["policy"] for one in pairs])
  references_BKC = np.array([one["references"] for one in pairs])
  method = losses.build("mrpo", beta=beta, **loss)
  mixture_BC = method.virtual(references_BKC.swapaxes(1, 2))
  ratio_BC = policy_BC - np.asarray(mixture_BC, float)
  places = [one["pair"] for one in pairs]
  return dict(zip(places, ratio_BC[:, 0] - ratio_BC[:, 1], strict=True))


def untrained(of):
  """`of` as it was before training, when the policy was reference 0."""

  def of_start(pairs):
    return of([one | {"policy": one["references"][0]} for one in pairs])

  return of_start


def verdict(intervals, small=SMALL):
  """Is there a lead?  By the rule of RULE, from an interval of each set.

  `small` is a lead in the place of SMALL that would be none.
  """
  if len(intervals) < 2:
    return ONE_SET
  if all(low > 0 for low, _ in intervals):
    return HOLDS
  if all(high < small for _, high in intervals):
    return FAILS
  return OPEN


RULE = f"""\
A statement *holds* where the 95 % interval lies above 0 on every pair set, of
which it takes two; it *does not hold* where the interval ends below {SMALL:.2f}
on every one; else it *cannot be told at this size*."""
