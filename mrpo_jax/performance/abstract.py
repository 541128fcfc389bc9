# SPDX-License-Identifier: Apache-2.0
"""The batches of pairs that a plan assumes, and which references it scores.

What memory a step takes does not depend on the data; how long it takes does,
and comes from batches of pairs of assumed lengths that are packed as a run
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
from mrpo_jax.models.attention.expansion import expansion
from mrpo_jax.models.attention.layout import RowLayout
from mrpo_jax.runs.config import Folder

LAYOUT = ("positions", "segments", "branches")  # of layout.RowLayout
SPREAD = (0.5, 1.5)  # lengths of the assumed pairs, of their means
DRAWS = 8  # batches: of one alone the last micro-batch is full or empty by luck
LOOPS = re.compile(
  r"micro_batches_of_(?P<tokens>\d+)|\bblocks_of_experts_(?P<blocks>\d+)"
  r"|\b(?P<name>head_gradient|head|blockwise_gradient|blockwise|cudnn_packed)\b"
)


@dataclasses.dataclass(frozen=True)
class Assumed:
  """Batches of pairs of assumed lengths, and how long they keep each loop."""

  draws: list  # of each batch, per view, the rows as the step takes them
  # (tokens of a row, name of the loop) -> how often it runs on average; of
  # "cudnn_packed" the share of its products that are computed
  trips: dict

  @property
  def rows(self):
    """Those of one batch: all have the same shapes."""
    return self.draws[0]

  def mean(self, figure):
    """The mean of a figure of one batch's rows over all of them."""
    return float(np.mean([figure(views) for views in self.draws]))

  def of(self, scope):
    """What the data decide of that scope, see `hlo_work.work`; or None."""
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
  """The Assumed batches of a run.

  Args:
    setup: setup.Setup.
    lengths: (prompt, response), means in tokens.

  Raises:
    InputError: a pair of such lengths does not fit a row.
  """
  limits = data_limits(setup.config.data)
  if lengths[0] > limits[0] or lengths[1] > limits[1]:
    raise InputError(
      f"--lengths={lengths[0]},{lengths[1]}: longer than "
      f"config.data.max_prompt={limits[0]} and max_response={limits[1]} let be"
    )
  draws = []
  for seed in range(DRAWS):
    length_N3 = drawn_lengths(setup, lengths, seed)
    if length_N3.sum(1).max() > setup.packing.length:
      raise InputError(
        f"--lengths={lengths[0]},{lengths[1]}: some pairs are longer than "
        f"config.data.row_length={setup.packing.length}"
      )
    pairs = [Encoded(*([0] * n for n in one)) for one in length_N3.tolist()]
    views = [pairs] * setup.objective.views
    draws.append(setup.packing.of(views, np.arange(len(pairs))))
  shards, chunk = parallel.row_shards(setup.mesh), setup.config.policy.chunk
  found = {}  # key -> (value, weight) of each draw
  for views in draws:
    for part in views[0]:
      one = _trips(part, 2 * setup.config.batch, shards, chunk)
      T = part.tokens_RT.shape[-1]
      used = one[T, "micro_batches"]
      for key, value in one.items():
        weight = 1 if key[1] == "micro_batches" else used
        found.setdefault(key, []).append((value, weight))
  trips = {}
  for key, some in found.items():
    values, weights = zip(*some, strict=True)
    trips[key] = float(np.dot(values, weights) / max(1, sum(weights)))
  return Assumed(draws, trips)


def data_limits(data):
  """Tokens of prompt, chosen and rejected at most."""
  return data.max_prompt, data.max_response, data.max_response


def drawn_lengths(setup, lengths, seed):
  """length_N3: tokens of prompt, chosen and rejected of a drawn batch."""
  batch = setup.config.batch
  most = np.array(data_limits(setup.config.data))
  mean = np.array([lengths[0], lengths[1], lengths[1]])
  spread = np.random.default_rng(seed).uniform(*SPREAD, (batch, 3))
  length_N3 = np.clip(np.round(mean * spread).astype(int), 1, most)
  method = setup.method
  if method.supervised or method.unpaired and not method.mismatched:
    length_N3[:, 2] = 0
  return length_N3


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
    (T, "cudnn_packed"): _share_seen(rows, used),
    (T, "micro_batches"): used,
    (T, "head"): float(np.mean(chunks_A)) if used else 0,
    (T, "blockwise"): float(np.mean(blocks_A)) if used else 0,
  }


def _share_seen(rows, used):
  """Share of queries with keys that are causal within expanded rows' pairs.

  Of rows [A, R, T] of which the first `used` micro-batches are run.
  """
  layout = RowLayout(
    *(
      np.concatenate(getattr(rows, f"{name}_RT")[: max(used, 1)])
      for name in LAYOUT
    )
  )
  segments_RX = expansion(layout).segments_RX
  seen, (R, X) = 0, segments_RX.shape
  for segments_X in np.asarray(segments_RX):
    length_N = np.bincount(segments_X)[1:]
    seen += (length_N * (length_N + 1) // 2).sum()
  return float(seen / (R * X * X))


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
