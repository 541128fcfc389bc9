# SPDX-License-Identifier: Apache-2.0
"""Numbers of the study of scarce pairs: leads over DPO."""

import numpy as np

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
