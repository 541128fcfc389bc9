# SPDX-License-Identifier: Apache-2.0
"""A run whose training pairs are read and encoded as it reaches them."""

import copy
import dataclasses
import functools
import logging

import numpy as np

from mrpo_jax import files, parallel
from mrpo_jax.data.chat.sandbox import sandbox
from mrpo_jax.data.reading import oddities
from mrpo_jax.data.streaming.pair_stream import (
  START,
  Ahead,
  Encoder,
  PairStream,
  Position,
)
from mrpo_jax.data.streaming.row_blocks import opened
from mrpo_jax.data.table import Table, encode_table
from mrpo_jax.errors import InputError
from mrpo_jax.progress import stage
from mrpo_jax.references.score import known_of
from mrpo_jax.runs.config import key_of
from mrpo_jax.runs.config.data import BUFFER
from mrpo_jax.runs.data import Tokenizers, weight_column
from mrpo_jax.runs.models import larger_tokenizers, refuse_ids
from mrpo_jax.training import checkpoints

logger = logging.getLogger(__name__)

PLACE = "stream"  # of the Position, in the JSON beside a checkpoint


def check_streaming(config, method):
  """Raises InputError where a run needs all its pairs before the first step.

  Also where it does not stream, but says how.
  """
  if not config.data.streaming and config.data.shuffle_buffer != BUFFER:
    raise InputError(
      f"config.data.shuffle_buffer={config.data.shuffle_buffer} is of "
      "config.data.streaming alone: set that, or leave it out"
    )
  if config.data.streaming:
    for why in _refusals(config, method):
      raise InputError(
        f"config.data.streaming reads pairs when it reaches them: {why}"
      )


def _refusals(config, method):
  """What does not go with that, and what to do, of all there is."""
  data = config.data
  if config.online.prompts:
    yield "config.online.prompts makes its own pairs; leave streaming out"
  if config.epochs:
    yield "config.epochs needs their number beforehand; give config.steps"
  if data.fraction != 1 or data.limit:
    yield (
      "config.data.fraction and config.data.limit choose among all of them; "
      "leave them out"
    )
  if data.unpair:
    yield "config.data.unpair takes all of them; name rows that have a label"
  if data.weights:
    yield "config.data.weights needs what each file has left; leave it out"
  if data.rewards.names:
    yield "config.data.rewards are computed for all first; leave streaming out"
  for name, section in config.models().items():
    key = key_of(name)
    if section.scored:
      yield f"config.{key}.mode='scored' scores all first; set it to 'online'"
    if not section.tokenizer.folder:
      yield (
        f"config.{key} has a tokenizer trained on all of them; name a folder "
        f"in config.{key}.tokenizer"
      )
  if method.mismatched:
    yield (
      f"config.loss.name={config.loss.name!r} takes responses of other prompts "
      "from all of them; name another loss"
    )
  if method.measures:
    yield (
      "config.loss measures the references on pairs before the first step; "
      "choose other config.loss.scale and weights"
    )


@dataclasses.dataclass
class Streaming:
  """The training pairs of a run: where they are, and what encodes them."""

  tokenizers: Tokenizers  # which nobody else uses
  pairs: PairStream
  encoder: Encoder
  sample: Table  # of a few pairs

  @classmethod
  def of(cls, config, method, tokenizers):
    """Opens the files, and looks at a few pairs.

    Raises:
      InputError: there are no such files, or none that can be read by place;
        or those few pairs cannot be trained on.
    """
    data = config.data
    with stage(f"looking for the rows of {data.train}"):
      pairs = PairStream(
        data.train,
        opened(data.train, weight_column(config)),
        seed=config.seed,
        buffer=data.shuffle_buffer,
      )
    logger.info(
      f"train: {pairs.order.total:,} rows in {len(pairs.order.counts):,} blocks"
    )
    # A thread of its own encodes, while others may use those of the run.
    own = [copy.deepcopy(one) for one in tokenizers.views]
    tokenizers = dataclasses.replace(tokenizers, views=own)
    encoder = Encoder(
      own,
      data.row_length,
      dict(max_prompt=data.max_prompt, max_response=data.max_response),
      chosen_only=method.supervised,
      labelled=method.unpaired,
      conversations=data.conversations,
    )
    sample = _sampled(pairs, encoder, tokenizers, data.train)
    return cls(tokenizers, pairs, encoder, sample)

  @property
  def mark(self):
    """Hash of the files."""
    return self.pairs.mark

  def check_ids(self, described):
    """InputError where a pair has an id that a model has no embedding for.

    Of the few pairs now, of the others as they are reached.
    """
    models = larger_tokenizers(described, self.tokenizers)
    check = functools.partial(refuse_ids, models, self.tokenizers)
    if models:
      views = zip(*self.sample.views, strict=True)
      for where, encoded in zip(self.sample.places, views, strict=True):
        check(where, encoded)
      self.encoder = dataclasses.replace(self.encoder, check=check)

  def batches(self, setup, position, start):
    """Endless iterator over (step, (rows per view, given), Position after it).

    Args:
      setup: setup.Setup.
      position: Position after `start`.
      start: steps already done.
    """
    packing, every = setup.packing, np.arange(setup.packing.batch)
    K = len(setup.config.references.names)
    batches = self.pairs.batches(self.encoder, packing.batch, position)
    for step, (items, after) in enumerate(batches, start + 1):
      views = [*zip(*(one.encoded for one in items), strict=True)]
      rows = packing.of(views[: setup.objective.views], every)
      known = _known(items, setup.method, K).of(packing, every, rows)
      yield step, (rows, known), after


