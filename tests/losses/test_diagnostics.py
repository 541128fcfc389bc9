# SPDX-License-Identifier: Apache-2.0
"""Metrics against hand values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import losses

REF = jnp.array([[[-40.0, -44.0, -38.0], [-46.0, -45.0, -47.0]]])


def test_rewards_by_hand():
  policy_logp_BC = jnp.array([[-10.0, -20.0], [-5.0, -5.0]])
  ref_logp_BC = jnp.array([[-12.0, -19.0], [-6.0, -6.0]])
  got = losses.preference_metrics(policy_logp_BC, ref_logp_BC, beta=0.5)
  want = {
    "rewards/chosen": [1.0, 0.5],
    "rewards/rejected": [-0.5, 0.5],
    "rewards/margins": [1.5, 0.0],
    "rewards/accuracies": [1.0, 0.0],  # a tie is not right
    "logps/chosen": [-10.0, -5.0],
    "logps/rejected": [-20.0, -5.0],
  }
  assert set(got) == set(want)
  for name, value_B in want.items():
    np.testing.assert_allclose(got[name], value_B, rtol=1e-6, err_msg=name)


def test_references_by_hand():
  got = losses.reference_metrics(REF, jnp.ones(3), epsilon_max=0.1)
  np.testing.assert_allclose(got["margin"], [[6.0, 1.0, 9.0]])
  np.testing.assert_allclose(got["accuracy"], [[1.0, 1.0, 1.0]])
  np.testing.assert_allclose(got["weight"], [[1 / 3] * 3], rtol=1e-6)
  # Reference 1 is raised to -41.88 at the chosen response, 2 lowered to -38.12.
  np.testing.assert_allclose(got["clipped_low"], [[0.0, 0.5, 0.0]])
  np.testing.assert_allclose(got["clipped_high"], [[0.0, 0.0, 0.5]])
  odds = np.exp([0.0, 1.876923, -1.876923])
  share = odds / odds.sum()
  np.testing.assert_allclose(got["responsibility"][0], share, rtol=1e-5)
  entropy = -(share * np.log(share)).sum()
  np.testing.assert_allclose(
    got["effective_references"], [np.exp(entropy)], rtol=1e-5
  )


@pytest.mark.parametrize("p,winner", [(float("-inf"), 1), (float("inf"), 2)])
def test_an_extreme_belongs_to_one_reference(p, winner):
  got = losses.reference_metrics(REF, jnp.ones(3), p=p)
  assert got["responsibility"][0].tolist() == np.eye(3)[winner].tolist()
  np.testing.assert_allclose(got["effective_references"], [1.0])


def test_geometric_responsibility_is_the_weight():
  weight_K = jnp.array([0.5, 0.3, 0.2])
  got = losses.reference_metrics(REF, weight_K, p=0)
  np.testing.assert_allclose(got["responsibility"], weight_K[None], rtol=1e-6)


def test_a_dropped_reference_has_no_share():
  got = losses.reference_metrics(REF, jnp.array([1.0, 0.0, 0.0]))
  assert got["responsibility"].tolist() == [[1.0, 0.0, 0.0]]
  assert got["effective_references"].tolist() == [1.0]
  assert all(np.isfinite(value).all() for value in got.values())


def test_a_fixed_band_clips_both_responses():
  # Bands of 1 %: -40 +-0.4 and -46 +-0.46; reference 1 is raised and lowered
  # into them, reference 2 lowered and raised.
  got = losses.reference_metrics(
    REF, jnp.ones(3), epsilon_max=0.01, adaptive_epsilon=False
  )
  np.testing.assert_allclose(got["clipped_low"], [[0.0, 0.5, 0.5]])
  np.testing.assert_allclose(got["clipped_high"], [[0.0, 0.5, 0.5]])
  odds = np.exp([0.0, 0.4, -0.4])
  np.testing.assert_allclose(
    got["responsibility"][0], odds / odds.sum(), rtol=1e-5
  )
  adaptive = losses.reference_metrics(REF, jnp.ones(3), epsilon_max=0.01)
  spelled = losses.reference_metrics(
    REF, jnp.ones(3), epsilon_max=0.01, adaptive_epsilon=True
  )
  np.testing.assert_array_equal(
    adaptive["responsibility"], spelled["responsibility"]
  )
  assert (adaptive["responsibility"] != got["responsibility"]).any()


def test_default_arguments():
  got = losses.reference_metrics(REF, jnp.array([1.0, 2.0, 1.0]))
  want = losses.reference_metrics(
    REF,
    jnp.array([0.25, 0.5, 0.25]),
    p=-1,
    epsilon_max=None,
    adaptive_epsilon=True,
  )
  assert set(got) == set(want)
  for name, value in want.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-6, err_msg=name)
  # Shares of 1/4 e^40, 1/2 e^44, 1/4 e^38.
  odds = np.array([1.0, 2 * np.exp(4.0), np.exp(-2.0)])
  np.testing.assert_allclose(
    got["responsibility"][0], odds / odds.sum(), rtol=1e-5
  )
  np.testing.assert_allclose(got["weight"], [[0.25, 0.5, 0.25]])
  for name in ("clipped_low", "clipped_high"):
    np.testing.assert_array_equal(got[name], np.zeros((1, 3)))
  policy_logp_BC = REF[..., 0] + jnp.array([[1.0, -2.0]])
  got = losses.preference_metrics(policy_logp_BC, REF[..., 0])
  want = losses.preference_metrics(policy_logp_BC, REF[..., 0], beta=0.1)
  for name, value in want.items():
    np.testing.assert_array_equal(got[name], value, err_msg=name)
  np.testing.assert_allclose(got["rewards/margins"], [0.3], rtol=1e-5)


def test_each_pair_may_have_its_own_weights():
  # Two pairs; the second trusts two references of different opinion, p = 1.
  ref_logp_BCK = jnp.concatenate([REF, REF[:, ::-1]])
  weight_BK = jnp.array([[1.0, 1.0, 2.0], [3.0, 1.0, 0.0]])
  got = losses.reference_metrics(ref_logp_BCK, weight_BK, p=1)
  np.testing.assert_allclose(got["margin"][1], [-6.0, -1.0, -9.0])
  np.testing.assert_array_equal(got["accuracy"], [[1, 1, 1], [0, 0, 0]])
  odds = np.array([[1.0, np.exp(-4), 2 * np.exp(2)], [3.0, np.exp(1), 0.0]])
  share = odds / odds.sum(1, keepdims=True)
  np.testing.assert_allclose(got["responsibility"], share, rtol=1e-5)
  entropy = -(share * np.log(np.where(share > 0, share, 1))).sum(1)
  np.testing.assert_allclose(
    got["effective_references"], np.exp(entropy), rtol=1e-5
  )


def test_ties_share_an_extreme_and_are_not_right():
  tied = jnp.array([[[-40.0, -40.0, -39.0], [-41.0, -40.0, -38.0]]])
  got = losses.reference_metrics(tied, jnp.ones(3), p=float("-inf"))
  np.testing.assert_allclose(got["responsibility"], [[0.5, 0.5, 0.0]])
  np.testing.assert_allclose(got["effective_references"], [2.0], rtol=1e-6)
  np.testing.assert_array_equal(got["accuracy"], [[1.0, 0.0, 0.0]])


@pytest.mark.parametrize("p", [-1, 0, 1, float("inf"), float("-inf")])
def test_a_dropped_reference_may_hold_anything(p):
  weight_K = jnp.array([1.0, 1.0, 0.0])
  want = losses.reference_metrics(REF, weight_K, p=p)
  for dropped in (jnp.nan, jnp.inf, -jnp.inf):
    got = losses.reference_metrics(REF.at[..., 2].set(dropped), weight_K, p=p)
    for name in ("responsibility", "effective_references"):
      np.testing.assert_array_equal(got[name], want[name], err_msg=name)


@pytest.mark.parametrize("p", [float("inf"), float("-inf")])
def test_a_dropped_reference_has_no_share_of_an_extreme(p):
  got = losses.reference_metrics(
    jnp.full((1, 2, 3), -7.0), jnp.array([1.0, 0.0, 1.0]), p=p
  )
  np.testing.assert_allclose(got["responsibility"], [[0.5, 0.0, 0.5]])


def test_metrics_are_float32_and_have_no_gradient_through_references():
  got = losses.reference_metrics(REF.astype(jnp.bfloat16), jnp.ones(3))
  got |= losses.preference_metrics(*[REF[..., 0].astype(jnp.bfloat16)] * 2)
  assert {value.dtype.name for value in got.values()} == {"float32"}

  def total(ref_logp_BCK):
    metrics = losses.reference_metrics(
      ref_logp_BCK, jnp.ones(3), epsilon_max=0.1
    )
    return sum(value.sum() for value in metrics.values())

  assert not jax.grad(total)(REF).any()


def test_a_wrong_axis_is_refused_by_name():
  with pytest.raises(ValueError, match=r"\[B 2\]"):
    losses.preference_metrics(REF[..., 0], REF)
  with pytest.raises(ValueError, match=r"\[B 2 K\]"):
    losses.reference_metrics(REF[..., 0], jnp.ones(3))
  with pytest.raises(ValueError, match="K=3"):
    losses.reference_metrics(REF, jnp.ones(2))
