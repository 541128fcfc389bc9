# SPDX-License-Identifier: Apache-2.0
"""Rank correlations by hand, against scipy, and the laws of their intervals."""

import numpy as np
import pytest

from mrpo_jax.errors import InputError
from mrpo_jax.evaluation.correlation import spearman, spearman_interval


def test_a_correlation_by_hand():
  # Ranks 1 2 3 4 5 and 2 1 4 3 5: squared differences sum to 4,
  # 1 - 6 * 4 / (5 * 24) = 0.8.
  assert spearman([1, 2, 3, 4, 5], [20, 10, 40, 30, 50]) == pytest.approx(0.8)
  # Ranks 1 2.5 2.5 and 1 2 3: 1.5 / sqrt(1.5 * 2).
  assert spearman([0, 7, 7], [1, 2, 3]) == pytest.approx(1.5 / np.sqrt(3))


def test_a_correlation_with_ties_is_that_of_scipy(rng):
  stats = pytest.importorskip("scipy.stats")
  x_N, y_N = rng.integers(0, 5, 60), rng.integers(0, 3, 60)
  want = stats.spearmanr(x_N, y_N).statistic
  assert spearman(x_N, y_N) == pytest.approx(want, abs=1e-12)


def test_an_interval_is_that_of_draws_ranked_one_by_one(rng):
  x_N = rng.normal(size=23)
  y_N = np.round(x_N + rng.normal(size=23))
  draws = np.random.default_rng(3)
  found = []
  for _ in range(300):  # the textbook's loop
    some = draws.integers(0, 23, 23)
    found.append(spearman(x_N[some], y_N[some]))
  got = spearman_interval(x_N, y_N, seed=3, samples=300, level=0.9)
  np.testing.assert_allclose(got, np.quantile(found, [0.05, 0.95]), rtol=1e-9)


def test_an_interval_keeps_what_only_ranks_keep(rng):
  x_N, y_N = rng.normal(size=(2, 40))
  want = spearman_interval(x_N, y_N, samples=200)
  assert spearman_interval(np.exp(x_N), y_N, samples=200) == want
  got = spearman_interval(-x_N, y_N, samples=200)
  np.testing.assert_allclose(got, [-want[1], -want[0]], atol=1e-12)


def test_items_of_one_cluster_are_no_further_evidence(rng):
  x_N, y_N = rng.normal(size=(2, 30))
  want = spearman_interval(x_N, y_N, samples=200)
  twice = [np.repeat(one, 2) for one in (x_N, y_N, np.arange(30))]
  got = spearman_interval(*twice, samples=200)
  np.testing.assert_allclose(got, want, atol=1e-12)


def test_a_method_less_itself_is_zero_and_less_its_opposite_is_twice(rng):
  x_RN = rng.normal(size=(3, 40))
  y_N = x_RN.mean(0)
  one = spearman_interval(x_RN, y_N, samples=200)
  none = spearman_interval(x_RN, y_N, less_RN=x_RN, samples=200)
  assert none == [0.0, 0.0]
  twice = spearman_interval(x_RN, y_N, less_RN=-x_RN, samples=200)
  np.testing.assert_allclose(twice, 2 * np.array(one), atol=1e-12)


def test_seeds_that_differ_widen_the_interval(rng):
  y_N = rng.normal(size=200)
  noise_RN = 0.1 * rng.normal(size=(3, 200))
  alike = spearman_interval(y_N + noise_RN, y_N)
  sign_R1 = np.array([[1], [1], [-1]])
  apart = spearman_interval(sign_R1 * y_N + noise_RN, y_N)
  assert np.ptp(apart) > 1.0 > 0.1 > np.ptp(alike)


@pytest.mark.parametrize(
  "x,y,why",
  [
    ([1, 2], [1, 2, 3], "same items"),
    ([1, np.nan, 2], [1, 2, 3], "finite"),
    ([1, 2, 3], [2, 2, 2], "single value"),
  ],
)
def test_what_has_no_correlation_is_refused(x, y, why):
  with pytest.raises(InputError, match=why):
    spearman(x, y)
  with pytest.raises(InputError, match=why):
    spearman_interval(x, y)


def test_seeds_and_labels_that_do_not_fit_are_refused(rng):
  x_RN, y_N = rng.normal(size=(2, 5)), np.arange(5)
  with pytest.raises(InputError, match="2 seeds against 3"):
    spearman_interval(x_RN, y_N, less_RN=rng.normal(size=(3, 5)))
  with pytest.raises(InputError, match="labels"):
    spearman_interval(x_RN, y_N, ["a"])
