# SPDX-License-Identifier: Apache-2.0
"""Numbers of the study of scarce pairs: leads over DPO and verdict by rule."""

import dataclasses

import numpy as np

from mrpo_jax import losses
from mrpo_jax.evaluation.statistics import paired_interval
from mrpo_jax.reports import figures, paired
from mrpo_jax.text import with_interval

FIRST = "dpo"
PUBLISHED = "mrpo_adaptive"
SCARCE = 0.1  # fractions up to it are the scarce ones
SMALL = 0.02  # a smaller gain in accuracy is no gain of the claimed size


class Result:
  """What the runs of one pair set came to, on the pairs that all of them kept.

  Attributes:
    grid, pairs: see `write_page`.
    left_out: held-out pairs that one of the runs dropped.
  """

  def __init__(self, grid, pairs, found):
    self.grid, self.pairs = grid, pairs
    mine = {
      (trial.fraction, trial.method, trial.seed): one
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

  def runs(self, fraction, method):
    return [self._runs[fraction, method, seed] for seed in self.grid.seeds]

  def values(self, fraction, method, of):
    """[seeds, held-out pairs] of `of`(records) -> {pair: value}."""
    found = [of(run.pairs) for run in self.runs(fraction, method)]
    return np.array([[one[place] for place in self._places] for one in found])

  def right(self, fraction, method, of=figures.reference_margins):
    """1.0 where the margin is positive, else 0.0."""
    return (self.values(fraction, method, of) > 0).astype(float)

  def lead(self, fraction, method):
    """Difference to FIRST in `right`, against the policy's start."""
    return self.right(fraction, method) - self.right(fraction, FIRST)

  def scarce_lead(self, method):
    """The mean of `lead` over the scarce fractions."""
    scarce = [one for one in self.grid.fractions if one <= SCARCE]
    return np.mean([self.lead(one, method) for one in scarce], axis=0)

  def extra_lead(self, method):
    """What the lead is larger by with scarce pairs than with the most."""
    return self.scarce_lead(method) - self.lead(
      max(self.grid.fractions), method
    )

  def interval(self, difference_RN):
    return paired_interval(difference_RN, self.prompts)

  def text(self, difference_RN):
    """Mean and interval of a difference."""
    interval = self.interval(difference_RN)
    return with_interval(difference_RN.mean(), interval, "+.3f")

  def others(self):
    return [one for one in self.grid.methods if one != FIRST]

  def differences(self, fraction):
    """{method: its paired differences to FIRST}, of reports.paired."""
    methods = [FIRST, *self.others()]
    return paired.differences(
      {method: self.runs(fraction, method) for method in methods}
    )

  def steps(self, fraction):
    return self.grid.steps(fraction, self.pairs.pairs)

  def seconds(self, fraction):
    return [
      mark["seconds"] for key, mark in self.marks.items() if key[0] == fraction
    ]


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


def verdict(intervals):
  """By the rule that the page states, from an interval of each pair set."""
  if len(intervals) < 2:
    return "cannot be told from one pair set"
  if all(low > 0 for low, _ in intervals):
    return "**holds**"
  if all(high < SMALL for _, high in intervals):
    return "**does not hold**"
  return "**cannot be told at this size**"
