# SPDX-License-Identifier: Apache-2.0
"""Batches of packed rows: which pairs a step sees follows from (seed, step)."""

import dataclasses

import grain
import numpy as np

from mrpo_jax.data import pack
from mrpo_jax.models.rows import Rows


@dataclasses.dataclass(frozen=True)
class Packing:
  """How the pairs of one optimizer step become rows."""

  batch: int  # pairs in a step, over all processes
  length: int  # tokens of a row
  rows: int  # rows of a micro-batch, over all processes
  process: int = 0
  processes: int = 1
  mark_differences: bool = False  # see `pack.pack`

  def __post_init__(self):
    for name in ("batch", "rows"):
      if getattr(self, name) % self.processes:
        raise ValueError(
          f"{name}={getattr(self, name)} does not divide over "
          f"{self.processes} processes"
        )

  def of(self, views, indices) -> tuple[tuple[Rows, Rows], ...]:
    """This process's (long, short) rows of the pairs, per tokenizer view."""
    share = self.batch // self.processes
    first = self.process * share
    mine = indices[first : first + share]
    return tuple(
      pack.pack_step(
        [view[i] for i in mine],
        length=self.length,
        rows=self.rows // self.processes,
        batch=share,
        first_slot=2 * first,
        mark_differences=self.mark_differences,
      )
      for view in views
    )


def training(views, packing, *, seed, start=0):
  """Endless iterator over (step from start + 1, rows per view).

  Args:
    views: one list of Encoded per tokenizer, aligned over pairs.
    packing: Packing.
    seed: of the shuffle; every epoch has its own order.
    start: steps already done; any step is reached without replaying others.
  """
  order = grain.MapDataset.range(len(views[0])).seed(seed).shuffle().repeat()
  batches = order.batch(packing.batch)[start:]
  batches = batches.map(lambda indices: packing.of(views, indices))
  reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
  return enumerate(batches.to_iter_dataset(reading), start + 1)


def evaluation(views, packing):
  """Every pair once, in order; the last batch may hold fewer."""
  for first in range(0, len(views[0]), packing.batch):
    indices = np.arange(first, min(first + packing.batch, len(views[0])))
    yield indices, packing.of(views, indices)
