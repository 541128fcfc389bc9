# SPDX-License-Identifier: Apache-2.0
"""Trees of requests: who stands where, and what stands once."""

import numpy as np
import pytest

from mrpo_jax.evaluation import trees


def test_a_trunk_and_its_branches_by_hand():
  # Choices 7 8 and 9 of the context 1 2 3, and another context 1 2 4.
  requests = [([1, 2, 3], [7, 8]), ([1, 2, 3], [9]), ([1, 2, 4], [9, 5, 5])]
  ((tree,),) = trees.rows_of(requests, 16)
  arrays, (scored,) = trees.packed([[tree]], 12)
  # The last token of each has no place; 9 is one more target of the 3.
  #                                  trunk | 3 7 | 4 9 5
  assert arrays.tokens_RT[0].tolist() == [1, 2, 3, 7, 4, 9, 5] + [0] * 5
  assert arrays.positions_RT[0, :7].tolist() == [0, 1, 2, 3, 2, 3, 4]
  assert arrays.branches_RT[0, :7].tolist() == [0, 0, 1, 1, 2, 2, 2]
  assert arrays.segments_RT[0].tolist() == [1] * 7 + [0] * 5
  found = {
    number: (
      arrays.places_RM[0, here].tolist(),
      arrays.targets_RM[0, here].tolist(),
    )
    for number, here in scored
  }
  assert found == {
    0: ([2, 3], [7, 8]),
    1: ([2], [9]),
    2: ([4, 5, 6], [9, 5, 5]),
  }
  assert (arrays.slots_RM[0] == 0).sum() == 6


def test_choices_of_one_token_are_targets_of_one_place():
  requests = [([5, 6], [choice]) for choice in range(4)]
  ((tree,),) = trees.rows_of(requests, 16)
  assert tree.tokens == 2 and tree.size == 4  # four targets want a longer row


def test_a_start_of_another_sequence_stands_in_it():
  requests = [([1], [2]), ([1, 2, 3], [4]), ([1, 2], [3, 4])]
  ((tree,),) = trees.rows_of(requests, 16)
  assert tree.tokens == 3 and len(tree.leaves) == 1


def test_a_short_common_start_does_not_hide_a_long_one():
  # All begin with 1; two questions have ten tokens each.
  one, other = [1, *range(10, 19)], [1, *range(20, 29)]
  requests = [(ids + [n], [0]) for ids in (one, other) for n in range(5)]
  rows = trees.rows_of(requests, 64)
  assert sorted(tree.depth for row in rows for tree in row) == [10, 10]
  assert sum(trees.size_of(row) for row in rows) == 2 * (10 + 5)


def test_a_tree_that_no_row_holds_is_cut_between_leaves():
  requests = [([1] * 10 + [n + 2], [0]) for n in range(20)]
  rows = trees.rows_of(requests, 16)
  assert [trees.size_of(row) for row in rows] == [16, 16, 16, 12]


def test_a_request_longer_than_a_row_has_one_of_its_own():
  rows = trees.rows_of([([1] * 30, [2]), ([3], [4])], 16)
  assert [trees.size_of(row) for row in rows] == [30, 1]


def test_more_choices_than_a_row_has_places_have_a_longer_row():
  requests = [([5, 6], [choice]) for choice in range(40)] + [([3], [4])]
  rows = trees.rows_of(requests, 16)
  assert [trees.size_of(row) for row in rows] == [40, 1]
  _, (scored,) = trees.packed(rows[:1], 64)
  assert sorted(number for number, _ in scored) == [*range(40)]


def seen(arrays, place):
  """The tokens that a place sees, and their positions."""
  segments_T, branches_T = arrays.segments_RT[0], arrays.branches_RT[0]
  sees_T = (segments_T == segments_T[place]) & (segments_T > 0)
  sees_T &= (branches_T == 0) | (branches_T == branches_T[place])
  sees_T &= np.arange(len(sees_T)) <= place
  return (
    arrays.tokens_RT[0][sees_T].tolist(),
    arrays.positions_RT[0][sees_T].tolist(),
  )


@pytest.mark.parametrize("seed", range(20))
def test_every_target_sees_its_own_request_alone(seed):
  rng = np.random.default_rng(seed)
  requests = list(
    {
      (
        tuple(rng.integers(0, 2, rng.integers(1, 8)).tolist()),
        tuple(rng.integers(0, 2, rng.integers(1, 4)).tolist()),
      )
      for _ in range(rng.integers(1, 30))
    }
  )
  length, found = int(rng.integers(3, 40)), []
  for row in trees.rows_of(requests, length):
    arrays, (scored,) = trees.packed([row], max(length, trees.size_of(row)))
    for number, here in scored:
      context, continuation = requests[number]
      assert arrays.targets_RM[0, here].tolist() == list(continuation)
      for n, place in enumerate(arrays.places_RM[0, here]):
        ids = [*context, *continuation[:n]]
        assert seen(arrays, place) == (ids, list(range(len(ids))))
      found.append(number)
  assert sorted(found) == list(range(len(requests)))
