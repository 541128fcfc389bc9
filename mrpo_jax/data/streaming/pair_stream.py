# SPDX-License-Identifier: Apache-2.0
"""Pairs in the order of a run, read and encoded as they are reached."""

import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
import logging

import numpy as np

from mrpo_jax.data import encode, formats, truncate
from mrpo_jax.data.streaming.order import Order
from mrpo_jax.data.table import other_kind, unusable, without_rejected
from mrpo_jax.errors import InputError

logger = logging.getLogger(__name__)

ROWS = 128  # that are encoded together
BLOCKS = 64  # that are looked at, at most, for a pair to train on
STEPS = 4  # that are ready, or in the making, before they are asked for


@dataclasses.dataclass(frozen=True)
class Position:
  """How far a run has come in its data: exact, and all that a stream needs."""

  rows: int = 0  # wholly used, over all epochs
  pairs: int = 0  # of the next row, which may rank several responses
  dropped: dict = dataclasses.field(default_factory=dict)  # reason: pairs
  truncated: int = 0  # pairs used of which something was cut
  without: int = 0  # rows until that of the last pair that prefer no response

  def to_json(self):
    return dataclasses.asdict(self)

  @classmethod
  def of_json(cls, given):
    return cls(**given)


START = Position()


@dataclasses.dataclass(frozen=True)
class Item:
  """A pair as the stream has it."""

  rows: int  # of the run that are used up with it
  pairs: int  # of the row after those
  encoded: tuple  # of Encoded, one per tokenizer
  reason: str | None  # why it is left out
  pair: formats.PreferencePair


@dataclasses.dataclass(frozen=True)
class Encoder:
  """What makes token ids of pairs, and which pairs it refuses.

  Attributes:
    tokenizers: Hugging Face tokenizers, of nobody else.
    row_length: tokens of a packed row.
    limits: max_prompt and max_response, in tokens.
    chosen_only, labelled: see `data.table.encode_table`.
    conversations: see `data.source.load`.
    check: (place in words, per tokenizer Encoded) -> InputError where a model
      cannot read it.
  """

  tokenizers: list
  row_length: int
  limits: dict
  chosen_only: bool = False
  labelled: bool = False
  conversations: str = ""
  check: object = None

  def taken(self, where, pairs):
    """The pairs of a row as they are trained on; InputError for other kinds."""
    for is_other, have, why in other_kind(self.chosen_only, self.labelled):
      if any(map(is_other, pairs)):
        raise InputError(f"{where}: has {have}; {why}")
    if self.conversations == "hh":
      return [formats.in_turns(pair, where) for pair in pairs]
    return pairs

  def __call__(self, pairs):
    """((Encoded per tokenizer), reason to leave it out or None) of each."""
    cuts = truncate.cut_to_fit(self.tokenizers, pairs, **self.limits)
    views = [
      encode.encode_all(tokenizer, pairs, cuts=cuts, **self.limits)
      for tokenizer in self.tokenizers
    ]
    if self.chosen_only:
      views = [[*map(without_rejected, view)] for view in views]
    return [
      (encoded, unusable(encoded, self.row_length))
      for encoded in zip(*views, strict=True)
    ]


