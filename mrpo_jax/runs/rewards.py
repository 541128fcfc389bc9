# SPDX-License-Identifier: Apache-2.0
"""Rewards of a run's pairs: columns that it reads from the store, and fills."""

import dataclasses
import logging
import pathlib

from mrpo_jax import processes
from mrpo_jax.data import source
from mrpo_jax.errors import InputError
from mrpo_jax.online.rewards import Combination
from mrpo_jax.references import rewards as columns
from mrpo_jax.references.rewards import RewardColumn
from mrpo_jax.references.store import MissingRows
from mrpo_jax.runs.data import load_pairs
from mrpo_jax.runs.inference.reward import material_of, named_reward
from mrpo_jax.runs.setup import Setup

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RewardPlan:
  """Which rewards of a run's pairs it reads, from which columns."""

  setup: Setup
  columns: dict  # name of a reward -> RewardColumn

  @classmethod
  def of(cls, setup, root):
    """The RewardPlan of a run; `root` is the folder of its store."""
    sections = dict(setup.config.data.rewards.items())
    found = {
      name: RewardColumn(root, material_of(reward, sections[name].options))
      for name, reward in setup.rewards.items()
    }
    return cls(setup, found)

  def missing(self):
    """{(name, split): how many pairs process 0 does not find in the store}."""
    counts = []
    for name, column in self.columns.items():
      known = column.known()
      for split in self._splits():
        rows = {*self.setup.tables[split].ids}
        counts.append((name, split, len(rows - known)))
    counts = processes.gather(counts)[0]
    return {(name, split): count for name, split, count in counts if count}

  def fill(self, *, part=(0, 1)):
    """Asks the rewards for what is missing."""
    missing = self.missing()
    for split in self._splits():
      names = [name for name in self.columns if (name, split) in missing]
      pairs = self._pairs(split) if names else []
      for name in names:
        done = columns.fill(
          self.columns[name],
          self.setup.rewards[name],
          pairs,
          self.setup.tables[split].ids,
          part=part,
          title=f"rewards {name} of {split}:",
        )
        logger.info(f"data.rewards.{name}: rewarded {done} pairs of {split}")

  def read(self, split):
    """reward_NC: the weighted sum of the rewards, of every pair in order."""
    table, parts = self.setup.tables[split], {}
    for name, column in self.columns.items():
      try:
        parts[name] = column.read(table.ids).reshape(-1).tolist()
      except MissingRows as error:
        place = table.places[error.indices[0]]
        raise InputError(
          f"{getattr(self.setup.config.data, split)}: {len(error.indices)} of "
          f"{len(table.ids)} pairs have no reward {name!r}, the first is pair "
          f"{place}; run mrpo score"
        ) from None
    weights = {
      name: one.weight for name, one in self.setup.config.data.rewards.items()
    }
    total = Combination(self.setup.rewards, weights).total(parts)
    logger.info(
      f"rewards of {split}: {min(total):.3g} to {max(total):.3g}, mean "
      f"{sum(total) / len(total):.3g}"
    )
    return [total[n : n + 2] for n in range(0, len(total), 2)]

  def _splits(self):
    return [split for split in self.setup.tables if split != "validation"]

  def _pairs(self, split):
    """The pairs of a table, read again: a run does not keep their texts."""
    table = self.setup.tables[split]
    whole = load_pairs(self.setup.config, (split,))[split]
    found = [whole[place] for place in table.places if place < len(whole)]
    if [source.pair_id(pair) for pair in found] != table.ids:
      raise InputError(
        f"{getattr(self.setup.config.data, split)} has changed since the run "
        "started; start it again"
      )
    return found


def score_rewards(text, named, root, *, timeout, part=(0, 1)):
  """Fills the column of one reward over whole files; see `mrpo score`.

  Args:
    text: the reward, as `named_reward` takes it.
    named: {words for a file: its list of PreferencePair}.
    root: folder of the store.
    timeout: seconds that a command may take for an answer.
    part: share of the work; see `columns.fill`.
  """
  reward = named_reward(text, flag="--reward", timeout=timeout)
  column = RewardColumn(pathlib.Path(root), material_of(reward, {}))
  for where, pairs in named.items():
    ids = [source.pair_id(pair) for pair in pairs]
    done = columns.fill(
      column, reward, pairs, ids, part=part, title=f"rewards of {where}:"
    )
    logger.info(f"{text}: rewarded {done} pairs of {where}")
  logger.info(f"{text}: {len(column.known())} pairs in {column.folder}")
