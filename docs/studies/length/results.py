# SPDX-License-Identifier: Apache-2.0
"""Numbers of the study of length: margins, accuracies and samples by length."""

import numpy as np

from mrpo_jax.data import source
from mrpo_jax.evaluation.correlation import spearman, spearman_interval
from mrpo_jax.evaluation.statistics import paired_interval
from mrpo_jax.reports import figures
from mrpo_jax.text import with_interval

FIRST = "dpo"
TOKENS = 1.0  # a smaller change of the mean length is none
RHO = 0.05  # and of a correlation


def excess(pairs):
  """{pair: tokens of the chosen response less those of the rejected one}."""
  return {one["pair"]: one["tokens"][0] - one["tokens"][1] for one in pairs}


class Lengths:
  """What lengths have to do with the runs of one pair set.

  Attributes:
    result: grid.results.Results.
    longer_share: of the training pairs, how often the chosen response has more
      characters, of those where one has.
    sign: +1 where that is more than half, else -1: what pairs push towards.
    excess_N: see `excess`, of the held-out pairs.
  """

  def __init__(self, result):
    self.result = result
    self.longer_share = longer_share(source.load(result.pairs.train))
    self.sign = 1 if self.longer_share > 0.5 else -1
    self.excess_N = result.values(FIRST, of=excess)[0]

  # Correlations of margins with the excess.

  def margins(self, method, of=figures.reference_margins):
    """[seeds, pairs] against the policy's start, nats."""
    return self.result.values(method, of=of)

  def rho(self, method, of=figures.reference_margins):
    """Correlation of the margins with the excess, mean over seeds."""
    margin_RN = self.margins(method, of)
    return float(np.mean([spearman(one, self.excess_N) for one in margin_RN]))

  def correlation(self, method, of=figures.reference_margins):
    """(`rho`, its interval)."""
    margin_RN, prompts = self.margins(method, of), self.result.prompts
    interval = spearman_interval(margin_RN, self.excess_N, prompts)
    return self.rho(method, of), interval

  def weaker(self, method):
    """By how much less than FIRST's the margins follow length.

    (value, interval) of the size of FIRST's correlation less the method's.
    """
    sides = [
      np.sign(self.rho(one)) * self.margins(one) for one in (FIRST, method)
    ]
    value = abs(self.rho(FIRST)) - abs(self.rho(method))
    first_RN, other_RN = sides
    return value, spearman_interval(
      *(first_RN, self.excess_N, self.result.prompts), less_RN=other_RN
    )

  def accuracy(self, method, *, longer):
    """Where the chosen response is the longer one, or the shorter one.

    (value, interval, pairs); None where there is no such pair.
    """
    some_N = self.excess_N > 0 if longer else self.excess_N < 0
    if not some_N.any():
      return None
    right_RN = self.result.right(method)[:, some_N]
    prompts = self.result.prompts
    prompts = prompts and [
      one for one, is_in in zip(prompts, some_N, strict=True) if is_in
    ]
    return right_RN.mean(), paired_interval(right_RN, prompts), some_N.sum()

  # Samples.

  def samples(self, method, *, before):
    """[seeds, prompts] tokens of what the policy answers."""
    return np.array(
      [
        [one["tokens"] for one in self._said(run, before=before)]
        for run in self.result.runs(method)
      ]
    )

  def cut(self, method, *, before):
    """Share of the answers that reached the most tokens, and were cut."""
    return np.mean(
      [
        one["finish"] == "length"
        for run in self.result.runs(method)
        for one in self._said(run, before=before)
      ]
    )

  def _said(self, run, *, before):
    return run.samples[0 if before else -1][1]

  def growth(self, method):
    """[seeds, prompts] tokens more than the start's answer."""
    after, before = (self.samples(method, before=one) for one in (False, True))
    return after - before

  def pushed(self, method):
    """(value, interval) of the growth, in the direction that pairs push to."""
    return of_prompts(self.sign * self.growth(method))

  def steadier(self, method):
    """By how much less than FIRST's the method's samples moved, either way.

    (value, interval) of the size of FIRST's mean growth less the method's.
    """
    first_RN, other_RN = (
      np.sign(one.mean()) * one
      for one in (self.growth(FIRST), self.growth(method))
    )
    return of_prompts(first_RN - other_RN)


def longer_share(pairs):
  """Of pairs whose responses differ in characters: is the chosen one longer?"""
  more = [
    len(str(one.chosen)) - len(str(one.rejected))
    for one in pairs
    if len(str(one.chosen)) != len(str(one.rejected))
  ]
  return float(np.mean(np.array(more) > 0)) if more else 0.5


def of_prompts(value_RN):
  """(mean, interval) over prompts, each of which is there once, and seeds."""
  return value_RN.mean(), paired_interval(value_RN)


def text(found, form="+.2f"):
  value, interval = found[:2]
  return with_interval(value, interval, form)