def _known(items, method, K):
  """batches.Known of the pairs of a batch."""
  weights = labels = None
  if method.mixing.by_pair:
    weights = [one.pair.reference_weights for one in items]
  if method.unpaired:
    labels = [one.pair.desirable for one in items]
  characters = [one.encoded[0].characters for one in items]
  return known_of(characters, {}, K, weights, None, labels)


def _sampled(pairs, encoder, tokenizers, name):
  """data.table.Table of a few pairs; says what `encode_table` says of them.

  They are of the first block that has one to train on among a few of its rows.

  Raises:
    InputError: there is none where the run begins.
  """
  found, counts = [], oddities.Counts()
  for rows in pairs.samples():
    some = [
      (where, pair)
      for where, given in rows
      for pair in encoder.taken(where, given)
    ]
    found = some or found
    coded = encoder([pair for _, pair in some])
    if any(reason is None for _, reason in coded):
      break
  if not found:
    raise InputError(
      f"{name}: no row of a few prefers a response; give unequal scores, or "
      "shuffle the rows"
    )
  for _, pair in found:
    counts.add(pair)
  counts.say(f"{name}, of a few")
  places, some = zip(*found, strict=True)
  table = encode_table(
    "train, a few of all",
    [*some],
    tokenizers,
    origin=f"{name}, of a few",
    row_length=encoder.row_length,
    places=places,
    chosen_only=encoder.chosen_only,
    labelled=encoder.labelled,
    **encoder.limits,
  )
  sandbox.close()
  if encoder.labelled:
    _say_labels(table)
  return table


def _say_labels(table):
  """Says how many of a few responses are good; of all nobody knows."""
  good, total = sum(table.labels), len(table.labels)
  logger.info(
    f"train, a few of all: {good:,} of {total:,} responses are desirable; the "
    "others are not read yet: `desirable` in the metrics is each step's share"
  )
  if good in (0, total):
    logger.warning(
      f"warning: these {total:,} responses, of one block of the data, all have "
      f"the label {'true' if good else 'false'}: if the data is sorted by "
      "label, shuffle its rows, or give a larger config.data.shuffle_buffer"
    )


def position_of(workdir, step):
  """The Position after a step, as its checkpoint has it; START at step 0.

  Raises:
    InputError: it has none.
  """
  if not step:
    return START
  path = files.absolute(workdir) / "checkpoints" / str(step)
  found = checkpoints.read_meta(path).get(PLACE)
  if found is None:
    raise InputError(
      f"{path} says nothing of a place in config.data.train: its steps were "
      "trained without config.data.streaming; go on without it, or use another "
      "--workdir"
    )
  return Position.of_json(found)


class Feed:
  """Batches of a streamed run, made ahead of its steps; where each one ends.

  A context: leaving it ends the thread that makes them.
  """

  def __init__(self, setup, start):
    """Looks for the place of the checkpoint of step `start`; see `position_of`.

    Args:
      setup: setup.Setup with a stream.
      start: steps already done.
    """
    self._setup, self._start = setup, start
    self._ended = {start: position_of(setup.workdir, start)}
    self._ahead = None

  def __enter__(self):
    position = self._ended[self._start]
    batches = self._setup.stream.batches(self._setup, position, self._start)
    self._ahead = Ahead(batches)
    return self

  def __exit__(self, *_):
    self._ahead.close()
    sandbox.close()

  def next_batch(self, state):
    """(state, step, batch on the mesh), as `loop.train` asks for it."""
    step, batch, position = next(self._ahead)
    # The line of the step before waits for this one to be dispatched.
    self._ended = {step - 1: self._ended[step - 1], step: position}
    return state, step, parallel.global_batch(*batch, self._setup.mesh)

  def figures(self, step):
    """Figures of the line of one of the last two steps: counts until it."""
    position = self._ended[step]
    dropped = sum(position.dropped.values())
    return {"dropped": dropped, "truncated": position.truncated}

  def about(self, step):
    """What the JSON beside the checkpoint of the last step has."""
    return {PLACE: self._ended[step].to_json()}

  def say(self, step):
    """Says how much of the data was used until the last step."""
    position, total = self._ended[step], self._setup.stream.pairs.order.total
    why = ", ".join(f"{n:,} {reason}" for reason, n in position.dropped.items())
    logger.info(
      f"train: {position.rows:,} rows used ({position.rows / total:.3g} "
      f"epochs), {position.truncated:,} pairs truncated"
      + (f"; dropped: {why}" if why else "")
    )
    if position.without:
      logger.info(
        f"train: {position.without:,} of these rows prefer no response: all "
        "that they have are equally good, or there are not two"
      )
