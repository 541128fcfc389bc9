# SPDX-License-Identifier: Apache-2.0
"""Prompts in rows: a common start once, each where it says."""

import numpy as np

from mrpo_jax.generation import prompts as rows

START = list(range(100, 140))


def read(row, i):
  """(tokens, positions, what may be seen) of the i-th prompt of a row."""
  at = row.sources[i]
  return row.tokens_T[at].tolist(), row.positions_T[at].tolist()


def test_each_prompt_stands_where_its_source_says():
  given = [START + [1, 2], START + [3], [7, 8, 9], START[:5], []]
  row, count = rows.take(given, 128)
  assert count == 5
  for i, prompt in enumerate(given):
    assert read(row, i) == (prompt, [*range(len(prompt))])


def test_a_common_start_stands_once():
  given = [START + [1, 2], START + [3], START + [1, 4]]
  row, count = rows.take(given, 128)
  assert count == 3 and (row.segments_T > 0).sum() == len(START) + 5
  assert set(row.segments_T) == {0, 1}
  shared = [set(source[: len(START)]) for source in row.sources]
  assert shared[0] == shared[1] == shared[2]
  own = [row.branches_T[source[len(START) :]] for source in row.sources]
  assert [set(branches) for branches in own] == [{1}, {2}, {3}]
  assert not row.branches_T[row.sources[0][: len(START)]].any()


def test_short_starts_are_not_worth_a_group():
  row, _ = rows.take([[1, 2, 3], [1, 2, 4]], 128)
  assert row.segments_T[:7].tolist() == [1, 1, 1, 2, 2, 2, 0]


def test_a_row_takes_as_many_as_fit():
  row, count = rows.take([[1] * 50, [2] * 50, [3] * 50], 128)
  assert count == 2 and len(row.sources) == 2
  row, count = rows.take([START + [i] * 20 for i in range(9)], 128)
  assert count == 4
  np.testing.assert_array_equal(row.segments_T[:120], 1)


def test_equal_prompts_share_all():
  row, count = rows.take([START, START, START], 128)
  assert count == 3 and (row.segments_T > 0).sum() == len(START)
  for i in range(3):
    assert read(row, i)[0] == START
