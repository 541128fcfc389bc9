# SPDX-License-Identifier: Apache-2.0
"""Intervals and tests by hand, against published values, and their laws."""

import math

import numpy as np
import pytest

from mrpo_jax.errors import InputError
from mrpo_jax.evaluation.statistics import (
  mcnemar,
  paired_interval,
  sign_test,
)


def width(interval):
  return interval[1] - interval[0]


def test_an_interval_by_hand():
  # Means of two draws of 0 and 1: 0, 1/2, 1/2, 1; a quarter is 0.
  assert paired_interval([0, 1]) == [0.0, 1.0]
  assert paired_interval([0, 1], level=0.4) == [0.5, 0.5]


def test_an_interval_is_that_of_resampled_means_drawn_one_by_one(rng):
  value_N = rng.normal(size=37)
  draws = np.random.default_rng(3)
  means = [
    value_N[draws.integers(0, 37, 37)].mean()  # the textbook's loop
    for _ in range(500)
  ]
  want = np.quantile(means, [0.05, 0.95])
  got = paired_interval(value_N, seed=3, samples=500, level=0.9)
  np.testing.assert_allclose(got, want, rtol=1e-12)


def test_an_interval_is_near_the_normal_one(rng):
  value_N = rng.normal(size=2000)
  spread = 1.96 * value_N.std() / math.sqrt(2000)
  want = value_N.mean() + np.array([-spread, spread])
  np.testing.assert_allclose(paired_interval(value_N), want, atol=2e-3)


def test_the_interval_covers_as_often_as_it_says(rng):
  # 200 samples of 100 coins each: the true 0.5 lies inside about 95 %.
  inside = 0
  for seed in range(200):
    coins = rng.random(100) < 0.5
    low, high = paired_interval(coins, seed=seed, samples=400)
    inside += low <= 0.5 <= high
  assert 180 <= inside <= 199


def test_seeds_and_clusters_are_covered_as_often_as_it_says(rng):
  # Effects of 4 seeds and 40 prompts of 1 to 5 items each, around zero.
  inside = 0
  for seed in range(200):
    prompt_N = np.repeat(np.arange(40), rng.integers(1, 6, 40))
    difference_RN = (
      rng.normal(size=40)[prompt_N]
      + rng.normal(scale=0.3, size=(4, 1))
      + rng.normal(size=(4, len(prompt_N)))
    )
    low, high = paired_interval(difference_RN, prompt_N, seed=seed, samples=400)
    inside += low <= 0 <= high
  assert 175 <= inside <= 199


def test_the_interval_of_a_constant_is_that_constant():
  for given in (np.full(9, 0.1), np.full((3, 9), 0.1)):
    got = paired_interval(given, [0, 0, 1, 1, 1, 2, 3, 3, 4])
    np.testing.assert_allclose(got, [0.1, 0.1], rtol=1e-12)


def test_clusters_of_one_are_no_clusters(rng):
  value_N = rng.normal(size=50)
  labels = [f"prompt {i}" for i in range(50)]
  assert paired_interval(value_N, labels) == paired_interval(value_N)


def test_repeating_a_prompt_makes_nothing_more_certain(rng):
  value_N = rng.normal(size=50)
  repeated, labels = np.repeat(value_N, 4), np.repeat(np.arange(50), 4)
  once = paired_interval(value_N)
  np.testing.assert_allclose(paired_interval(repeated, labels), once)
  assert width(paired_interval(repeated)) < 0.6 * width(once)


def test_labels_of_clusters_may_be_of_any_kind_and_order(rng):
  value_N = rng.normal(size=6)
  mixed = paired_interval(value_N, ["b", 1, "b", None, 1, "a"])
  assert mixed == paired_interval(value_N, [5, 3, 5, 9, 3, 2])


