# SPDX-License-Identifier: Apache-2.0
"""Packing: encoded pairs into fixed rows, the prompt of a pair once."""

import difflib

import numpy as np

from mrpo_jax.rows import Rows, most_pairs
from mrpo_jax.shapes import CHOSEN, REJECTED

SHORTER = 4  # so many times shorter than long rows are the short ones


def size(encoded):
  """Tokens that a pair takes in a row."""
  ids = (encoded.prompt_ids, encoded.chosen_ids, encoded.rejected_ids)
  return sum(map(len, ids))


def first_fit(sizes, length, most=None):
  """Longest first, each into the first row with room: row of each item.

  `most` is how many items a row may hold; None is any number.
  """
  free = np.full(len(sizes), length)
  count = np.zeros(len(sizes), int)
  row_of = np.empty(len(sizes), int)
  for item in np.argsort(np.negative(sizes), kind="stable"):
    if sizes[item] > length:
      raise ValueError(f"{sizes[item]} tokens do not fit a row of {length}")
    row = np.argmax(free >= sizes[item])
    free[row] -= sizes[item]
    count[row] += 1
    if count[row] == most:
      free[row] = -1
    row_of[item] = row
  return row_of


def differences(pair):
  """Which chosen and which rejected ids are not in the other: two bool arrays.

  An id counts as common where a longest-matching-block alignment of the two
  responses pairs it.
  """
  return differing(pair.chosen_ids, pair.rejected_ids)


def differing(*lists):
  """Which items of each of two lists are not in the other: two bool arrays."""
  differs = tuple(np.ones(len(one), bool) for one in lists)
  matcher = difflib.SequenceMatcher(None, *lists, autojunk=False)
  for block in matcher.get_matching_blocks():
    for mask, start in zip(differs, (block.a, block.b), strict=True):
      mask[start : start + block.size] = False
  return differs


def pack(
  pairs,
  *,
  length,
  rows=1,
  batches=None,
  slots=None,
  mark_differences=False,
  few_pairs=False,
):
  """Lays pairs out as [prompt | chosen | rejected] in rows of fixed length.

  Args:
    pairs: encoded pairs; `rejected_ids` may be empty.
    length: T, tokens of a row.
    rows: R, rows of one micro-batch.
    batches: A, micro-batches, full or not; None means enough for any pairs.
    slots: number of each pair's chosen response; None means 0, 2, 4, ...
    mark_differences: fill `differs_RM`; see `differences`.
    few_pairs: are there kernels that want `rows.most_pairs` of a row at most?

  Returns:
    Rows of int32 NumPy arrays [A, R, T].

  Raises:
    ValueError: a pair longer than a row, or more rows than there is room for.
  """
  batches = -(-len(pairs) // rows) if batches is None else batches
  slots = 2 * np.arange(len(pairs)) if slots is None else slots
  row_of = _fitted([size(pair) for pair in pairs], length, few_pairs)
  shape = (batches * rows, length)
  if len(pairs) and row_of.max() >= shape[0]:
    raise ValueError(f"{row_of.max() + 1} rows, but room for {shape[0]}")
  fields = 8 if mark_differences else 7
  packed = Rows(*(np.zeros(shape, np.int32) for _ in range(fields)))
  packed.slots_RM[:] = np.iinfo(np.int32).max  # no response stands here
  fill = np.zeros(shape[0], int)
  scored = np.zeros(shape[0], int)
  segments = np.zeros(shape[0], int)
  for n, row in enumerate(row_of):
    segments[row] += 1
    fill[row], scored[row] = _place(
      packed,
      row,
      pairs[n],
      start=fill[row],
      scored=scored[row],
      segment=segments[row],
      slot=slots[n],
    )
  return Rows(
    **{
      name: array.reshape(-1, rows, length)
      for name, array in vars(packed).items()
      if array is not None
    }
  )


def pack_step(
  pairs,
  *,
  length,
  rows,
  batch,
  first_slot=0,
  mark_differences=False,
  few_pairs=False,
):
  """One optimizer step's pairs: long rows, and short ones for what is left.

  The last micro-batch of long rows is rarely full; where its pairs fit into
  fewer tokens of rows a quarter as long, they stand there.  The shapes depend
  on `batch`, `length` and `rows` alone, so a run compiles once; micro-batches
  past the last one in use are never computed.

  Args:
    pairs: at most `batch` encoded pairs.
    length: T, tokens of a long row.
    rows: R, rows of one micro-batch.
    batch: B, pairs of a full batch.
    first_slot: number of the first response, for a slice of a larger batch.
    mark_differences, few_pairs: see `pack`.

  Returns:
    (long, short): Rows of [ceil(B / R), R, T] and [3, R, T // 4].

  Raises:
    ValueError: a pair longer than a long row, or more pairs than `batch`.
  """
  if len(pairs) > batch:
    raise ValueError(f"{len(pairs)} pairs, but a batch is {batch}")
  sizes = np.array([size(pair) for pair in pairs], int)
  slots = first_slot + 2 * np.arange(len(pairs))
  is_left = _left_over(sizes, length, rows, few_pairs)
  short = (is_left, length // SHORTER, 3)
  parts = ((~is_left, length, -(-batch // rows)), short)
  return tuple(
    pack(
      [pairs[n] for n in np.flatnonzero(here)],
      length=one,
      rows=rows,
      batches=batches,
      slots=slots[here],
      mark_differences=mark_differences,
      few_pairs=few_pairs,
    )
    for here, one, batches in parts
  )


def computed_tokens(sizes, *, length, rows, few_pairs=False):
  """Tokens of the micro-batches that `pack_step` fills, of pairs so long."""
  is_left = _left_over(sizes, length, rows, few_pairs)
  tokens = 0
  for some, T in ((~is_left, length), (is_left, length // SHORTER)):
    used = _fitted(sizes[some], T, few_pairs).max(initial=-1) + 1
    tokens += -(-used // rows) * rows * T
  return tokens


def _fitted(sizes, length, few_pairs):
  """`first_fit` of pairs into rows, see `pack`."""
  return first_fit(sizes, length, most_pairs(length) if few_pairs else None)


def _left_over(sizes, length, rows, few_pairs):
  """Which pairs stand in short rows: those of the last micro-batch, or none."""
  row_of = _fitted(sizes, length, few_pairs)
  is_left = row_of // rows == row_of.max(initial=0) // rows
  if sizes[is_left].max(initial=0) > length // SHORTER:
    return np.zeros_like(is_left)
  short = _fitted(sizes[is_left], length // SHORTER, few_pairs)
  short_rows = short.max(initial=-1) + 1
  return is_left if short_rows <= 3 * rows else np.zeros_like(is_left)


def _place(packed, row, pair, *, start, scored, segment, slot):
  """Writes one pair at `start`; returns where the next one begins."""
  prompt = len(pair.prompt_ids)
  last = start + prompt - 1  # the position that predicts both first tokens
  branches = (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)
  if packed.differs_RM is not None:
    both = np.concatenate(differences(pair))
    packed.differs_RM[row, scored : scored + len(both)] = both
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
