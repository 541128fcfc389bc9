# SPDX-License-Identifier: Apache-2.0
"""Order of rows in blocks: exact and stateless, from seed and position alone.

Every epoch has a permutation of the blocks.  Along it they are taken together
until they hold `buffer` rows, and the rows of such a window are permuted.  A
shuffle buffer does the same, but has to be replayed to be reached again.
"""

import dataclasses

import numpy as np
from grain.experimental import index_shuffle

ROUNDS = 4  # of the cipher that permutes; as grain's own shuffle has it


@dataclasses.dataclass(frozen=True)
class Window:
  """Rows that are shuffled together."""

  start: int  # rows of the whole run that come before its first
  blocks: np.ndarray  # in the order in which they are read
  rows_N2: np.ndarray  # (place in `blocks`, row of that block), in order


@dataclasses.dataclass(frozen=True)
class Order:
  """Endless sequence of rows; every epoch has each of them once.

  Attributes:
    counts: of rows in each block, positive.
    seed: of the permutations.
    buffer: rows that a window holds at least, where there are so many.
  """

  counts: np.ndarray
  seed: int
  buffer: int

  @property
  def total(self):
    """Rows of an epoch."""
    return int(self.counts.sum())

  def windows(self, position=0):
    """Iterates over Windows from that which holds the row at `position` on."""
    epoch, inside = divmod(position, self.total)
    while True:
      yield from self._epoch(epoch, inside)
      epoch, inside = epoch + 1, 0

  def _epoch(self, epoch, inside):
    """The Windows of an epoch but those that end before its row `inside`."""
    blocks = permutation(len(self.counts), self.seed, epoch)
    ends = np.cumsum(self.counts[blocks])
    first = start = number = 0
    while first < len(blocks):
      full = np.searchsorted(ends, start + self.buffer)
      last = min(int(full), len(blocks) - 1)
      if ends[last] > inside:
        some = blocks[first : last + 1]
        yield Window(
          epoch * self.total + start,
          some,
          self._mixed(some, epoch, number),
        )
      first, start, number = last + 1, int(ends[last]), number + 1

  def _mixed(self, blocks, epoch, number):
    """rows_N2 of the window of that number."""
    counts = self.counts[blocks]
    places = np.repeat(np.arange(len(blocks)), counts)
    rows = np.concatenate([np.arange(count) for count in counts])
    mixed = permutation(len(rows), self.seed, epoch, number)
    return np.stack([places, rows], 1)[mixed]


def permutation(count, *words):
  """A permutation of so many places that follows from non-negative integers."""
  (seed,) = np.random.SeedSequence(words).generate_state(1)
  return np.array(
    [
      index_shuffle(i, max_index=count - 1, seed=int(seed), rounds=ROUNDS)
      for i in range(count)
    ]
  )
