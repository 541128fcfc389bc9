# SPDX-License-Identifier: Apache-2.0
"""Batches of packed rows: which pairs a step sees follows from (seed, step)."""

import dataclasses
import sys

import grain
import numpy as np

from mrpo_jax.data import pack
from mrpo_jax.rows import Rows


@dataclasses.dataclass(frozen=True)
class Packing:
  """How the pairs of one optimizer step become rows."""

  batch: int  # pairs in a step, over all processes
  length: int  # tokens of a row
  rows: int  # rows of a micro-batch, over all processes
  process: int = 0
  processes: int = 1
  mark_differences: bool = False  # see `pack.pack`
  few_pairs: bool = False  # as above

  def __post_init__(self):
    for name in ("batch", "rows"):
      if getattr(self, name) % self.processes:
        raise ValueError(
          f"{name}={getattr(self, name)} does not divide over "
          f"{self.processes} processes"
        )

  def whole(self):
    """The Packing of all processes' rows, as if there were one."""
    return dataclasses.replace(self, process=0, processes=1)

  @property
  def bytes(self):
    """Of this process's rows of one step under one tokenizer, at least."""
    rows = self.rows // self.processes
    batches = -(-self.batch // self.processes // rows)
    fields = 8 if self.mark_differences else 7
    return fields * np.dtype(np.int32).itemsize * batches * rows * self.length

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
        few_pairs=self.few_pairs,
      )
      for view in views
    )


@dataclasses.dataclass(frozen=True)
class Known:
  """What is known of each pair before the step, beside its tokens."""

  arrays: dict  # name -> [N, ...]
  # Per reference, None or N of (chosen, rejected) log-probability per token.
  token_logps: tuple = ()
  # name -> N of (chosen, rejected) values per token: of rollouts.
  tokens: dict = dataclasses.field(default_factory=dict)

  def of(self, packing, indices, views):
    """The same of the pairs of one step; 0 where a batch holds fewer.

    What is of tokens stands where view 0 has them, in tuples over its parts:
    log-probabilities as `ref_token_logp_ARMK`, 0 for references without, and
    a dict of the other values as `tokens_ARM`.
    """
    given = {}
    for name, array in self.arrays.items():
      rest = [(0, 0)] * (array.ndim - 1)
      missing = packing.batch - len(indices)
      given[name] = np.pad(array[indices], [(0, missing), *rest])
    if self.token_logps:
      given["ref_token_logp_ARMK"] = tuple(
        np.stack([_spread(one, indices, part) for one in self.token_logps], -1)
        for part in views[0]
      )
    if self.tokens:
      given["tokens_ARM"] = tuple(
        {name: _spread(one, indices, part) for name, one in self.tokens.items()}
        for part in views[0]
      )
    return given


NOTHING = Known({})


def _spread(token_values, indices, part):
  """value_ARM of every token, where it stands in a part of a view."""
  value_ARM = np.zeros(part.slots_RM.shape, np.float32)
  if token_values is None:
    return value_ARM
  value_M, slot_M = value_ARM.reshape(-1), part.slots_RM.reshape(-1)
  # The tokens of a response stand together, in their order.
  starts = np.flatnonzero(np.diff(slot_M, prepend=-1))
  for start in starts:
    pair, choice = divmod(int(slot_M[start]), 2)
    if pair < len(indices):
      values = token_values[indices[pair]][choice]
      value_M[start : start + len(values)] = values
  return value_ARM


def shuffled(count, seed):
  """Endless sequence of the places of so many examples, by epochs.

  Every epoch has its own order, which follows from the seed.
  """
  return grain.MapDataset.range(count).seed(seed).shuffle().repeat()


def mixed(weights, file_N, seed):
  """Endless sequence of places, each file as often as its weight says.

  Files take turns, as evenly as their weights allow; each has its own epochs,
  of an order that follows from the seed.

  Args:
    weights: of each file, positive.
    file_N: which file each example is of; every file has one.
    seed: of the shuffles.
  """
  orders = [
    grain.MapDataset.source(np.flatnonzero(file_N == number))
    .seed(seed + number)
    .shuffle()
    .repeat()
    for number in range(len(weights))
  ]
  return grain.MapDataset.mix(orders, weights)


def training_batches(
  views, packing, *, seed, start=0, known=NOTHING, file_weights=None
):
  """Endless iterator over (step from start + 1, (rows per view, given)).

  Args:
    views: one list of Encoded per tokenizer, aligned over pairs.
    packing: Packing.
    seed: of the shuffle; every epoch has its own order.
    start: steps already done; any step is reached without replaying others.
    known: Known of the same pairs.
    file_weights: (weights, file_N) of `mixed`; None: all pairs alike.
  """
  order = shuffled(len(views[0]), seed)
  if file_weights is not None:
    order = mixed(*file_weights, seed)
  size = packing.batch
  # Grain's own batches of endless data have a length that, for batches of one,
  # no machine's integer holds.
  steps = grain.MapDataset.range(start, sys.maxsize // size)

  def batch(step):
    places = range(step * size, (step + 1) * size)
    return _batch(views, packing, np.array([order[i] for i in places]), known)

  batches = steps.map(batch)
  reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
  return enumerate(batches.to_iter_dataset(reading), start + 1)


def evaluation_batches(views, packing, *, known=NOTHING):
  """(indices, batch) of every pair once, in order; the last may hold fewer."""
  for first in range(0, len(views[0]), packing.batch):
    indices = np.arange(first, min(first + packing.batch, len(views[0])))
    yield indices, _batch(views, packing, indices, known)


def _batch(views, packing, indices, known):
  rows = packing.of(views, indices)
  return rows, known.of(packing, indices, rows)
