# SPDX-License-Identifier: Apache-2.0
"""Numbers of the study of D2PO: gold reward, divergence, accuracy, verdicts."""

import numpy as np

from docs.studies.d2po.runs import texts
from docs.studies.grid.results import FAILS, HOLDS, OPEN
from mrpo_jax.evaluation.statistics import paired_interval
from mrpo_jax.online.pairs import distinct
from mrpo_jax.online.rewards import reward_of

SMALL = 0.1  # a smaller lead in gold reward, words, is none of the claimed size
DECAY = 0.02  # and a smaller change of an accuracy
WINDOW = 8  # parts of a run; its first and last accuracies are of one
# Better, worse; as published, from the best to the worst.
ORDER = (
  ("d2po", "gold_early"),
  ("d2po", "gold_thin"),
  ("d2po", "static"),
  ("d2po", "dpo"),
  ("gold_early", "static"),
  ("gold_thin", "static"),
  ("static", "dpo"),
)


class Results:
  """What the runs of a Grid came to.

  Attributes:
    grid: runs.Grid.
  """

  def __init__(self, grid, found):
    self.grid, self._found = grid, found
    self._reward = reward_of(grid.reward, options=grid.reward_options)

  def _each(self, method):
    return [self._found[method, seed] for seed in self.grid.seeds]

  # What it says after the held-out prompts.

  def rewards(self, method, *, look=-1):
    """[seeds, prompts] gold reward at a look; the first is before training."""
    return np.array(
      [
        self._reward(*texts(one.run.samples[look][1]))
        for one in self._each(method)
      ],
      float,
    )

  def curve(self, method):
    """(steps, gold reward at each look, mean over prompts and seeds)."""
    looks = self._each(method)[0].run.samples
    means = [
      self.rewards(method, look=place).mean() for place in range(len(looks))
    ]
    return [step for step, _ in looks], means

  def distinct_2(self, method, *, look=-1):
    """Of all answers of a seed, mean over seeds."""
    found = [
      distinct(texts(one.run.samples[look][1])[1], 2)
      for one in self._each(method)
    ]
    return float(np.mean(found))

  def tokens(self, method, *, look=-1):
    """Of an answer, mean over prompts and seeds."""
    said = [one.run.samples[look][1] for one in self._each(method)]
    return float(np.mean([[x["tokens"] for x in some] for some in said]))

  def lead(self, better, worse):
    """(mean, interval) of the gold reward of one method less another's."""
    difference_RN = self.rewards(better) - self.rewards(worse)
    return difference_RN.mean(), paired_interval(difference_RN)

  def gain(self, method):
    """(mean, interval) of the gold reward less that of the start."""
    difference_RN = self.rewards(method) - self.rewards(method, look=0)
    return difference_RN.mean(), paired_interval(difference_RN)

  # Figures of rounds.

  def rounds(self, method, figure):
    """[seeds, rounds] of a figure of every round; nan where it has none."""
    runs = [one.run for one in self._each(method)]
    steps = [line["step"] for line in runs[0].lines if line["step"]]
    return np.array(
      [
        [run.by_step(figure).get(step, np.nan) for step in steps]
        for run in runs
      ],
      float,
    )

  def kl(self, method):
    """Nats a response from the start, at the end, of each seed."""
    after = [one.after for one in self._each(method)]
    if after[0] is not None:
      return np.array([one.last("kl") for one in after])
    return self.rounds(method, "kl")[:, -self.grid.measured :].mean(1)

  def gold(self, method):
    """[seeds, steps + 1] pairs that the reward has labelled, from step 0."""
    before_R1 = np.array([[one.gold_before] for one in self._each(method)])
    if method in ("dpo", "static"):
      return np.repeat(before_R1, self.grid.rounds + 1, 1)
    spent_RS = before_R1 + self.rounds(method, "gold_spent")
    return np.concatenate([before_R1, spent_RS], 1)

  def accuracies(self, method):
    """[seeds, WINDOW] how often the discriminator orders pairs as gold does.

    Of the policy's own pairs, in as many parts of the run, from the first on.
    """
    right_RS = self.rounds(method, "discriminator/accuracy")
    judged_RS = self.rounds(method, "discriminator/judged")
    found = []
    for right_RW, judged_RW in zip(
      np.array_split(right_RS * judged_RS, WINDOW, 1),
      np.array_split(judged_RS, WINDOW, 1),
      strict=True,
    ):
      found.append(np.nansum(right_RW, 1) / np.nansum(judged_RW, 1))
    return np.array(found).T

  def change(self, method):
    """(mean, interval over seeds) of the last accuracy less the first."""
    accuracy_RW = self.accuracies(method)
    change_R1 = accuracy_RW[:, -1:] - accuracy_RW[:, :1]
    return change_R1.mean(), paired_interval(change_R1)


def verdict(interval, small):
  """Is there a lead?  By the rule of the page."""
  low, high = interval
  if low > 0:
    return HOLDS
  return FAILS if high < small else OPEN