def test_the_same_figures_under_all_seeds_are_those_of_one(rng):
  value_N = rng.normal(size=(1, 40))
  one = paired_interval(value_N)
  assert one == paired_interval(value_N[0])
  three = paired_interval(np.repeat(value_N, 3, 0))
  np.testing.assert_allclose(three, one, atol=0.02)


def test_seeds_that_differ_widen(rng):
  noise_N = rng.normal(scale=0.1, size=400)
  shift_R1 = np.array([[-0.5], [0.0], [0.5]])
  seeds = paired_interval(noise_N + shift_R1)
  assert width(seeds) > 10 * width(paired_interval(noise_N))
  # Their own part is that of the mean of three: 0.5 / sqrt(3).
  only_R1 = paired_interval(shift_R1, level=0.6826)
  assert width(only_R1) == pytest.approx(2 * 0.5 / math.sqrt(3), abs=0.1)


def test_an_interval_of_what_is_not_there_is_refused():
  with pytest.raises(InputError, match="there are none"):
    paired_interval([])
  with pytest.raises(InputError, match="finite"):
    paired_interval([0.0, float("nan")])
  with pytest.raises(InputError, match="2 labels of clusters for 3 items"):
    paired_interval([0, 1, 2], ["a", "b"])


def discordant(gained, lost, both=7, none=5):
  right = [True] * (gained + both) + [False] * (lost + none)
  other = [False] * gained + [True] * (both + lost) + [False] * none
  return right, other


@pytest.mark.parametrize(
  ("gained", "lost", "p"),
  [
    (5, 5, 1.0),
    (0, 0, 1.0),
    (0, 3, 2 / 8),  # by hand
    (1, 4, 2 * (1 + 5) / 32),  # by hand
    # Fagerland, Lydersen and Laake (2013), tables 1 and 2, exact conditional.
    (1, 7, 0.0703),
    (6, 16, 0.0525),
    # Approval of the prime minister, Agresti (1990); R's exact2x2.
    (150, 86, 3.716e-05),
  ],
)
def test_mcnemar_against_published_values(gained, lost, p):
  assert mcnemar(*discordant(gained, lost)) == pytest.approx(p, rel=2e-3)
  assert mcnemar(*discordant(lost, gained)) == pytest.approx(p, rel=2e-3)


def test_mcnemar_of_many_items_is_the_sum_of_binomials():
  tail = sum(math.comb(5000, k) for k in range(2401)) / 2**5000 * 2
  assert mcnemar(*discordant(2400, 2600)) == pytest.approx(tail, rel=1e-9)
  assert mcnemar(*discordant(20_000, 40_000)) == 0.0


def test_the_sign_test_counts_a_cluster_once_by_hand():
  # a leads by 2, b trails by 1, c and d lead, e is even: 3 of 4.
  labels = "aaabccdee"
  difference_N = [1, 1, 0, -1, 1, 0, 0.5, 1, -1]
  assert sign_test(difference_N, labels) == pytest.approx(2 * 5 / 16)
  # A prompt that is asked a hundred times says no more than once.
  often = np.repeat([1.0, 1.0, -1.0], 100)
  prompts = np.repeat(np.arange(3), 100).tolist()
  assert sign_test(often, prompts) == 1.0 and sign_test(often) < 1e-6


def test_where_nothing_repeats_the_sign_test_is_mcnemars(rng):
  right_N, other_N = rng.random((2, 80)) < [[0.6], [0.4]]
  difference_N = right_N.astype(float) - other_N
  want = mcnemar(right_N, other_N)
  assert sign_test(difference_N) == sign_test(difference_N, range(80)) == want


def test_the_sign_test_of_other_labels_is_refused():
  with pytest.raises(InputError, match="2 labels of clusters for 3 items"):
    sign_test([0, 1, 2], ["a", "b"])


def test_mcnemar_of_other_items_is_refused():
  with pytest.raises(InputError, match="got 2 and 3"):
    mcnemar([True, False], [True, False, True])
