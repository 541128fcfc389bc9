# SPDX-License-Identifier: Apache-2.0
"""Weights by pair: laws that tie them to weights of all pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import losses

POLICY_BC = jnp.array([[-5.0, -9.0], [-7.0, -6.0], [-8.0, -8.5]])
REF_BCK = jnp.array(
  [
    [[-6.0, -9.0], [-8.0, -7.0]],
    [[-6.5, -5.0], [-6.0, -9.0]],
    [[-9.0, -8.0], [-7.5, -9.5]],
  ]
)
ONE_HOT_BK = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
MIXTURES = ("harmonic", "geometric", "arithmetic", "multi", "maximum", 0.5)


def by_pair(mixture, **more):
  return losses.build("dpo", mixture=mixture, weights="by_pair", **more)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_equal_weights_of_all_pairs_are_fixed_weights(mixture):
  weight_BK = jnp.tile(jnp.array([[0.75, 0.25]]), (3, 1))
  fixed = losses.build("dpo", mixture=mixture, weights=(3.0, 1.0))
  got = by_pair(mixture)(POLICY_BC, REF_BCK, weight_BK=weight_BK)
  np.testing.assert_array_equal(got, fixed(POLICY_BC, REF_BCK))


@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_pair_with_one_reference_is_dpo_against_it(mixture):
  got = by_pair(mixture)(POLICY_BC, REF_BCK, weight_BK=ONE_HOT_BK)
  own_BC = jnp.stack([REF_BCK[0, :, 0], REF_BCK[1, :, 1], REF_BCK[2, :, 1]])
  np.testing.assert_allclose(got, losses.dpo(POLICY_BC - own_BC), rtol=1e-6)


def test_by_hand():
  weight_BK = jnp.array([[0.25, 0.75]])
  method = by_pair("geometric", beta=1.0)
  got = method(POLICY_BC[:1], REF_BCK[:1], weight_BK=weight_BK)
  # Margins: policy 4, references 2 and -2; their weighted mean is -1.
  np.testing.assert_allclose(got, np.log1p(np.exp(-5.0)), rtol=1e-6)


def test_scaled_references_with_a_beta_each_follow_the_pair():
  method = losses.build(
    "dpo", mixture="harmonic", weights="by_pair", betas=(0.1, 0.4)
  )
  got = method(POLICY_BC, REF_BCK, weight_BK=ONE_HOT_BK)
  own = [
    losses.dpo(POLICY_BC - REF_BCK[..., k], beta=b)
    for k, b in ((0, 0.1), (1, 0.4))
  ]
  want = jnp.stack([own[0][0], own[1][1], own[1][2]])
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_mnpo_and_mrpo_take_weights_by_pair():
  weight_BK = jnp.array([[0.5, 0.5], [0.9, 0.1], [0.0, 1.0]])
  got = losses.build("mrpo", weights="by_pair")(
    POLICY_BC, REF_BCK, weight_BK=weight_BK
  )
  want = losses.mrpo(POLICY_BC, REF_BCK, weight=weight_BK)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  margin_BK = REF_BCK[:, 0] - REF_BCK[:, 1]
  got = losses.build("mnpo", weights="by_pair", eta=0.5)(
    POLICY_BC, REF_BCK, weight_BK=weight_BK
  )
  mixed_B = jnp.sum(weight_BK * margin_BK, -1)
  want = (POLICY_BC[:, 0] - POLICY_BC[:, 1] - mixed_B - 1) ** 2
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_a_place_without_a_pair_is_finite_and_changes_no_gradient():
  method = by_pair("harmonic")
  weight_BK = ONE_HOT_BK.at[2].set(0.0)

  def total(policy_BC, weight_BK):
    loss_B = method(policy_BC, REF_BCK, weight_BK=weight_BK)
    return jnp.sum(jnp.where(jnp.array([True, True, False]), loss_B, 0.0))

  got = jax.grad(total)(POLICY_BC, weight_BK)
  np.testing.assert_array_equal(got, jax.grad(total)(POLICY_BC, ONE_HOT_BK))
  weight_gradient = jax.grad(total, argnums=1)(POLICY_BC, weight_BK)
  np.testing.assert_array_equal(weight_gradient, jnp.zeros((3, 2)))


def test_weights_of_a_batch_are_not_remembered():
  method = losses.build(
    "dpo", mixture="harmonic", weights="by_pair", adaptive_beta=0.6
  )
  state = method.init(2)
  after = method.update(state, POLICY_BC, REF_BCK, weight_BK=ONE_HOT_BK)
  assert after["weights"] == state["weights"] == ()
  other = method.update(state, POLICY_BC, REF_BCK, weight_BK=1 - ONE_HOT_BK)
  assert after["margin"][0] != other["margin"][0]


def test_weights_by_pair_are_needed_and_of_k_references():
  method = by_pair("harmonic")
  assert "weight_BK" in method.needs
  assert method.start_loss == pytest.approx(np.log(2.0))
  with pytest.raises(ValueError, match="give weight_BK"):
    method(POLICY_BC, REF_BCK)
  with pytest.raises(ValueError, match="axis K"):
    method(POLICY_BC, REF_BCK, weight_BK=jnp.ones((3, 3)))
