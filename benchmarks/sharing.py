# SPDX-License-Identifier: Apache-2.0
"""Ablation of the packed layout: our step without each part of it, in turns.

  python -m benchmarks.sharing --workdir=/tmp/sharing --shape=A

The same pairs, weights and loss, one online reference.  No option of the
library: the rows are laid out here, and the library computes what it is given.
"""

import dataclasses
import functools
import json

import jax
import numpy as np

from benchmarks import material, turns, vs_trl
from benchmarks.peers import ours
from mrpo_jax.data import pack
from mrpo_jax.data.batches import Packing

TOLERANCE = 1e-3  # between the losses of two layouts


def whole(pair, slot):
  """[(encoded, slot)]: the prompt of a pair once."""
  return [(pair, slot)]


def halves(pair, slot):
  """The same: each response with a prompt of its own."""
  return [
    (dataclasses.replace(pair, chosen_ids=ids, rejected_ids=[]), slot + choice)
    for choice, ids in enumerate((pair.chosen_ids, pair.rejected_ids))
  ]


def rows_together(pairs, length, batch):
  """Packed into rows, one row at a time."""
  sizes = [sum(pack.size(part) for part, _ in parts) for parts in pairs]
  row_of = pack.first_fit(sizes, length)
  rows = [[] for _ in range(batch)]
  for parts, row in zip(pairs, row_of, strict=True):
    rows[row] += parts  # all of a pair in one: its loss takes both responses
  return _joined([_row(parts, length) for parts in rows], axis=0)


def rows_apart(pairs, length, batch):
  """One row for each part; those of a pair at a time."""
  return _joined([_rows(parts, length) for parts in pairs], axis=0)


def rows_at_once(pairs, length, batch):
  """One row for each part, all of them at once, as a padded batch."""
  return _joined([_rows(parts, length) for parts in pairs], axis=1)


def _row(parts, length):
  encoded = [part for part, _ in parts]
  slots = np.array([slot for _, slot in parts], int)
  return pack.pack(encoded, length=length, batches=1, slots=slots)


def _rows(parts, length):
  return _joined([_row([part], length) for part in parts], axis=1)


def _joined(rows, axis):
  return jax.tree.map(lambda *ART: np.concatenate(ART, axis), *rows)


@dataclasses.dataclass(frozen=True)
class Layout(Packing):
  """Rows of one view, laid out by the functions given."""

  split: object = whole
  lay_out: object = rows_together

  def of(self, views, indices):
    found = []
    for view in views:
      pairs = [self.split(view[i], 2 * n) for n, i in enumerate(indices)]
      found.append((self.lay_out(pairs, self.length, self.batch),))
    return tuple(found)


def laid_out(setup, *, split=whole, lay_out=rows_together, length=None):
  """The set-up with another layout of the rows."""
  length = length or setup.packing.length
  packing = Layout(setup.packing.batch, length, 1, split=split, lay_out=lay_out)
  return dataclasses.replace(setup, packing=packing)


def one_chunk(setup):
  """The set-up with a head that projects a row onto the vocabulary at once."""

  def whole_rows(model):
    computation = dataclasses.replace(
      model.computation,
      chunk=setup.packing.length,
      vocabulary=model.config.vocab_size,
    )
    return dataclasses.replace(model, computation=computation)

  objective = dataclasses.replace(
    setup.objective,
    policy=whole_rows(setup.objective.policy),
    references=tuple(map(whole_rows, setup.objective.references)),
  )
  return dataclasses.replace(setup, objective=objective)


def variants():
  """{name: Setup -> Setup}."""
  alone = dict(split=halves, length=material.LONGEST)
  return {
    "as trained": None,
    "head in one chunk": one_chunk,
    "no short rows": laid_out,
    "prompt twice": functools.partial(laid_out, split=halves),
    "a pair per row": functools.partial(laid_out, lay_out=rows_apart),
    "a response per row": functools.partial(
      laid_out, lay_out=rows_apart, **alone
    ),
    "a padded batch": functools.partial(
      laid_out, lay_out=rows_at_once, **alone
    ),
  }


def main():
  given = vs_trl.parser(__doc__).parse_args()
  job = json.loads(vs_trl.prepared(given).read_text())
  players = [
    turns.Local(
      name,
      functools.partial(ours.player, job, change=change),
      work_of="as trained",  # rows with a prompt twice would count it twice
    )
    for name, change in variants().items()
  ]
  replies = vs_trl.tell(given, players)
  losses = {
    name: np.array([one["losses"] for one in mine])
    for name, mine in replies.items()
  }
  for name, mine in losses.items():
    apart = np.abs(mine - losses["as trained"]).max()
    if apart > TOLERANCE:
      raise SystemExit(f"error: {name}: losses are {apart:.1e} apart")


if __name__ == "__main__":
  main()
