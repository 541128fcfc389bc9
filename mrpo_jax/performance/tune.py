# SPDX-License-Identifier: Apache-2.0
"""The settings of a run that are fastest on a topology, by compiling them.

Only what changes numbers by rounding alone is searched: what the backward
pass keeps, rows, mesh, kernel, and whether references are scored before.  One
after another, each beside the best of those before: a search takes one or two
dozen plans, and not their product.
"""

import logging

import numpy as np

from mrpo_jax import parallel
from mrpo_jax.data import pack
from mrpo_jax.errors import InputError
from mrpo_jax.performance.abstract import DRAWS, drawn_lengths
from mrpo_jax.performance.topology import read_shape
from mrpo_jax.progress import Progress
from mrpo_jax.runs.memory import as_flags, verdict
from mrpo_jax.runs.setup import abstract_setup, mesh_of
from mrpo_jax.text import sized_bytes

logger = logging.getLogger(__name__)

UNIT = 256  # tokens: rows are multiples of them
FINEST = 16  # parts of the longest pair, by which long rows differ
LONGEST = 4  # rows: so many times the longest pair
ROWS = 1, 2, 4  # of a micro-batch on each device
NEARLY = 0.02  # of the tokens that are computed
COMPILED = 3  # shapes of rows, the fullest first
WORTH = 1.005  # so much faster than the best, or it stays
MODEL = 1, 2, 4  # sizes of the axis `model`
KERNELS = {  # beside the one that "auto" takes first
  "gpu": ("auto", "cudnn", "blockwise"),
  "tpu": ("auto", "blockwise"),
  "cpu": ("auto", "xla"),
}


def pairs_per_second(found, epochs):
  """The bound of a whole run on its pairs, or None where it is not known.

  Every pair is trained on in each epoch, and scored once.

  Args:
    found: dict of `plan.plan`.
    epochs: how often a run sees each pair.
  """
  seconds = 0.0
  for key, figures in found["steps"].items():
    if not figures.get("seconds"):
      return None
    here = 1 / figures["pairs_per_second_bound"]
    seconds += here if key == "train" else here / epochs
  return 1 / seconds


def check(target):
  """Raises InputError where nobody knows how fast these devices are."""
  if target.peak is None:
    raise InputError(
      f"--tune wants a chip whose speed is known, not {target.topology}"
    )


def tune(config, target, lengths, judge):
  """dict of the fastest settings that fit, and of all that were tried.

  Args:
    config: Config of the run.
    target: topology.Target that `check` lets pass.
    lengths: (prompt, response), means in tokens.
    judge: (Config, with scoring steps?) -> dict of `plan.plan`; InputError
      where there is no such run.

  Returns:
    `flags`, `plan` and `pairs_per_second` (of the train step) of the best, None
    where nothing fits; `tried`: a dict for each.
  """
  search = _Search(config, judge, _count(config, target))
  with search.progress:
    search.attempt({})
    for flags in _remats(config):
      search.attempt(flags)
    for flags in _shapes(config, target, lengths):
      search.attempt(flags)
    for mesh in _meshes(config, target):
      search.attempt(mesh | _fullest(config.changed(mesh), target, lengths))
    for flags in _kernels(config, target):
      search.attempt(flags)
    for flags in _modes(config):
      search.attempt_whole(flags)
    # What was freed may now hold more.
    for flags in _remats(search.best):
      search.attempt(flags)
    return search.outcome()


def _count(config, target):
  """Plans that are made, at most."""
  axes = [_remats(config)] * 2 + [_modes(config)] * 2
  axes += [axis(config, target) for axis in (_meshes, _kernels)]
  return 2 + COMPILED + sum(len(list(flags)) for flags in axes)


