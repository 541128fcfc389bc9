# SPDX-License-Identifier: Apache-2.0
"""Scores of a run's references and rewards: what it reads, and fills in."""

import dataclasses
import logging
import signal

import numpy as np

from mrpo_jax import parallel, processes
from mrpo_jax.data import encode, source
from mrpo_jax.data.tokenizer import tokenizer_fingerprint
from mrpo_jax.errors import InputError
from mrpo_jax.files import path_of
from mrpo_jax.online.rewards import Combination
from mrpo_jax.references import rewards as reward_columns
from mrpo_jax.references import score
from mrpo_jax.references.rewards import RewardColumn
from mrpo_jax.references.score import known_of
from mrpo_jax.references.store import MissingRows, Store
from mrpo_jax.runs.ahead import compile_to_fit
from mrpo_jax.runs.data import load_pairs
from mrpo_jax.runs.inference.reward import material_of, named_reward
from mrpo_jax.runs.models import abstract_models, load_reference
from mrpo_jax.runs.setup import Setup, set_up

logger = logging.getLogger(__name__)

FOLDER = "store"  # in the workdir, unless the command names another


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
        done = reward_columns.fill(
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
    if self.setup.method.reads_quantiles:
      self._check_quantiles(split, total)
    return [total[n : n + 2] for n in range(0, len(total), 2)]

  def _check_quantiles(self, split, total):
    """InputError for the first reward that is no quantile."""
    for place, value in enumerate(total):
      if not 0 <= value <= 1:
        pair = self.setup.tables[split].places[place // 2]
        raise InputError(
          f"{getattr(self.setup.config.data, split)}: pair {pair} has the "
          f"reward {value:.3g}, but config.loss.name="
          f"{self.setup.config.loss.name!r} reads quantiles among the "
          "reference's own, from 0 to 1: score those in config.data.rewards"
        )

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


@dataclasses.dataclass(frozen=True)
class ScorePlan:
  """Which references of a run are scored over which splits, into what."""

  setup: Setup
  stores: dict  # reference's name -> Store
  splits: dict  # reference's name -> splits whose scores the run reads
  rewards: RewardPlan

  @classmethod
  def of(cls, setup, store, *, fresh):
    """The ScorePlan of a run.

    Args:
      setup: setup.Setup.
      store: folder as given to the command; "" is the workdir's own.
      fresh: does the run start at step 0?  Then the method measures first.
    """
    config, method, tokenizers = setup.config, setup.method, setup.tokenizers
    root = path_of(store) if store else setup.workdir / FOLDER
    measures = method.measures if fresh else ()
    stores, splits = {}, {}
    for name in config.references.names:
      described = setup.described[name]
      tokenizer = tokenizers.views[tokenizers.view_of[name]]
      stores[name] = Store(
        root,
        _material(config, described, tokenizer),
        per_token=method.token_weight is not None,
      )
      splits[name] = [
        split
        for split in setup.tables
        if split in measures or described.model.scored and split != "validation"
      ]
    return cls(setup, stores, splits, RewardPlan.of(setup, root))

  def missing(self):
    """{(name, split): how many pairs process 0 does not find in the store}."""
    counts = []
    for name, splits in self.splits.items():
      known = self.stores[name].known() if splits else ()
      for split in splits:
        rows = set(self.setup.tables[split].fingerprints)
        counts.append((name, split, len(rows.difference(known))))
    counts = processes.gather(counts)[0]
    return {(name, split): count for name, split, count in counts if count}

  def refuse_missing(self, command):
    """Refuses what is not scored, naming `command`, the flags of `mrpo score`.

    None refuses nothing.
    """
    missing = self.missing() if command is not None else None
    if missing:
      (name, split), count = next(iter(missing.items()))
      raise InputError(
        f"{count} pairs of {split} are not scored under reference {name!r}; "
        f"run first: mrpo score {command}"
      )
    missing = self.rewards.missing() if command is not None else None
    if missing:
      (name, split), count = next(iter(missing.items()))
      raise InputError(
        f"{count} pairs of {split} have no reward {name!r}; run first: mrpo "
        f"score {command}"
      )

  def fill(self, *, part=(0, 1)):
    """Scores what is missing, one reference in memory at a time.

    Raises:
      InputError: the devices cannot hold one; before the first is scored; or a
        reward fails.
      OSError: nothing can be written into the store; before a model is read.
    """
    self.rewards.fill(part=part)
    mesh, packing = self.setup.mesh, _for_scores(self.setup.packing)
    missing = self.missing()
    names = list(dict.fromkeys(name for name, _ in missing))
    steps = {name: self._ahead(name) for name in names}
    for name in names if processes.is_first() else ():
      self.stores[name].begin()

    def place(views):
      return [parallel.global_rows(view, mesh) for view in views]

    for name in names:
      one = self.setup.described[name]
      params = load_reference(one, mesh)
      for split in self.splits[name]:
        if (name, split) not in missing:
          continue
        table = self.setup.tables[split]
        scored = score.score(
          self.stores[name],
          table.fingerprints,
          table.views[one.model.view],
          steps[name],
          params,
          packing=packing,
          place=place,
          part=part,
          title=f"scoring {split} under {one.section.key}:",
        )
        logger.info(f"{one.section.key}: scored {scored} pairs of {split}")
      del params
    processes.gather(None)  # all is written

  def _ahead(self, name):
    """The scoring step of a reference as ahead.Ahead."""

    def step_of(setup):
      per_token = self.stores[name].per_token
      one = setup.described[name]
      return abstract_scoring_step(
        one, setup.mesh, setup.packing, per_token=per_token
      )

    what = f"the scoring step of {self.setup.described[name].section.key}"
    return compile_to_fit(what, step_of, self.setup, scored=name)

  def read(self, name, split):
    """Scores of every pair of the split, in its order.

    Raises:
      InputError: some are not there, or there as single responses are, of which
        the other one has no tokens.
    """
    table, store = self.setup.tables[split], self.stores[name]
    try:
      found = store.read(table.fingerprints)
    except MissingRows as error:
      count, place = len(error.indices), table.places[error.indices[0]]
      origin = getattr(self.setup.config.data, split)
      raise InputError(
        f"{origin}: {count} of {len(table.places)} pairs "
        f"are not scored under reference {name!r}, the first is pair {place}; "
        "run mrpo score"
      ) from None
    empty_P = (found.token_PC == 0).any(axis=1)
    if empty_P.any() and not self.setup.method.unpaired:
      raise InputError(
        f"{store.folder}: {empty_P.sum()} pairs of {split} have a response "
        "without tokens there, as single responses have; the first is pair "
        f"{table.places[int(np.argmax(empty_P))]}; `mrpo store prune` with "
        f"{store.key[:16]} removes all scores under this reference, then run "
        "mrpo score"
      )
    return found

  def known(self, split):
    """batches.Known of the split: what the step reads of scored references."""
    table, names = self.setup.tables[split], self.setup.config.references.names
    characters = [one.characters for one in table.views[0]]
    scores = {
      k: self.read(name, split)
      for k, name in enumerate(names)
      if self.setup.described[name].model.scored
    }
    weights = table.weights if self.setup.method.mixing.by_pair else None
    rewards = self.rewards.read(split) if self.setup.rewards else None
    labels = table.labels if self.setup.method.unpaired else None
    return known_of(characters, scores, len(names), weights, rewards, labels)

  def measured(self, split):
    """The arguments of `Method.measure`: every reference on one split."""
    names = self.setup.config.references.names
    scores = [self.read(name, split) for name in names]
    return {
      "ref_logp_NCK": np.stack([one.logp_PC for one in scores], -1),
      "ref_length_NCK": np.stack([one.token_PC for one in scores], -1),
      "character_NC": scores[0].character_PC,
    }


def abstract_scoring_step(one, mesh, packing, *, per_token, rows=None):
  """(jitted scoring step of a reference, its abstract arguments).

  Args:
    one: models.Described.
    mesh: of the devices to compute on; they need not be here.
    packing: batches.Packing.
    per_token: does the store take what each token gets?
    rows: of a view; None: those of no pair, which are as large.
  """
  packing = _for_scores(packing)
  (rows,) = packing.whole().of([[]], ()) if rows is None else (rows,)
  online = dataclasses.replace(one.model, scored=False)
  described = dataclasses.replace(one, model=online)
  (loaded,) = abstract_models({"": described}, mesh).values()
  step = score.compile_figures(
    one.model.config, packing.batch, per_token, one.model.computation
  )
  to = parallel.rows_sharding(mesh)
  return step, (loaded.params, parallel.abstract(rows, to))


def score_run(
  config,
  workdir,
  *,
  store="",
  part=(0, 1),
  allow_changed=False,
):
  """Scores what `train_run` of the same config would, and stops there."""
  if processes.several():  # jax has taken the signal for itself
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
  setup = set_up(config, path_of(workdir), allow_changed=allow_changed)
  scores = ScorePlan.of(setup, store, fresh=True)
  if not any(scores.splits.values()) and not setup.rewards:
    raise InputError(
      "no reference has config.references.<name>.mode='scored', and "
      "config.data.rewards names no reward, so there is nothing to score"
    )
  scores.fill(part=part)
  for name, one in scores.stores.items():
    if scores.splits[name]:
      key = setup.described[name].section.key
      logger.info(f"{key}: {len(one.known())} pairs in {one.folder}")
  for name, column in scores.rewards.columns.items():
    logger.info(
      f"data.rewards.{name}: {len(column.known())} pairs in {column.folder}"
    )


def score_rewards(text, named, root, *, timeout, part=(0, 1)):
  """Fills the column of one reward over whole files; see `mrpo score`.

  Args:
    text: the reward, as `named_reward` takes it.
    named: {words for a file: its list of PreferencePair}.
    root: folder of the store.
    timeout: seconds that a command may take for an answer.
    part: share of the work; see `references.rewards.fill`.
  """
  reward = named_reward(text, flag="--reward", timeout=timeout)
  column = RewardColumn(path_of(root), material_of(reward, {}))
  for where, pairs in named.items():
    ids = [source.pair_id(pair) for pair in pairs]
    done = reward_columns.fill(
      column, reward, pairs, ids, part=part, title=f"rewards of {where}:"
    )
    logger.info(f"{text}: rewarded {done} pairs of {where}")
  logger.info(f"{text}: {len(column.known())} pairs in {column.folder}")


def _material(config, described, tokenizer):
  """Key material of a reference's store: all that its figures depend on."""
  base = described.section.base
  compute = config.policy.compute or base.dtype
  narrowed = "" if compute == base.dtype else f", computed in {compute}"
  return {
    "weights": described.identity,
    "dtype": base.dtype + narrowed,
    "quantize": base.quantize,
    "vocab_size": described.model.config.vocab_size,
    "tokenizer": tokenizer_fingerprint(tokenizer),
    "template": encode.chat_template(tokenizer),
    "max_prompt": config.data.max_prompt,
    "max_response": config.data.max_response,
  }


def _for_scores(packing):
  return dataclasses.replace(packing, mark_differences=False)
