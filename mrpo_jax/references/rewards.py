# SPDX-License-Identifier: Apache-2.0
"""Rewards of pairs: a column of the store for each reward, filled once."""

import dataclasses
import pathlib

import numpy as np
import pyarrow as pa

from mrpo_jax import files, processes
from mrpo_jax.data.chat import messages
from mrpo_jax.errors import InputError
from mrpo_jax.progress import Progress
from mrpo_jax.references.score import known_to_all, missing_batches
from mrpo_jax.references.store import (
  CHOICES,
  LAYOUTS,
  REWARD,
  REWARD_COLUMNS,
  REWARDS,
  begin_table,
  key_of,
  known_pairs,
  rows_of,
  write_table,
)

BLOCK = 512  # pairs that a reward is asked for at once


@dataclasses.dataclass(frozen=True)
class RewardColumn:
  """What one reward gives to the responses of pairs, beside scores.

  Rows are found by the pair as the data have it, not by where a run cuts it:
  runs of any tokenizer share them.  Nothing is made on disk before `begin` or
  `write`.
  """

  root: str | pathlib.Path
  material: dict  # the reward, its options and program

  @property
  def folder(self):
    return files.path_of(self.root) / key_of(self.material)

  def known(self):
    """The fingerprints of all pairs that `read` would find."""
    return known_pairs(self.folder, REWARDS)

  def begin(self):
    """See `store.begin_table`."""
    begin_table(self.folder, self.material, REWARD_COLUMNS)

  def write(self, pairs, reward_PC):
    """Adds one file; of a pair that is repeated the first row counts.

    Raises:
      ValueError: a reward that is not finite, or arrays of other shapes.
    """
    reward_PC = np.asarray(reward_PC, np.float64)
    if reward_PC.shape != (len(pairs), len(CHOICES)):
      raise ValueError(f"{len(pairs)} pairs, rewards {reward_PC.shape}")
    if not np.isfinite(reward_PC).all():
      raise ValueError("a reward is not finite")
    columns = {"pair": pairs} | {
      f"{REWARD}_{choice}": reward_PC[:, c] for c, choice in enumerate(CHOICES)
    }
    table = pa.table(columns, schema=LAYOUTS[REWARDS])
    write_table(self.folder, self.material, REWARD_COLUMNS, table)

  def read(self, pairs):
    """reward_PC, float64, of the pairs in their order; repeats are fine.

    Raises:
      MissingRows: not all of them are here.
    """
    table = rows_of(self.folder, REWARDS, pairs)
    columns = [table[f"{REWARD}_{choice}"].to_numpy() for choice in CHOICES]
    return np.stack(columns, axis=1)


def fill(column, reward, pairs, fingerprints, *, part=(0, 1), title="rewards"):
  """Asks for what the column lacks, and writes it.

  A reward is asked for a block of neighbours, of which those count that are
  missing; a command is started for each block.  Blocks depend on the data
  alone: one that was killed is asked for again, with the same neighbours.

  Args:
    column: RewardColumn of the reward.
    reward: (prompts, responses) -> floats.
    pairs: list of PreferencePair.
    fingerprints: `source.pair_id` of each.
    part: (i, n) does blocks i, i + n, ... only.
    title: what to call the work while it goes on.

  Returns:
    For how many pairs the reward was asked.

  Raises:
    InputError: a pair has responses that no reward is for, before the first is
      asked for; or the reward fails, and what was written before stays.
    OSError: nothing can be written.
  """
  known = known_to_all(column, fingerprints)
  blocks = list(missing_batches(known, fingerprints, BLOCK, part))
  total = sum(map(len, blocks))
  for place in (place for places in blocks for place in places):
    _responses(pairs[place], place)
  if blocks and processes.is_first():
    column.begin()  # an answer that nobody can keep would be asked for in vain
  with Progress(title, total, "pairs") as progress:
    for places in blocks:
      if processes.is_first():
        _fill_block(column, reward, pairs, fingerprints, places)
      processes.gather(None)  # all wait for it, and see it
      progress.update(len(places))
  return total


def _fill_block(column, reward, pairs, fingerprints, places):
  prompts, responses = [], []
  for place in places:
    prompts += [pairs[place].prompt] * len(CHOICES)
    responses += _responses(pairs[place], place)
  found = reward(prompts, responses)
  reward_PC = np.reshape(found, (len(places), len(CHOICES)))
  column.write([fingerprints[place] for place in places], reward_PC)


def _responses(pair, place):
  """[chosen, rejected] as texts, or InputError where no reward is for them."""
  if pair.tools:
    raise InputError(f"pair {place} has tools, which rewards are not told of")
  if pair.rejected is None:
    raise InputError(f"pair {place} has no rejected response")
  found = [messages.one_text(one) for one in (pair.chosen, pair.rejected)]
  if None in found:
    raise InputError(
      f"pair {place}: the {CHOICES[found.index(None)]} response is more than "
      "one turn of text, and rewards are of one; leave the row out"
    )
  return found
