# SPDX-License-Identifier: Apache-2.0
"""Which pairs a step sees follows from (seed, step)."""

import itertools

import jax
import numpy as np
import pytest

from mrpo_jax.data.batches import (
  Known,
  Packing,
  evaluation_batches,
  mixed,
  training_batches,
)
from mrpo_jax.data.encode import Encoded

PAIRS = [Encoded([n], [n + 100], [n + 200], None) for n in range(10)]
PACKING = Packing(batch=4, length=16, rows=2)


def steps(count, packing=PACKING, **given):
  batches = training_batches([PAIRS], packing, **{"seed": 0, **given})
  return list(itertools.islice(batches, count))


def prompts(view):
  found = []
  for rows in view:
    first = (rows.branches_RT == 0) & (rows.segments_RT > 0)
    found += rows.tokens_RT[first].tolist()
  return sorted(found)


def test_any_step_is_reached_without_replaying():
  whole = steps(6)
  assert [step for step, _ in whole] == [1, 2, 3, 4, 5, 6]
  for (_, want), (_, got) in zip(whole[4:], steps(2, start=4), strict=True):
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
      np.testing.assert_array_equal(a, b)


def test_an_epoch_holds_every_pair_once_and_the_next_has_another_order():
  order = [p for _, ((view,), _) in steps(5) for p in prompts(view)]
  assert sorted(order) == sorted([*range(10)] * 2)
  batches = [prompts(view) for _, ((view,), _) in steps(10)]
  assert batches[:5] != batches[5:]


@pytest.mark.parametrize("batch", [1, 2, 10, 30])
def test_the_order_of_pairs_is_the_same_in_batches_of_any_size(batch):
  span = np.lcm(4, batch)

  def spans(packing):
    each = span // packing.batch
    views = [view for _, ((view,), _) in steps(3 * each, packing)]
    parts = [views[n : n + each] for n in range(0, len(views), each)]
    return [sorted(p for v in part for p in prompts(v)) for part in parts]

  assert spans(Packing(batch=batch, length=16, rows=1)) == spans(PACKING)


def test_the_last_step_that_a_run_may_have_is_reached():
  one = Packing(batch=1, length=16, rows=1)
  ((step, _),) = steps(1, one, start=10**12)
  assert step == 10**12 + 1


def test_the_seed_decides():
  one, two = ([prompts(r) for _, ((r,), _) in steps(3, seed=s)] for s in (0, 1))
  assert one != two


def test_processes_share_a_batch():
  whole = [view for _, ((view,), _) in steps(3)]
  shares = []
  for process in range(2):
    packing = Packing(batch=4, length=16, rows=2, process=process, processes=2)
    shares.append([view for _, ((view,), _) in steps(3, packing)])
  for want, left, right in zip(whole, *shares, strict=True):
    assert prompts(left) + prompts(right) != []
    assert sorted(prompts(left) + prompts(right)) == prompts(want)
    slots = np.concatenate([rows.slots_RM.ravel() for rows in (*left, *right)])
    assert sorted(slots[slots < 8]) == list(range(8))
    assert left[0].tokens_RT.shape == (2, 1, 16)


def test_evaluation_sees_every_pair_in_order_once():
  batches = list(evaluation_batches([PAIRS], PACKING))
  assert [len(indices) for indices, _ in batches] == [4, 4, 2]
  seen = [p for _, ((view,), _) in batches for p in prompts(view)]
  assert seen == list(range(10))


def test_a_batch_that_does_not_divide_is_refused():
  with pytest.raises(ValueError, match="batch=5 does not divide over 2"):
    Packing(batch=5, length=16, rows=2, processes=2)


def test_values_of_tokens_stand_where_their_tokens_do():
  pairs = [Encoded([3], [5, 6], []), Encoded([4, 4], [7], [8, 9, 10])]
  # Ten times its token, and a tenth of it.
  tokens = {
    name: [
      tuple(np.array(ids) * factor for ids in (p.chosen_ids, p.rejected_ids))
      for p in pairs
    ]
    for name, factor in (("ten", 10.0), ("tenth", 0.1))
  }
  known = Known({}, tokens=tokens)
  for indices in ([0, 1], [1, 0], [1]):  # fewer than a batch, too
    for process in range(2):
      packing = Packing(4, length=16, rows=2, process=process, processes=2)
      view = packing.of([pairs * 2], np.array(indices))
      given = known.of(packing, np.array(indices), view)["tokens_ARM"]
      for rows, values in zip(view[0], given, strict=True):
        is_token = rows.slots_RM < 8
        want = np.where(is_token, rows.targets_RM, 0)
        np.testing.assert_allclose(values["ten"], want * 10.0)
        np.testing.assert_allclose(values["tenth"], want * 0.1, rtol=1e-6)


def test_files_take_turns_by_their_weights_each_with_its_own_epochs():
  file_N = np.array([0, 1, 0, 1, 1, 1, 1])
  order = mixed((1.0, 3.0), file_N, seed=5)
  first = [int(order[n]) for n in range(400)]
  assert sum(file_N[one] == 0 for one in first) == 100
  # In no four neighbours more than two of the rarer file.
  runs = [sum(file_N[one] == 0 for one in first[n : n + 4]) for n in range(396)]
  assert max(runs) <= 2
  # Each epoch of a file holds each of its pairs once, in an order of its own.
  large = [one for one in first if file_N[one] == 1]
  epochs = [tuple(large[n : n + 5]) for n in range(0, 300, 5)]
  assert {tuple(sorted(one)) for one in epochs} == {(1, 3, 4, 5, 6)}
  assert len({*epochs}) > 10
  assert [int(mixed((1.0, 3.0), file_N, seed=6)[n]) for n in range(40)] != (
    first[:40]
  )


def test_mixed_files_are_resumed_where_they_were():
  weighed = (1.0, 2.0), np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
  whole = steps(9, file_weights=weighed)
  assert sum(p > 5 for _, ((view,), _) in whole for p in prompts(view)) == 24
  for (_, want), (_, got) in zip(
    whole[7:], steps(2, start=7, file_weights=weighed), strict=True
  ):
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
      np.testing.assert_array_equal(a, b)
