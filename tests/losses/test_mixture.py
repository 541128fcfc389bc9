# SPDX-License-Identifier: Apache-2.0
"""Mixtures against hand values, published vectors and laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mrpo_jax import losses

# One pair, three references, natural log: a hand-made vector whose values
# below were computed in float64 NumPy by two independent programs.
REF = jnp.array([[[-40.0, -44.0, -38.0], [-46.0, -45.0, -47.0]]])
POLICY = jnp.array([[-39.0, -46.5]])
# clip, weights -> harmonic, geometric, arithmetic, Multi-DPO
GOLDEN = {
  (None, None): (0.58938101, 0.68691671, 0.70808324, 0.69277569),
  (None, "uniform"): (0.50849674, 0.59067046, 0.65497971, 0.60398981),
  (0.1, None): (0.65856140, 0.69007499, 0.70250725, 0.69394085),
  (0.1, "uniform"): (0.59222491, 0.62095705, 0.65068152, 0.62779250),
}


def weight_of(name, ref_logp_BCK=REF):
  rule = losses.uniform_weights if name else losses.adaptive_weights
  return rule(ref_logp_BCK)


@pytest.mark.parametrize("clip,weights", GOLDEN)
def test_sixteen_golden_values(clip, weights):
  weight_BK = weight_of(weights)
  given = dict(weight=weight_BK, epsilon_max=clip)
  got = [losses.mrpo(POLICY, REF, p=p, **given)[0] for p in (-1, 0, 1)]
  got.append(losses.multi_dpo(POLICY, REF, **given)[0])
  np.testing.assert_allclose(got, GOLDEN[clip, weights], atol=1e-6)


def test_without_arguments_mrpo_is_the_published_method():
  got = losses.mrpo(POLICY, REF)[0]
  np.testing.assert_allclose(got, GOLDEN[0.1, None][0], atol=1e-6)


def test_adaptive_weights_are_shares_of_the_margins():
  # |margins| 6, 1, 9 of 16.
  got = losses.adaptive_weights(REF)
  np.testing.assert_allclose(got, [[0.375, 0.0625, 0.5625]], rtol=1e-6)


def test_trust_region_by_hand():
  # b = -40.6667 and -46; eps_w = 0.1 * 40.6667 / 86.6667 = 0.0469231, so the
  # band around -40 is +-1.876923; the rejected values lie inside theirs.
  got = losses.trust_region(REF, epsilon_max=0.1)
  np.testing.assert_allclose(
    got[0, 0], [-40, -41.876923, -38.123077], rtol=1e-6
  )
  np.testing.assert_allclose(got[0, 1], REF[0, 1])


def test_trust_region_without_adaptation_uses_epsilon_for_both():
  got = losses.trust_region(REF, epsilon_max=0.01, adaptive=False)
  np.testing.assert_allclose(got[0, 0], [-40, -40.4, -39.6], rtol=1e-6)
  np.testing.assert_allclose(got[0, 1], [-46, -45.54, -46.46], rtol=1e-6)


def test_two_references_in_both_orientations():
  # alpha = 6/7, 1/7; eps = 0.048, 0.052; clipped -40, -41.92 and -46, -45.
  ref_logp_BCK = REF[..., :2]
  got = losses.mrpo(POLICY, ref_logp_BCK)[0]
  np.testing.assert_allclose(got, 0.58919327, atol=1e-6)
  got = losses.mrpo(POLICY, ref_logp_BCK, official_weights=True)[0]
  np.testing.assert_allclose(got, 0.51019285, atol=1e-6)


def test_official_orientation_swaps_a_given_weight_too():
  ref_logp_BCK = REF[..., :2]
  given = dict(epsilon_max=None)
  swapped = losses.virtual_reference(
    ref_logp_BCK, weight=jnp.array([0.2, 0.8]), official_weights=True, **given
  )
  natural = losses.virtual_reference(
    ref_logp_BCK, weight=jnp.array([0.8, 0.2]), **given
  )
  np.testing.assert_array_equal(swapped, natural)


def test_official_weights_need_two_references():
  with pytest.raises(ValueError, match="K=2.*K=3"):
    losses.mrpo(POLICY, REF, official_weights=True)


def pairs(rng, B=5, K=3):
  ref_logp_BCK = -rng.uniform(5, 60, (B, 2, K)).astype(np.float32)
  policy_logp_BC = -rng.uniform(5, 60, (B, 2)).astype(np.float32)
  return jnp.asarray(policy_logp_BC), jnp.asarray(ref_logp_BCK)


def test_one_reference_is_dpo(rng):
  policy_logp_BC, ref_logp_BCK = pairs(rng, K=1)
  want = losses.dpo(policy_logp_BC - ref_logp_BCK[..., 0])
  for method in (losses.mrpo, losses.multi_dpo):
    np.testing.assert_allclose(
      method(policy_logp_BC, ref_logp_BCK), want, rtol=1e-6
    )


@pytest.mark.parametrize("p", [-1, -0.5, 0, 1, float("inf"), float("-inf")])
def test_equal_references_are_one(rng, p):
  policy_logp_BC, ref_logp_BCK = pairs(rng, K=1)
  thrice_BCK = jnp.repeat(ref_logp_BCK, 3, axis=-1)
  want = losses.dpo(policy_logp_BC - ref_logp_BCK[..., 0])
  weight_K = jnp.array([0.2, 0.5, 0.3])
  got = losses.mrpo(policy_logp_BC, thrice_BCK, weight=weight_K, p=p)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_order_of_the_other_references_does_not_matter(rng):
  policy_logp_BC, ref_logp_BCK = pairs(rng, K=4)
  order = jnp.array([0, 3, 1, 2])
  for method in (losses.mrpo, losses.multi_dpo):
    np.testing.assert_allclose(
      method(policy_logp_BC, ref_logp_BCK),
      method(policy_logp_BC, ref_logp_BCK[..., order]),
      rtol=1e-6,
    )


def test_splitting_the_weight_of_a_duplicate_changes_nothing(rng):
  policy_logp_BC, ref_logp_BCK = pairs(rng, K=2)
  split_BCK = jnp.concatenate([ref_logp_BCK, ref_logp_BCK[..., 1:]], axis=-1)
  for method in (losses.mrpo, losses.multi_dpo):
    one = method(
      policy_logp_BC,
      ref_logp_BCK,
      weight=jnp.array([0.4, 0.6]),
      epsilon_max=None,
    )
    two = method(
      policy_logp_BC,
      split_BCK,
      weight=jnp.array([0.4, 0.1, 0.5]),
      epsilon_max=None,
    )
    np.testing.assert_allclose(one, two, rtol=1e-6)


def test_power_means_are_ordered(rng):
  _, ref_logp_BCK = pairs(rng, K=4)
  weight_K = jnp.array([0.1, 0.2, 0.3, 0.4])
  powers = [float("-inf"), -1, 0, 1, float("inf")]
  means = [losses.power_mean(ref_logp_BCK, weight_K, p=p) for p in powers]
  for low, high in zip(means, means[1:], strict=False):
    assert (low < high).all()
  np.testing.assert_allclose(means[0], ref_logp_BCK.min(-1))
  np.testing.assert_allclose(means[-1], ref_logp_BCK.max(-1))


def test_power_mean_is_continuous_at_zero(rng):
  _, ref_logp_BCK = pairs(rng)
  weight_K = jnp.array([0.3, 0.3, 0.4])
  with jax.enable_x64(True):
    ref_logp_BCK = jnp.asarray(np.asarray(ref_logp_BCK, np.float64))
    weight_K = jnp.asarray(np.asarray(weight_K, np.float64))
    near = losses.power_mean(ref_logp_BCK, weight_K, p=1e-7)
    at = losses.power_mean(ref_logp_BCK, weight_K, p=0)
  np.testing.assert_allclose(near, at, atol=1e-4)


def test_no_band_is_dpo_on_reference_zero(rng):
  policy_logp_BC, ref_logp_BCK = pairs(rng)
  want = losses.dpo(policy_logp_BC - ref_logp_BCK[..., 0])
  got = losses.mrpo(policy_logp_BC, ref_logp_BCK, epsilon_max=0.0)
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_a_reference_far_below_sharpens_the_base_by_epsilon():
  # l_2 = 2 * l_1 > 1 + eps on both responses: the clipped margin is exactly
  # (1 + eps) times the base's when eps is the same share for both.
  base = jnp.array([[-100.0, -130.0]])
  ref_logp_BCK = jnp.stack([base, 2 * base], axis=-1)
  got = losses.trust_region(ref_logp_BCK, epsilon_max=0.1, adaptive=False)
  np.testing.assert_allclose(got[..., 1], 1.1 * base, rtol=1e-6)


def test_weight_one_hot_picks_that_reference_exactly(rng):
  policy_logp_BC, ref_logp_BCK = pairs(rng)
  ref_logp_BCK = ref_logp_BCK.at[:, :, 0].set(jnp.nan)
  weight_K = jnp.array([0.0, 1.0, 0.0])
  want = losses.dpo(policy_logp_BC - ref_logp_BCK[..., 1])
  for method in (losses.mrpo, losses.multi_dpo):
    got = method(
      policy_logp_BC, ref_logp_BCK, weight=weight_K, epsilon_max=None
    )
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_margins_of_zero_give_uniform_weights():
  flat = jnp.full((1, 2, 4), -3.0)
  np.testing.assert_allclose(losses.adaptive_weights(flat), [[0.25] * 4])


def test_all_zero_log_probabilities_pass_the_trust_region():
  zero = jnp.zeros((1, 2, 3)).at[..., 1:].set(jnp.array([1.0, -1.0]))
  np.testing.assert_array_equal(losses.trust_region(zero), zero)


@pytest.mark.parametrize("weights", [None, "uniform"])
@pytest.mark.parametrize("method", [losses.mrpo, losses.multi_dpo])
def test_policy_gradient_is_right_and_references_get_none(rng, method, weights):
  policy_logp_BC, ref_logp_BCK = pairs(rng)
  weight = losses.uniform_weights(ref_logp_BCK) if weights else None
  loss = functools.partial(method, weight=weight)
  with jax.enable_x64(True):
    policy = jnp.asarray(np.asarray(policy_logp_BC, np.float64))
    ref = jnp.asarray(np.asarray(ref_logp_BCK, np.float64))
    check_grads(lambda x: loss(x, ref).sum(), (policy,), 1, modes=["rev"])
  grad = jax.grad(lambda ref: loss(policy_logp_BC, ref).sum())(ref_logp_BCK)
  assert not grad.any()


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("p", [-1, 0, 1, float("inf")])
def test_finite_at_the_extremes(scale, p):
  sign = jnp.array([[[1.0, -1.0], [-1.0, 1.0]], [[-1.0, 1.0], [1.0, 1.0]]])
  ref_logp_BCK = scale * sign
  policy_logp_BC = scale * sign[..., 0]
  weight_K = jnp.array([0.0, 1.0])
  for weight in (None, weight_K):
    for method in (functools.partial(losses.mrpo, p=p), losses.multi_dpo):

      def total(x, method=method, weight=weight):
        return method(x, ref_logp_BCK, weight=weight).sum()

      value, grad = jax.value_and_grad(total)(policy_logp_BC)
      assert np.isfinite(value) and np.isfinite(grad).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_computes_in_float32(dtype, rng):
  policy_logp_BC, ref_logp_BCK = pairs(rng)
  loss_B = losses.mrpo(policy_logp_BC.astype(dtype), ref_logp_BCK.astype(dtype))
  assert loss_B.dtype == jnp.float32


def test_jit_and_vmap_change_nothing(rng):
  policy_logp_BC, ref_logp_BCK = pairs(rng)
  want = losses.mrpo(policy_logp_BC, ref_logp_BCK)
  np.testing.assert_allclose(
    jax.jit(losses.mrpo)(policy_logp_BC, ref_logp_BCK), want, rtol=1e-6
  )
  one_by_one = jax.vmap(lambda x, r: losses.mrpo(x[None], r[None])[0])
  np.testing.assert_allclose(
    one_by_one(policy_logp_BC, ref_logp_BCK), want, rtol=1e-6
  )


@pytest.mark.parametrize(
  "function,arrays,match",
  [
    (losses.mrpo, (POLICY, REF[..., 0]), r"\[B 2 K\]"),
    (losses.mrpo, (POLICY[0], REF), r"\[B 2\]"),
    (losses.mrpo, (POLICY, jnp.zeros((2, 2, 3))), r"B=1"),
    (losses.multi_dpo, (POLICY, jnp.zeros((1, 3, 3))), r"2=2"),
    (losses.adaptive_weights, (POLICY,), r"\[B 2 K\]"),
    (losses.trust_region, (POLICY,), r"\[B 2 K\]"),
    (losses.uniform_weights, (jnp.zeros((1, 1, 3)),), r"2=2"),
  ],
)
def test_a_wrong_axis_is_refused_by_name(function, arrays, match):
  with pytest.raises(ValueError, match=match):
    function(*arrays)


def test_a_weight_of_the_wrong_length_is_refused():
  with pytest.raises(ValueError, match="K=3"):
    losses.power_mean(REF, jnp.ones(2), p=-1)
