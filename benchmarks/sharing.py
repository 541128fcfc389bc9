# SPDX-License-Identifier: Apache-2.0
"""What each part of the packed layout is worth: our step without it, in turns.

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
from mrpo_jax.data import loader, pack

TOLERANCE = 1e-3  # between the losses of two layouts


def rows_together(pairs, slots, *, length, batch):
  """Packed into rows, one row at a time."""
  return pack.pack(pairs, length=length, batches=batch, slots=slots)


def rows_apart(pairs, slots, *, length, batch):
  """One row each, one row at a time."""
  rows = [
    pack.pack([pair], length=length, slots=slots[n : n + 1])
    for n, pair in enumerate(pairs)
  ]
  return jax.tree.map(lambda *arrays: np.concatenate(arrays), *rows)


def rows_at_once(pairs, slots, *, length, batch):
  """One row each, all rows at once, as a padded batch."""
  rows = rows_apart(pairs, slots, length=length, batch=batch)
  return jax.tree.map(lambda array_ART: array_ART.swapaxes(0, 1), rows)


def whole(pairs):
  """(pairs, slots): the prompt of a pair once."""
  return pairs, 2 * np.arange(len(pairs))


def halves(pairs):
  """(responses, slots): each response with a prompt of its own."""
  responses = [
    dataclasses.replace(pair, chosen_ids=ids, rejected_ids=[])
    for pair in pairs
    for ids in (pair.chosen_ids, pair.rejected_ids)
  ]
  return responses, np.arange(len(responses))


@dataclasses.dataclass(frozen=True)
class Layout(loader.Packing):
  """Rows of one view, laid out by the functions given."""

  split: object = whole
  lay_out: object = rows_together

  def of(self, views, indices):
    found = []
    for view in views:
      parts, slots = self.split([view[i] for i in indices])
      size = dict(length=self.length, batch=2 * self.batch)
      found.append((self.lay_out(parts, slots, **size),))
    return tuple(found)


def laid_out(setup, *, split=whole, lay_out=rows_together, length=None):
  """The set-up with another layout of the rows."""
  length = length or setup.packing.length
  packing = Layout(setup.packing.batch, length, 1, split=split, lay_out=lay_out)
  return dataclasses.replace(setup, packing=packing)


def one_chunk(setup):
  """The set-up with a head that projects a row onto the vocabulary at once."""

  def whole_rows(model):
    sizes = {"chunk": setup.packing.length}
    sizes["vocabulary"] = model.config.vocab_size
    return dataclasses.replace(model, head=tuple(sizes.items()))

  objective = dataclasses.replace(
    setup.objective,
    policy=whole_rows(setup.objective.policy),
    references=tuple(map(whole_rows, setup.objective.references)),
  )
  return dataclasses.replace(setup, objective=objective)


def variants():
  """{name: SetUp -> SetUp}."""
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
