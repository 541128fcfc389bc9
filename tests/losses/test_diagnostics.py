# SPDX-License-Identifier: Apache-2.0
"""Metrics against hand values."""

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
