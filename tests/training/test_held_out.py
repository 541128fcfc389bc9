# SPDX-License-Identifier: Apache-2.0
"""Evaluation on held-out pairs: a record of each, and means over all."""

import dataclasses

import numpy as np
import optax
import pytest

from mrpo_jax.data.batches import Packing, evaluation_batches
from mrpo_jax.training import train_state
from mrpo_jax.training.held_out import HeldOut, learned
from tests.training.test_objective import (
  PAIRS,
  objective_of,
  params_of,
  some_pairs,
  summed_logps,
)

FILE_INDICES = [9, 2, 3, 5, 6, 11]  # the file has other pairs between these


def held_out_of(name="dpo", *, K=1, batch=4):
  """HeldOut of 6 pairs: one batch of 4, and one that 2 of them do not fill."""
  objective = dataclasses.replace(objective_of(name, K=K), pairs=batch)
  packing = Packing(batch=batch, length=48, rows=1)
  batches = list(evaluation_batches([some_pairs()], packing))
  return HeldOut(batches, FILE_INDICES, objective, lambda *batch: batch)


def state_of(held_out, seed=0, **moving):
  method = held_out.objective.method
  memory = method.init(len(held_out.objective.references))
  state = train_state.create(params_of(seed), optax.identity(), memory)
  return state.replace(moving=moving)


def margins(records, *, beta=0.1):
  """Rewards of chosen minus rejected against reference 0, from records."""
  policy_NC = np.array([one["policy"] for one in records])
  ref_NC = np.array([one["references"][0] for one in records])
  reward_NC = beta * (policy_NC - ref_NC)
  return reward_NC[:, 0] - reward_NC[:, 1]


def test_a_record_holds_the_sums_of_a_pair_under_every_model():
  held_out = held_out_of("mrpo", K=2)
  references = params_of(1), params_of(2)
  _, records = held_out(state_of(held_out), None, references)
  assert [one["pair"] for one in records] == FILE_INDICES
  assert set(records[0]) == {"pair", "policy", "references", "tokens"}
  pairs = some_pairs()
  want = [np.asarray(summed_logps(params_of(k), pairs)) for k in range(3)]
  for n, (one, pair) in enumerate(zip(records, pairs, strict=True)):
    np.testing.assert_allclose(one["policy"], want[0][n], rtol=1e-4)
    ref_KC = [want[1][n], want[2][n]]
    np.testing.assert_allclose(one["references"], ref_KC, rtol=1e-4)
    assert one["tokens"] == [len(pair.chosen_ids), len(pair.rejected_ids)]


def test_a_record_says_which_prompt_it_is_of_where_that_is_known():
  held_out = dataclasses.replace(held_out_of(), prompts=[*"abcabc"])
  _, records = held_out(state_of(held_out), None, (params_of(1),))
  assert [one["prompt"] for one in records] == [*"abcabc"]
  assert [one["pair"] for one in records] == FILE_INDICES


def test_without_references_a_record_has_none():
  held_out = held_out_of("simpo", K=0)
  _, records = held_out(state_of(held_out), None, ())
  assert len(records) == PAIRS
  assert all(one["references"] == [] for one in records)


def test_means_are_over_the_pairs_and_not_over_what_fills_a_batch():
  held_out = held_out_of()
  means, records = held_out(state_of(held_out), None, (params_of(1),))
  margin_N = margins(records)
  assert means["rewards/margins"] == pytest.approx(margin_N.mean(), rel=1e-4)
  # -log sigmoid(margin), each pair alike whichever batch holds it.
  loss = np.logaddexp(0.0, -margin_N).mean()
  assert means["loss"] == pytest.approx(loss, rel=1e-4)
  accuracy = np.mean(margin_N > 0)
  assert means["rewards/accuracies"] == pytest.approx(accuracy)
  one_batch = held_out_of(batch=PAIRS)
  whole, _ = one_batch(state_of(one_batch), None, (params_of(1),))
  assert whole == pytest.approx(means, rel=1e-4, abs=1e-6)


def test_a_reference_that_stays_is_run_once_and_one_that_moves_each_time():
  held_out = held_out_of()
  _, first = held_out(state_of(held_out), None, (params_of(1),))
  # Others are not looked at any more; the policy is.
  _, again = held_out(state_of(held_out, seed=3), None, (params_of(2),))
  for a, b in zip(first, again, strict=True):
    assert a["references"] == b["references"] and a["policy"] != b["policy"]
  state = state_of(held_out, reference=params_of(2))
  _, moved = held_out(state, None, (params_of(1),))
  want_NC = summed_logps(params_of(2), some_pairs())
  got_NC = [one["references"][0] for one in moved]
  np.testing.assert_allclose(got_NC, want_NC, rtol=1e-4)


def test_a_method_that_does_not_learn_leaves_the_state():
  held_out = held_out_of()
  state = state_of(held_out)
  assert learned(held_out.objective, state, {}) is state
