# SPDX-License-Identifier: Apache-2.0
"""Figures on preference pairs by hand, and their laws."""

import math

import numpy as np
import pytest

from mrpo_jax.evaluation.pairs import calibration, difference, pair_figures


def test_figures_by_hand():
  found = pair_figures(
    [1.0, -2.0, 3.0, 0.0],
    [-0.1, -0.5, 0.3, 0.2],
    [[5, 4], [2, 6], [7, 3], [4, 4]],
    ["a", "b", "a", "c"],
  )
  assert (found["pairs"], found["prompts"], found["ties"]) == (4, 3, 1)
  assert (found["accuracy"], found["margin"]) == (0.5, 0.5)
  assert found["length_normalised"] == 0.5
  longer = found["by_length"]["chosen longer"]
  assert (longer["pairs"], longer["accuracy"], longer["margin"]) == (2, 1.0, 2)
  assert longer["length_normalised"] == 0.5
  assert found["by_length"]["chosen shorter"]["accuracy"] == 0.0
  assert found["by_length"]["equally long"]["length_normalised"] == 1.0


def test_groups_without_pairs_are_left_out():
  found = pair_figures([1.0], [1.0], [[2, 1]], ["a"])
  assert [*found["by_length"]] == ["chosen longer"]


def test_calibration_is_of_beta_times_the_margin():
  margins, tokens = [30.0, -10.0, 0.5], [[2, 1]] * 3
  found = pair_figures(margins, margins, tokens, ["a", "b", "c"], beta=0.1)
  assert found["calibration"] == calibration([3.0, -1.0, 0.05])
  found = pair_figures(margins, margins, tokens, ["a", "b", "c"])
  assert found["calibration"] is None


def test_calibration_by_hand():
  nats = math.log(0.8 / 0.2)  # a confidence of 0.8, half of the time right
  found = calibration([nats, -nats, 0.0])
  assert [one["pairs"] for one in found["bins"]] == [1, 2]
  low, high = found["bins"]
  assert (low["from"], low["to"], low["accuracy"]) == (0.5, 0.55, 0.5)
  assert high["confidence"] == pytest.approx(0.8)
  assert high["accuracy"] == 0.5
  assert found["expected_error"] == pytest.approx(2 / 3 * 0.3)


def test_a_model_that_is_as_sure_as_it_is_right_has_no_error(rng):
  margin_N = np.abs(rng.normal(scale=2, size=100_000))
  right_N = rng.random(100_000) < 1 / (1 + np.exp(-margin_N))
  found = calibration(np.where(right_N, margin_N, -margin_N))
  assert found["expected_error"] < 0.01
  twice = calibration(np.where(right_N, margin_N, -margin_N) * 4)
  assert twice["expected_error"] > 0.1


def test_margins_beyond_all_measure_are_certain():
  found = calibration([1e4, -1e4, 1e4, 1e4])
  assert found["expected_error"] == pytest.approx(0.25)
  assert [one["to"] for one in found["bins"]] == [1.0]


def test_a_difference_by_hand():
  found = difference([1.0, 1.0, -1.0, 2.0], [-1.0, 1.0, 1.0, -3.0], "abcd")
  assert (found["gained"], found["lost"], found["pairs"]) == (2, 1, 4)
  assert found["accuracy"] == 0.25
  assert found["margin"] == (2 + 0 - 2 + 5) / 4
  assert found["p"] == 1.0


def test_pairs_of_one_prompt_count_once_in_the_test_of_a_difference():
  more_N, less_N = np.repeat([[1.0], [-1.0]], 12, axis=1)
  alone = difference(more_N, less_N, range(12))
  together = difference(more_N, less_N, np.repeat([0, 1, 2], 4).tolist())
  assert alone["p"] == pytest.approx(2 / 2**12)
  assert together["p"] == pytest.approx(2 / 2**3)


def test_the_difference_of_a_model_from_itself_is_none(rng):
  margin_N = rng.normal(size=50)
  found = difference(margin_N, margin_N, range(50))
  assert (found["accuracy"], found["interval"]) == (0.0, [0.0, 0.0])
  assert found["p"] == 1.0


def test_pairing_narrows_the_interval(rng):
  margin_N = rng.normal(size=500)
  near_N = margin_N + rng.normal(scale=0.1, size=500)
  paired = difference(near_N, margin_N, range(500))["interval"]
  shuffled = difference(near_N, rng.permutation(margin_N), range(500))
  low, high = shuffled["interval"]
  assert paired[1] - paired[0] < 0.5 * (high - low)