class _Search:
  """The best so far, and what was tried."""

  def __init__(self, config, judge, count):
    self._config, self._judge = config, judge
    self._flags, self._plan, self._speed = {}, None, 0.0
    self._tried, self._seen = [], []
    self.progress = Progress("tuning:", count, "plans")

  @property
  def best(self):
    return self._config.changed(self._flags)

  def attempt(self, flags):
    """Plans the best with these flags too, and keeps what is faster.

    By its train step alone: how fast scoring is follows.
    """
    flags = {**self._flags, **flags}
    found = self._planned(flags, scoring=False)
    speed = found and _speed(found)
    if speed and speed > WORTH * self._speed:
      self._flags, self._plan, self._speed = flags, found, speed
      logger.info("the best so far")

  def attempt_whole(self, flags):
    """The same of what moves work between training and scoring.

    A run that sees each pair more than once scores it once all the same.
    """
    epochs = max(self._config.epochs, 1.0)
    flags = {**self._flags, **flags}
    old = self._plan and self._planned(self._flags, scoring=True)
    new = self._planned(flags, scoring=True)
    if not new or not new["fits"] or not _speed(new):
      return
    if not old or pairs_per_second(new, epochs) > pairs_per_second(old, epochs):
      self._flags, self._plan, self._speed = flags, new, _speed(new)
      logger.info("the best so far")

  def outcome(self):
    """See `tune`: the best, unless its scoring steps do not fit."""
    others = [one for one in self._tried if one.get("train_fits")]
    others.sort(key=lambda one: -(one["pairs_per_second"] or 0))
    for flags in [self._flags, *(one["flags"] for one in others)]:
      whole = self._planned(flags, scoring=True)
      if whole and whole["fits"]:
        break
    else:
      flags, whole = None, None
    return {
      "flags": flags,
      "plan": whole,
      "pairs_per_second": whole and _speed(whole),
      "tried": self._tried,
    }

  def _planned(self, flags, scoring):
    """The plan of the config with these flags; None where there is none."""
    said = as_flags(flags) or "as it is"
    try:
      config = self._config.changed(flags)
      for seen, with_scoring, found in self._seen:
        if seen == config and with_scoring >= scoring:
          return found
      found = self._judge(config, scoring)
    except InputError as error:
      self.progress.update()
      logger.info(f"{said}: {error}")
      self._tried.append({"flags": flags, "why_not": str(error)})
      return None
    self.progress.update()
    self._seen.append((config, scoring, found))
    peak = max(one["bytes"]["peak"] for one in found["steps"].values())
    speed = pairs_per_second(_training(found), 1)
    figures = {"peak": peak, "fits": found["fits"], "pairs_per_second": speed}
    figures["train_fits"] = found["steps"]["train"]["fits"]
    self._tried.append({"flags": flags, **figures})
    is_compiled = "flops" in found["steps"]["train"]
    of = "" if is_compiled else " of weights, state and rows alone"
    bound = f", at most {speed:.1f} pairs/s" if speed and found["fits"] else ""
    logger.info(
      f"{said}: {sized_bytes(peak)}{of}, {verdict(found['fits'])}{bound}"
    )
    return found


def _speed(found):
  """The bound of its train step; None where that does not fit, or is not known.

  A plan of before the search has scoring steps too, which others are without.
  """
  if not found["steps"]["train"]["fits"]:
    return None
  return pairs_per_second(_training(found), 1)


def _training(found):
  """The plan without its scoring steps."""
  return found | {"steps": {"train": found["steps"]["train"]}}


def _remats(config):
  for remat in ("none", "dots", "full"):
    if remat != config.policy.remat:
      yield {"policy.remat": remat}


def _shapes(config, target, lengths):
  """Lengths and numbers of rows that pairs fill best, which takes no compiler.

  Rows are computed whole, so that what they do not hold is work for nothing.
  """
  config = config.changed({"data.rows": 0})  # which others may not divide
  setup = abstract_setup(config, mesh_of(config, target.devices), read_shape)
  shards = parallel.row_shards(setup.mesh)
  longest = config.data.max_prompt + 2 * config.data.max_response
  drawn = [drawn_lengths(setup, lengths, n).sum(axis=1) for n in range(DRAWS)]
  found = []
  unit = max(UNIT, longest // FINEST // UNIT * UNIT)
  first = -(-longest // unit)
  for units in range(first, max(first, LONGEST * longest // unit) + 1):
    for times in ROWS:
      rows, length = times * shards, units * unit
      shape = dict(length=length, rows=rows, few_pairs=setup.packing.few_pairs)
      tokens = np.mean(
        [pack.computed_tokens(sizes_N, **shape) for sizes_N in drawn]
      )
      flags = {"data.row_length": length, "data.rows": rows}
      found.append((tokens, rows * length, flags))
  # Of nearly the same tokens those that take the least memory.
  least = min(tokens for tokens, *_ in found)
  found.sort(key=lambda one: (round((one[0] / least - 1) / NEARLY), one[1]))
  return [flags for *_, flags in found[:COMPILED]]


def _fullest(config, target, lengths):
  """The best of `_shapes`: another mesh has other rows to fill."""
  try:
    return _shapes(config, target, lengths)[0]
  except InputError:  # there is no such mesh, as its plan will say
    return {}


def _meshes(config, target):
  """Other meshes of these devices; `context` stays as it is."""
  axes = mesh_of(config, target.devices).shape
  devices = len(target.devices) // axes["context"]
  for model in MODEL:
    if devices % model:
      continue
    rows = devices // model
    for power in range(rows.bit_length()):
      fsdp = 2**power
      if rows % fsdp or (fsdp, model) == (axes["fsdp"], axes["model"]):
        continue
      yield {
        "mesh.data": rows // fsdp,
        "mesh.fsdp": fsdp,
        "mesh.model": model,
      }


def _kernels(config, target):
  for name in KERNELS[target.devices[0].platform]:
    if name != config.policy.kernel:
      yield {"policy.kernel": name}


def _modes(config):
  """All references scored before the first step, where that saves work."""
  if config.epochs <= 1:
    return
  online = [n for n, one in config.references.items() if one.mode == "online"]
  if online:
    yield {f"references.{name}.mode": "scored" for name in online}
