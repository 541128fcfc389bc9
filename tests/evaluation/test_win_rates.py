# SPDX-License-Identifier: Apache-2.0
"""Win rates by hand, against scikit-learn's fits, and their laws."""

import math

import numpy as np
import pytest

from mrpo_jax.errors import InputError
from mrpo_jax.evaluation.win_rates import (
  head_to_head,
  length_controlled,
  wins,
)


def judged(items, seed, *, lead=1.0, pull=0.8):
  """(win_N, difference_N): soft wins of a better model, and of longer ones."""
  rng = np.random.default_rng(seed)
  first_N = rng.integers(10, 2000, items)
  second_N = rng.integers(10, 2600, items)
  logit_N = lead + pull * np.tanh((second_N - first_N) / 900)
  win_N = 1 / (1 + np.exp(-(logit_N + rng.normal(size=items))))
  return win_N, second_N - first_N


def test_wins_by_hand():
  np.testing.assert_array_equal(
    wins([1, 2, 1.5, 0, 1.25]), [0, 1, 0.5, 0.5, 0.25]
  )


@pytest.mark.parametrize("wrong", [0.5, 2.5, -1, 3, math.nan, math.inf])
def test_what_is_no_preference_is_refused(wrong):
  with pytest.raises(InputError, match="preference 1 is"):
    wins([1, wrong])


@pytest.mark.parametrize(
  ("items", "seed", "rate", "slope"),
  [
    # Its LogisticRegressionCV (1.6.1) as AlpacaEval calls it, penalty="l1",
    # solver="liblinear", no intercept but a column of ones, five GroupKFold
    # folds, the log loss of soft labels, but for tol=1e-10: theirs is 1e-4.
    (12, 7, 0.5718238495, 0.7923967),
    (40, 2, 0.7084640493, 0.5438899),
    (200, 3, 0.7097273541, 0.5881065),
    (800, 4, 0.7027709349, 0.6721847),
  ],
)
def test_the_controlled_rate_is_that_of_scikit_learn(items, seed, rate, slope):
  found = length_controlled(*judged(items, seed))
  assert found.win_rate == pytest.approx(rate, abs=1e-8)
  assert found.slope == pytest.approx(slope, abs=1e-6)


def test_the_controlled_rate_of_a_strong_penalty_is_a_half():
  # Twelve wins that lengths and an intercept predict worse than a coin does.
  win_N = [0.6, 0.3, 0, 0, 0.8, 0.9, 0.6, 0.7, 0.5, 0.9, 0.8, 0]
  first = [84, 172, 115, 16, 155, 148, 170, 43, 26, 174, 14, 112]
  second = [25, 66, 101, 90, 86, 15, 11, 33, 11, 137, 109, 132]
  found = length_controlled(win_N, np.subtract(second, first))
  assert (found.win_rate, found.slope) == (0.5, 0.0)  # and scikit-learn's


def test_of_swapped_models_the_controlled_rates_add_to_one():
  win_N, difference_N = judged(100, 0)
  there = length_controlled(win_N, difference_N)
  back = length_controlled(1 - win_N, -difference_N)
  assert there.win_rate + back.win_rate == pytest.approx(1, abs=1e-6)
  assert there.slope == pytest.approx(back.slope, abs=1e-6)


def test_the_unit_of_lengths_does_not_matter():
  win_N, difference_N = judged(100, 0)
  characters = length_controlled(win_N, difference_N)
  assert length_controlled(win_N, difference_N / 4).win_rate == pytest.approx(
    characters.win_rate, abs=1e-9
  )


def test_a_judge_of_length_alone_finds_no_better_model(rng):
  difference_N = rng.normal(300, 400, 1000)  # the second is longer mostly
  logit_N = 2 * np.tanh(difference_N / difference_N.std())
  win_N = (rng.random(1000) < 1 / (1 + np.exp(-logit_N))).astype(float)
  found = length_controlled(win_N, difference_N)
  assert win_N.mean() > 0.65
  assert found.interval[0] < 0.5 < found.interval[1]


def test_answers_of_the_same_lengths_leave_the_raw_rate():
  win_N = [1.0] * 30 + [0.0] * 10
  found = length_controlled(win_N, np.zeros(40))
  assert found.win_rate == pytest.approx(0.75, abs=0.01)
  assert found.interval[0] < 0.75 < found.interval[1]


