# SPDX-License-Identifier: Apache-2.0
"""Rows by hand, and what every packing keeps."""

import numpy as np
import pytest

from mrpo_jax.data import pack
from mrpo_jax.data.encode import Encoded
from mrpo_jax.rows import most_pairs, token_counts


def pair(prompt, chosen, rejected):
  return Encoded(list(prompt), list(chosen), list(rejected), None)


def random_pairs(rng, N, longest=40):
  draw = lambda: rng.integers(3, 100, rng.integers(1, longest)).tolist()  # noqa: E731
  return [pair(draw(), draw(), draw()) for _ in range(N)]


def test_the_prompt_of_a_pair_stands_once():
  rows = pack.pack([pair([10, 11], [20, 21], [30])], length=8)
  #                                  <prompt><chosen><rej>pad
  assert rows.tokens_RT.tolist() == [[[10, 11, 20, 21, 30, 0, 0, 0]]]
  assert rows.positions_RT[0, 0, :5].tolist() == [0, 1, 2, 3, 2]
  assert rows.branches_RT[0, 0].tolist() == [0, 0, 1, 1, 2, 0, 0, 0]
  assert rows.segments_RT[0, 0].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
  # 20 and 30 are predicted by the prompt's last token, 21 by 20.
  assert rows.places_RM[0, 0, :3].tolist() == [1, 2, 1]
  assert rows.targets_RM[0, 0, :3].tolist() == [20, 21, 30]
  assert rows.slots_RM[0, 0, :3].tolist() == [0, 0, 1]
  assert (rows.slots_RM[0, 0, 3:] > 1).all()


def test_two_pairs_share_a_row():
  pairs = [pair([1], [2], [3]), pair([4, 5], [6], [7])]
  rows = pack.pack(pairs, length=8)
  assert rows.tokens_RT[0, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 0]
  assert rows.segments_RT[0, 0].tolist() == [1, 1, 1, 2, 2, 2, 2, 0]
  assert rows.slots_RM[0, 0, :4].tolist() == [0, 1, 2, 3]
  assert rows.places_RM[0, 0, :4].tolist() == [0, 0, 4, 4]


def test_a_missing_rejected_response_takes_no_room():
  rows = pack.pack([pair([1, 2], [3], [])], length=4)
  assert rows.tokens_RT.tolist() == [[[1, 2, 3, 0]]]
  assert (rows.slots_RM < 2).sum() == 1


def test_some_kernels_want_few_pairs_in_a_row():
  pairs = [pair([1], [2], [3])] * 30
  most = most_pairs(128)
  assert most == 8 and most_pairs(4096) == most_pairs(32768) == 64
  rows = pack.pack(pairs, length=128, few_pairs=True)
  assert rows.segments_RT.max(axis=2)[:5].tolist() == [[8], [8], [8], [6], [0]]
  assert pack.pack(pairs, length=128).segments_RT.max() == 30
  long, short = pack.pack_step(
    pairs, length=128, rows=2, batch=30, few_pairs=True
  )
  # The last micro-batch's pairs, 14 of them, stand in two short rows.
  assert long.segments_RT.max(axis=2).tolist()[0] == [8, 8]
  assert short.segments_RT.max(axis=2).tolist()[0] == [8, 6]


@pytest.mark.parametrize("rows,batch", [(1, 30), (4, 30), (4, 32)])
@pytest.mark.parametrize("longest", [10, 40])
def test_every_response_is_there_once_and_whole(rng, rows, batch, longest):
  pairs = random_pairs(rng, 30, longest)
  long, short = pack.pack_step(pairs, length=128, rows=rows, batch=batch)
  assert long.tokens_RT.shape == (-(-batch // rows), rows, 128)
  assert short.tokens_RT.shape == (3, rows, 32)
  found = {}
  for packed in (long, short):
    for index in np.ndindex(packed.slots_RM.shape):
      slot = packed.slots_RM[index]
      if slot < 2 * batch:
        found.setdefault(slot, []).append(packed.targets_RM[index])
        # What predicts it stands just before it, or is its prompt's end.
        where = (*index[:2], packed.places_RM[index])
        assert packed.segments_RT[where] > 0
  want = {}
  for n, one in enumerate(pairs):
    want[2 * n], want[2 * n + 1] = one.chosen_ids, one.rejected_ids
  assert found == want


def test_shapes_do_not_depend_on_the_pairs(rng):
  shapes = {
    tuple(
      rows.tokens_RT.shape
      for rows in pack.pack_step(
        random_pairs(rng, n), length=128, rows=2, batch=9
      )
    )
    for n in (0, 1, 5, 9)
  }
  assert shapes == {((5, 2, 128), (3, 2, 32))}


def test_what_the_last_row_leaves_goes_into_short_rows():
  # Sizes 8, 8, 3: two long rows of 8 are full, the third would hold 3 of 8.
  pairs = [pair([1] * 6, [2], [3])] * 2 + [pair([4], [5], [6])]
  long, short = pack.pack_step(pairs, length=8, rows=1, batch=3)
  assert token_counts((long,)) == (16 + 3, 24)  # 3 > 8 // 4: stays
  pairs[2] = pair([4], [5], [])
  long, short = pack.pack_step(pairs, length=8, rows=1, batch=3)
  assert token_counts((long,)) == (16, 16)
  assert token_counts((short,)) == (2, 2)
  assert short.slots_RM[0, 0, 0] == 4


def test_counts_real_tokens_and_computed_slots():
  pairs = [pair([1], [2], [3]), pair([4, 5], [6], [7])]
  rows = pack.pack(pairs, length=4, rows=1, batches=8)
  assert token_counts((rows,)) == (7, 8)  # two rows of four in use


def test_first_fit_takes_the_longest_first():
  assert pack.first_fit([3, 7, 2, 5], 8).tolist() == [1, 0, 2, 1]


def test_first_fit_fills_rows_well(rng):
  sizes = rng.integers(20, 300, 64)
  rows = pack.first_fit(sizes, 1024)
  assert np.bincount(rows, weights=sizes).max() <= 1024
  assert sizes.sum() / ((rows.max() + 1) * 1024) > 0.9


def test_what_does_not_fit_is_refused():
  with pytest.raises(ValueError, match="9 tokens do not fit a row of 8"):
    pack.pack([pair(range(7), [1], [2])], length=8)
  with pytest.raises(ValueError, match="2 pairs, but a batch is 1"):
    pack.pack_step([pair([1], [2], [3])] * 2, length=8, rows=1, batch=1)
  with pytest.raises(ValueError, match="2 rows, but room for 1"):
    pack.pack([pair(range(6), [1], [2])] * 2, length=8, batches=1)


def test_what_differs_is_marked_where_it_is_scored():
  pairs = [pair([7], [1, 2, 3, 4], [1, 3, 5, 4]), pair([7], [1], [1, 2])]
  assert [mask.tolist() for mask in pack.differences(pairs[0])] == [
    [False, True, False, False],  # 2 is missing on the other side
    [False, False, True, False],  # 5 was added
  ]
  long, _ = pack.pack_step(
    pairs, length=16, rows=1, batch=2, mark_differences=True
  )
  marks = [0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 1]
  assert long.differs_RM[0, 0].tolist() == marks + [0] * 5
  assert pack.pack(pairs, length=16).differs_RM is None
