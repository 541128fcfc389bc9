# SPDX-License-Identifier: Apache-2.0
"""The batch of pairs that a plan assumes, and which references it scores.

What memory a step takes does not depend on the data; how long it takes does,
and comes from a batch of pairs of assumed lengths that is packed as a run
packs its own.
"""

import dataclasses
import re

import numpy as np

from mrpo_jax import parallel
from mrpo_jax.data.encode import Encoded
from mrpo_jax.errors import InputError
from mrpo_jax.models import head
from mrpo_jax.models.attention import blockwise
from mrpo_jax.models.attention.layout import RowLayout
from mrpo_jax.runs.config import Folder

LAYOUT = ("positions", "segments", "branches")  # of layout.RowLayout
SPREAD = (0.5, 1.5)  # lengths of the assumed pairs, of their means
LOOPS = re.compile(
  r"micro_batches_of_(?P<tokens>\d+)|\bblocks_of_experts_(?P<blocks>\d+)"
  r"|\b(?P<name>head_gradient|head|blockwise_gradient|blockwise)\b"
)


@dataclasses.dataclass(frozen=True)
class Assumed:
  """A batch of pairs of assumed lengths, and how long it keeps each loop."""

  rows: tuple  # per view, as the step takes them
  trips: dict  # (tokens of a row, name of the loop) -> how often it runs

  def of(self, scope):
    """Trip count of a loop of that scope, where the data decide; or None."""
    tokens = name = None
    for found in LOOPS.finditer(scope):
      if found["blocks"]:  # what the program itself says, see `models.grouped`
        return int(found["blocks"])
      if found["tokens"]:
        tokens, name = int(found["tokens"]), "micro_batches"
      else:
        name = found["name"].removesuffix("_gradient")
    return self.trips.get((tokens, name))


def assume(setup, lengths):
  """The Assumed batch of a run.

  Args:
    setup: setup.Setup.
    lengths: (prompt, response), means in tokens.
  """
  data, batch = setup.config.data, setup.config.batch
  most = np.array([data.max_prompt, data.max_response, data.max_response])
  mean = np.array([lengths[0], lengths[1], lengths[1]])
  spread = np.random.default_rng(0).uniform(*SPREAD, (batch, 3))
  length_N3 = np.clip(np.round(mean * spread).astype(int), 1, most)
  method = setup.method
  if method.supervised or method.unpaired and not method.mismatched:
    length_N3[:, 2] = 0
  if length_N3.sum(1).max() > data.row_length:
    raise InputError(
      f"--lengths={lengths[0]},{lengths[1]}: some pairs are longer than "
      f"config.data.row_length={data.row_length}"
    )
  pairs = [Encoded(*([0] * n for n in counts)) for counts in length_N3.tolist()]
  views = setup.packing.of([pairs] * setup.objective.views, np.arange(batch))
  chunk = setup.config.policy.chunk
  shards, trips = parallel.row_shards(setup.mesh), {}
  for part in views[0]:
    trips |= _trips(part, 2 * batch, shards, chunk)
  return Assumed(views, trips)


def _trips(rows, slots, shards, chunk):
  """{(T, loop): how often it runs}, on the device that has most to do."""
  _, R, T = rows.tokens_RT.shape
  used = int((rows.segments_RT > 0).any(axis=(1, 2)).sum())
  chunk = min(T, chunk or head.chunk_size(R // shards, T))
  scored_AR = (rows.slots_RM[:used] < slots).sum(axis=2)
  chunks_A = -(-scored_AR.max(axis=1) // chunk)

  def counts(a, shard):
    own = slice(shard * (R // shards), (shard + 1) * (R // shards))
    layout = RowLayout(
      *(getattr(rows, f"{name}_RT")[a, own] for name in LAYOUT)
    )
    return np.mean(blockwise.block_counts(layout))

  blocks_A = [max(counts(a, n) for n in range(shards)) for a in range(used)]
  return {
    (T, "micro_batches"): used,
    (T, "head"): float(np.mean(chunks_A)) if used else 0,
    (T, "blockwise"): float(np.mean(blocks_A)) if used else 0,
  }


def scored_names(setup):
  """References that are run before the first step, alike ones once."""
  found = {}
  for name in setup.config.references.names:
    one = setup.described[name]
    if one.model.scored or setup.method.measures:
      weights = one.section.base.weights
      any_folder = None if isinstance(weights, Folder) else weights
      base = dataclasses.replace(one.section.base, weights=any_folder)
      found.setdefault((one.model, base), []).append(name)
  return list(found.values())