def test_a_model_that_always_wins_has_a_rate_below_one():
  found = length_controlled(np.ones(50), np.arange(-25, 25))
  assert 0.99 < found.win_rate < 1
  assert np.isfinite(found.interval).all()


@pytest.mark.parametrize(
  ("win_N", "difference_N"), [([1.0], [5]), ([1.0, 0, 1], [7, 7, 7])]
)
def test_lengths_that_cannot_be_told_from_the_models_give_no_rate(
  win_N, difference_N
):
  assert length_controlled(win_N, difference_N) is None


def test_the_interval_is_near_that_of_refits(rng):
  win_N, difference_N = judged(60, 1)
  found = length_controlled(win_N, difference_N)
  draws = [rng.integers(0, 60, 60) for _ in range(100)]
  rates = [length_controlled(win_N[n], difference_N[n]).win_rate for n in draws]
  np.testing.assert_allclose(
    found.interval, np.quantile(rates, [0.025, 0.975]), atol=0.02
  )


def test_prompts_that_repeat_widen_the_controlled_interval():
  win_N, difference_N = judged(100, 1)
  prompt_N = np.repeat(np.arange(100), 4)
  four = np.repeat(win_N, 4), np.repeat(difference_N, 4)
  low, high = length_controlled(*four).interval
  wide_low, wide_high = length_controlled(*four, prompt_N).interval
  assert wide_high - wide_low > 1.7 * (high - low)


def test_lengths_of_other_items_are_refused():
  with pytest.raises(InputError, match="3 differences of lengths for 2 items"):
    length_controlled([1.0, 0.0], [1, 2, 3])


def test_a_comparison_by_hand():
  # In turn: the second wins both ways, the first does, the place does, a tie.
  forward, backward = [2, 1, 1, 1.5], [1, 2, 1, 0]
  found = head_to_head(forward, backward, difference_N=[3, -2, 0, 3])
  assert (found["wins"], found["losses"], found["ties"]) == (1, 1, 2)
  assert (found["n"], found["prompts"]) == (4, 4)
  assert found["win_rate"] == 0.5
  assert found["order_bias"] == 0.25  # two of eight judgements
  assert found["flips"] == 0.25
  assert found["p"] == 1.0
  assert found["length_difference"] == 1.0
  assert found["interval"][0] < 0.5 < found["interval"][1]


def test_a_judge_of_the_place_alone_finds_ties_and_a_bias():
  for preference, bias in ((1, 1.0), (2, -1.0)):
    ones = [preference] * 10
    found = head_to_head(ones, ones, difference_N=range(10))
    assert (found["win_rate"], found["ties"]) == (0.5, 10)
    assert (found["order_bias"], found["flips"]) == (bias, 1.0)
    assert found["order_bias_interval"] == [bias, bias]


def test_without_an_order_there_is_no_bias():
  found = head_to_head([2, 2, 2, 1, 2, 2], difference_N=[5, 1, 2, 3, 4, 9])
  assert (found["order_bias"], found["flips"]) == (0.0, 0.0)
  assert found["win_rate"] == pytest.approx(5 / 6)
  assert found["p"] == pytest.approx(2 * 7 / 64)  # by hand


def test_the_sign_test_counts_prompts_once():
  # Five prompts of four samples, won by the majority of each but one.
  prompts = np.repeat(np.arange(5), 4)
  forward = np.array([[2, 2, 2, 1]] * 4 + [[1, 1, 2, 1]]).ravel()
  found = head_to_head(
    forward, difference_N=np.arange(20), clusters_N=prompts.tolist()
  )
  assert (found["n"], found["prompts"]) == (20, 5)
  assert found["p"] == pytest.approx(2 * 6 / 32)  # by hand


def test_a_tie_of_a_prompt_is_one_whatever_floats_sum_to():
  # 0.1 + 0.6 + 0.8 of three is a half each, and is not in binary.
  found = head_to_head(
    [1.1, 1.6, 1.8] * 6,
    difference_N=[0] * 18,
    clusters_N=np.repeat(np.arange(6), 3),
  )
  assert (found["prompts"], found["p"]) == (6, 1.0)
