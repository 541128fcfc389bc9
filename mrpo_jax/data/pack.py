# SPDX-License-Identifier: Apache-2.0
"""Encoded pairs into fixed rows, the prompt of a pair once.  NumPy, no I/O."""

import numpy as np

from mrpo_jax.models.rows import Rows
from mrpo_jax.shapes import CHOSEN, REJECTED


def size(encoded):
  """Tokens that a pair takes in a row."""
  ids = (encoded.prompt_ids, encoded.chosen_ids, encoded.rejected_ids)
  return sum(map(len, ids))


def first_fit(sizes, length):
  """Longest first, each into the first row with room: row of each item."""
  free = np.full(len(sizes), length)
  row_of = np.empty(len(sizes), int)
  for item in np.argsort(np.negative(sizes), kind="stable"):
    if sizes[item] > length:
      raise ValueError(f"{sizes[item]} tokens do not fit a row of {length}")
    row = np.argmax(free >= sizes[item])
    free[row] -= sizes[item]
    row_of[item] = row
  return row_of


def pack(pairs, *, length, rows=1, batch=None, first_slot=0):
  """Lays pairs out as [prompt | chosen | rejected] in rows of fixed length.

  The shapes depend on `batch`, `length` and `rows` alone, so a run compiles
  once; micro-batches past the last row in use are never computed.

  Args:
    pairs: at most `batch` encoded pairs; `rejected_ids` may be empty.
    length: T, tokens of a row.
    rows: R, rows of one micro-batch.
    batch: B, pairs of a full batch; None means len(pairs).
    first_slot: number of the first response, for a slice of a larger batch.

  Returns:
    Rows of int32 NumPy arrays [A, R, T] with A = ceil(batch / R).

  Raises:
    ValueError: a pair longer than a row, or more pairs than `batch`.
  """
  batch = len(pairs) if batch is None else batch
  if len(pairs) > batch:
    raise ValueError(f"{len(pairs)} pairs, but a batch is {batch}")
  shape = (-(-batch // rows) * rows, length)
  packed = Rows(*(np.zeros(shape, np.int32) for _ in range(7)))
  packed.slots_RM[:] = np.iinfo(np.int32).max  # no response stands here
  fill = np.zeros(shape[0], int)
  scored = np.zeros(shape[0], int)
  segments = np.zeros(shape[0], int)
  for n, row in enumerate(first_fit([size(pair) for pair in pairs], length)):
    segments[row] += 1
    fill[row], scored[row] = _place(
      packed,
      row,
      pairs[n],
      start=fill[row],
      scored=scored[row],
      segment=segments[row],
      slot=first_slot + 2 * n,
    )
  return Rows(
    **{
      name: array.reshape(-1, rows, length)
      for name, array in vars(packed).items()
    }
  )


def _place(packed, row, pair, *, start, scored, segment, slot):
  """Writes one pair at `start`; returns where the next one begins."""
  prompt = len(pair.prompt_ids)
  last = start + prompt - 1  # the position that predicts both first tokens
  branches = (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)
  for branch, ids in enumerate(branches):
    if not len(ids):
      continue
    span = slice(start, start + len(ids))
    offset = prompt if branch else 0
    packed.tokens_RT[row, span] = ids
    packed.positions_RT[row, span] = np.arange(offset, offset + len(ids))
    packed.segments_RT[row, span] = segment
    packed.branches_RT[row, span] = branch
    if branch:
      score = slice(scored, scored + len(ids))
      packed.places_RM[row, score] = np.arange(start - 1, span.stop - 1)
      packed.places_RM[row, scored] = last
      packed.targets_RM[row, score] = ids
      choice = CHOSEN if branch == 1 else REJECTED
      packed.slots_RM[row, score] = slot + choice
      scored = score.stop
    start = span.stop
  return start, scored


def token_counts(rows):
  """(real tokens, token slots computed) of packed rows [A, R, T]."""
  used = (rows.segments_RT > 0).any(axis=(1, 2)).sum()
  slots = used * rows.segments_RT[0].size
  return int((rows.segments_RT > 0).sum()), int(slots)