class PairStream:
  """Rows of several sources as batches, each of the same number of pairs.

  Attributes:
    order: Order of the rows.
    name: what the sources are, in words.
    mark: hash of their files.
  """

  def __init__(self, name, sources, *, seed, buffer):
    """Args: the sources, as `row_blocks.opened` gives them; then of `Order`."""
    self.name, self._sources = name, sources
    counts = [one.counts for one in sources]
    self._first = np.cumsum([0, *map(len, counts)])  # block of each source
    self.order = Order(np.concatenate(counts), seed, buffer)
    marks = "".join(one.mark for one in sources)
    self.mark = hashlib.sha256(marks.encode()).hexdigest()

  def samples(self):
    """(place in words, pairs) of at most ROWS rows, evenly over a block.

    A list for each of the blocks that a run begins with, at most BLOCKS.
    """
    windows = self.order.windows()
    blocks = itertools.chain.from_iterable(one.blocks for one in windows)
    for block in itertools.islice(blocks, min(len(self.order.counts), BLOCKS)):
      source, stored = self._read(block)
      count = int(self.order.counts[block])
      rows = range(0, count, -(-count // ROWS))
      yield [source.pairs(stored[row]) for row in rows]

  def batches(self, encoder, size, position=START):
    """Endless iterator over (Items of a batch, Position after it)."""
    rows, dropped = position.rows, collections.Counter(position.dropped)
    kept, truncated = [], position.truncated
    reached, without = position.rows, position.without
    for item in self._items(encoder, position):
      # Rows between that of the item before and its own have no pair.
      without += item.rows - (not item.pairs) - reached
      reached = item.rows
      if item.reason is None:
        kept.append(item)
        rows = item.rows
        truncated += any(one.truncated for one in item.encoded)
      else:
        dropped[item.reason] += 1
        self._refuse_empty(item.rows - rows, dropped)
      if len(kept) == size:
        counts = dict(dropped), truncated, without
        yield kept, Position(item.rows, item.pairs, *counts)
        kept = []

  def _refuse_empty(self, rows, dropped):
    """InputError where no pair was kept of a whole epoch."""
    if rows > self.order.total:
      why = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
      raise InputError(f"{self.name}: none of its pairs is left: {why}")

  def _items(self, encoder, position):
    """Endless iterator over Items from a Position on."""
    skipped, barren = position.pairs, 0
    rows = self._rows(position.rows)
    while True:
      found, refusal = _some(rows, encoder)
      coded = encoder([pair for *_, pair in found])
      for (number, n, where, pair), (encoded, reason) in [
        *zip(found, coded, strict=True)
      ][skipped:]:
        if reason is None and encoder.check is not None:
          encoder.check(where, encoded)
        yield Item(number, n, encoded, reason, pair)
      if refusal is not None:
        raise refusal
      skipped, barren = 0, 0 if found else barren + ROWS
      if barren > self.order.total:
        raise InputError(
          f"{self.name}: no row prefers a response; give unequal scores"
        )

  def _rows(self, start):
    """(number of the row in the run, (place in words, pairs)), endless."""
    windows = self.order.windows(start)
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
      coming = reader.submit(self._window, next(windows))
      while True:
        window, blocks = coming.result()
        # The next one is read while the rows of this one are used.
        coming = reader.submit(self._window, next(windows))
        skipped = max(start - window.start, 0)
        for n, (block, row) in enumerate(window.rows_N2[skipped:], skipped):
          source, stored = blocks[block]
          yield window.start + n, source.pairs(stored[row])

  def _window(self, window):
    return window, [self._read(block) for block in window.blocks]

  def _read(self, block):
    """(source, stored rows) of a block."""
    number = int(np.searchsorted(self._first, block, side="right")) - 1
    source = self._sources[number]
    return source, source.read(block - self._first[number])


def _some(rows, encoder):
  """Pairs of the next ROWS rows, and the InputError of a row or None.

  Each is (rows used up with it, pairs of the row after those, place in words,
  PreferencePair).  A row that is refused is the last: those before it are used.
  """
  found = []
  try:
    for number, (where, pairs) in itertools.islice(rows, ROWS):
      taken = encoder.taken(where, pairs)
      for n, pair in enumerate(taken, 1):
        is_last = n == len(taken)
        found.append((number + is_last, n * (not is_last), where, pair))
  except InputError as refusal:
    return found, refusal
  return found, None


class Ahead:
  """Items of an endless iterator, made in a thread before they are needed."""

  def __init__(self, iterator, steps=STEPS):
    """Starts with the first; `steps` are under way at a time."""
    self._iterator = iterator
    self._thread = concurrent.futures.ThreadPoolExecutor(1)
    self._coming = collections.deque()
    for _ in range(steps):
      self._ask()

  def _ask(self):
    self._coming.append(self._thread.submit(next, self._iterator))

  def __next__(self):
    found = self._coming.popleft().result()
    self._ask()
    return found

  def close(self):
    """Waits for what is under way, and ends the thread."""
    self._thread.shutdown(cancel_futures=True)
    self._iterator.close()
