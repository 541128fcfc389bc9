# SPDX-License-Identifier: Apache-2.0
"""Numbers of the study of scarce pairs: leads over DPO, and mixtures."""

import numpy as np

from mrpo_jax import losses

FIRST = "dpo"
PUBLISHED = "mrpo_adaptive"
SCARCE = 0.1  # fractions up to it are the scarce ones


class Leads:
  """Leads over FIRST in accuracy, of the runs of one pair set.

  Attributes:
    grid: study.Grid.
    results: grid.results.Results.
  """

  def __init__(self, grid, results):
    self.grid, self.results = grid, results

  def of(self, fraction, method):
    """Difference to FIRST in `right`, against the policy's start."""
    right = self.results.right
    return right(fraction, method) - right(fraction, FIRST)

  def scarce(self, method):
    """The mean of `of` over the scarce fractions."""
    scarce = [one for one in self.grid.fractions if one <= SCARCE]
    return np.mean([self.of(one, method) for one in scarce], axis=0)

  def extra(self, method):
    """What the lead is larger by with scarce pairs than with the most."""
    return self.scarce(method) - self.of(max(self.grid.fractions), method)


def others(grid):
  return [one for one in grid.methods if one != FIRST]


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
