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


def test_trust_region_of_likely_responses():
  # Less than one nat in all: b is -0.3 and -0.1, eps 0.15 and 0.05.
  likely = jnp.array([[[-0.2, -0.4], [-0.1, -0.1]]])
  got = losses.trust_region(likely, epsilon_max=0.2)
  np.testing.assert_allclose(got[0, 0], [-0.2, -0.23], rtol=1e-6)


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
    got = jax.jit(method)(policy_logp_BC, ref_logp_BCK)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("p", [-1, -0.5, 0, 1, float("inf"), float("-inf")])
def test_equal_references_are_one(rng, p):
  policy_logp_BC, ref_logp_BCK = pairs(rng, K=1)
  thrice_BCK = jnp.repeat(ref_logp_BCK, 3, axis=-1)
  want = losses.dpo(policy_logp_BC - ref_logp_BCK[..., 0])
  weight_K = jnp.array([0.2, 0.5, 0.3])
  mrpo = jax.jit(functools.partial(losses.mrpo, weight=weight_K, p=p))
  got = mrpo(policy_logp_BC, thrice_BCK)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_order_of_the_other_references_does_not_matter(rng):
  policy_logp_BC, ref_logp_BCK = pairs(rng, K=4)
  order = jnp.array([0, 3, 1, 2])
  for method in (losses.mrpo, losses.multi_dpo):
    loss = jax.jit(method)
    np.testing.assert_allclose(
      loss(policy_logp_BC, ref_logp_BCK),
      loss(policy_logp_BC, ref_logp_BCK[..., order]),
      rtol=1e-6,
    )


def test_splitting_the_weight_of_a_duplicate_changes_nothing(rng):
  policy_logp_BC, ref_logp_BCK = pairs(rng, K=2)
  split_BCK = jnp.concatenate([ref_logp_BCK, ref_logp_BCK[..., 1:]], axis=-1)
  for method in (losses.mrpo, losses.multi_dpo):
    loss = jax.jit(
      lambda x, refs, weight, method=method: method(
        x, refs, weight=weight, epsilon_max=None
      )
    )
    one = loss(policy_logp_BC, ref_logp_BCK, jnp.array([0.4, 0.6]))
    two = loss(policy_logp_BC, split_BCK, jnp.array([0.4, 0.1, 0.5]))
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


@pytest.mark.parametrize("p", [1e-2, 1e-4, -1e-6, 1e-9, -1e-42])
def test_a_small_power_is_right_in_float32(rng, p):
  _, ref_logp_BCK = pairs(rng)
  ref_logp_BCK = jnp.concatenate([ref_logp_BCK, 1e3 * ref_logp_BCK])
  ref_logp_BCK = ref_logp_BCK.at[..., 2].set(jnp.nan)  # dropped
  weight_K = np.array([0.3, 0.7, 0.0])
  # By a sum whose mean is taken out, in float64.
  wide_BCK = np.asarray(ref_logp_BCK, np.float64)[..., :2]
  mean_BC1 = (wide_BCK @ weight_K[:2])[..., None]
  term_BCK = p * (wide_BCK - mean_BC1)
  top_BC1 = np.maximum(term_BCK.max(-1, keepdims=True), 0.0)
  grown_BCK = np.expm1(term_BCK - top_BC1)
  more_BC = top_BC1[..., 0] + np.log1p(grown_BCK @ weight_K[:2])
  want = mean_BC1[..., 0] + more_BC / p
  got = losses.power_mean(ref_logp_BCK, jnp.asarray(weight_K), p=p)
  np.testing.assert_allclose(got, want, rtol=1e-5)


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
    total = jax.jit(lambda x: loss(x, ref).sum())
    check_grads(total, (policy,), 1, modes=["rev"])
  total = jax.jit(jax.grad(lambda ref: loss(policy_logp_BC, ref).sum()))
  assert not total(ref_logp_BCK).any()


@pytest.mark.parametrize("p", [-1, 0, 1, float("inf")])
def test_finite_at_the_extremes(p):
  sign = jnp.array([[[1.0, -1.0], [-1.0, 1.0]], [[-1.0, 1.0], [1.0, 1.0]]])
  ref_logp_BCK = jnp.concatenate([scale * sign for scale in (0.0, 1.0, 1e4)])
  policy_logp_BC = ref_logp_BCK[..., 0]
  weight_K = jnp.array([0.0, 1.0])
  for weight in (None, weight_K):
    for method in (functools.partial(losses.mrpo, p=p), losses.multi_dpo):

      def total(x, method=method, weight=weight):
        return method(x, ref_logp_BCK, weight=weight).sum()

      value, grad = jax.jit(jax.value_and_grad(total))(policy_logp_BC)
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
    jax.jit(one_by_one)(policy_logp_BC, ref_logp_BCK), want, rtol=1e-6
  )


@pytest.mark.parametrize(
  "function,arrays,match",
  [
    (
      losses.mrpo,
      (POLICY, REF[..., 0]),
      r"`ref_logp_BCK` must have axes \[B C K\]",
    ),
    (losses.mrpo, (POLICY[0], REF), r"`policy_logp_BC` .* \[B C\]"),
    (
      losses.mrpo,
      (POLICY, jnp.zeros((2, 2, 3))),
      "B has size 1 in .*2 in `ref_l",
    ),
    (losses.multi_dpo, (POLICY, jnp.zeros((1, 3, 3))), "size 3 and must be 2"),
    (
      losses.adaptive_weights,
      (POLICY,),
      r"`ref_logp_BCK` must have axes \[B C K\]",
    ),
    (
      losses.trust_region,
      (POLICY,),
      r"`ref_logp_BCK` must have axes \[B C K\]",
    ),
    (losses.uniform_weights, (jnp.zeros((1, 1, 3)),), "size 1 and must be 2"),
  ],
)
def test_a_wrong_axis_is_refused_by_name(function, arrays, match):
  with pytest.raises(ValueError, match=match):
    function(*arrays)


def test_a_weight_of_the_wrong_length_is_refused():
  with pytest.raises(ValueError, match="K has size 3 in `ref_logp_BCK`, but 2"):
    losses.power_mean(REF, jnp.ones(2), p=-1)


INF = float("inf")
NAMED = {
  -1: losses.harmonic,
  0: losses.geometric,
  1: losses.arithmetic,
  -INF: losses.minimum,
  INF: losses.maximum,
}


@pytest.mark.parametrize("p", NAMED)
def test_named_means_skip_dropped_references(p):
  # Without the dropped third: of -40, -44 and -46, -45, weights 3/4 and 1/4.
  by_hand = {
    -1: -np.logaddexp(np.log([0.75, 0.75]) + [40, 46], np.log(0.25) + [44, 45]),
    0: [-41.0, -45.75],
    1: np.logaddexp(np.log([0.75, 0.75]) - [40, 46], np.log(0.25) - [44, 45]),
    -INF: [-44.0, -46.0],
    INF: [-40.0, -45.0],
  }[p]
  for dropped in (-38.0, jnp.nan, -jnp.inf, jnp.inf):
    ref_logp_BCK = REF.at[..., 2].set(dropped)
    weight_K = jnp.array([0.6, 0.2, 0.0])
    got = NAMED[p](ref_logp_BCK, weight_K)
    np.testing.assert_allclose(got[0], by_hand, rtol=1e-6)
  np.testing.assert_array_equal(
    got, losses.power_mean(ref_logp_BCK, weight_K, p=p)
  )


def test_weights_are_normalised_and_one_for_each_pair_or_for_all(rng):
  _, ref_logp_BCK = pairs(rng, B=2)
  shared = losses.geometric(ref_logp_BCK, jnp.array([2, 4, 2]))
  for weight in (
    jnp.array([0.25, 0.5, 0.25]),
    jnp.array([[1.0, 2.0, 1.0]] * 2),
  ):
    got = losses.geometric(ref_logp_BCK, weight)
    np.testing.assert_allclose(got, shared, rtol=1e-6)
  own_BK = jnp.array([[1.0, 2.0, 1.0], [0.0, 0.0, 5.0]])
  got = losses.geometric(ref_logp_BCK, own_BK)
  np.testing.assert_allclose(got[0], shared[0], rtol=1e-6)
  np.testing.assert_allclose(got[1], ref_logp_BCK[1, :, 2], rtol=1e-6)


def test_weights_get_no_gradient():
  weight_K = jnp.array([0.2, 0.5, 0.3])
  for loss in (
    lambda w: losses.mrpo(POLICY, REF, weight=w)[0],
    lambda w: losses.multi_dpo(POLICY, REF, weight=w)[0],
    lambda w: losses.mnpo(POLICY[:, 0], REF[:, 0], weight=w)[0],
  ):
    assert not jax.grad(loss)(weight_K).any()


def test_default_arguments():
  wild = jnp.array([[[-40.0, -80.0, -20.0], [-46.0, -70.0, -30.0]]])
  for ref_logp_BCK in (REF, wild):
    np.testing.assert_array_equal(
      losses.trust_region(ref_logp_BCK),
      losses.trust_region(ref_logp_BCK, epsilon_max=0.1, adaptive=True),
    )
    virtual = dict(
      weight=losses.adaptive_weights(ref_logp_BCK),
      epsilon_max=0.1,
      adaptive_epsilon=True,
      p=-1,
      official_weights=False,
    )
    np.testing.assert_array_equal(
      losses.virtual_reference(ref_logp_BCK),
      losses.virtual_reference(ref_logp_BCK, **virtual),
    )
    np.testing.assert_array_equal(
      losses.mrpo(POLICY, ref_logp_BCK),
      losses.mrpo(
        POLICY, ref_logp_BCK, beta=0.1, pair_loss=losses.dpo, **virtual
      ),
    )
    np.testing.assert_array_equal(
      losses.multi_dpo(POLICY, ref_logp_BCK),
      losses.multi_dpo(
        POLICY,
        ref_logp_BCK,
        beta=0.1,
        weight=losses.uniform_weights(ref_logp_BCK),
        epsilon_max=None,
        adaptive_epsilon=True,
        pair_loss=losses.dpo,
      ),
    )
  margin_B, ref_margin_BK = POLICY[:, 0], REF[:, 0]
  np.testing.assert_array_equal(
    losses.mnpo(margin_B, ref_margin_BK),
    losses.mnpo(margin_B, ref_margin_BK, weight=None, eta=0.0075),
  )
  np.testing.assert_array_equal(
    losses.hypo(POLICY, REF[..., 0]),
    losses.hypo(POLICY, REF[..., 0], beta=0.1, floor=0.0),
  )
  np.testing.assert_array_equal(
    losses.optimistic_reference(REF[0, 0] + 40.0),
    losses.optimistic_reference(REF[0, 0] + 40.0, floor=0.0),
  )
  near = POLICY + jnp.array([[0.5, -0.5]])
  np.testing.assert_array_equal(
    losses.forward_kl_dpo(near, POLICY),
    losses.forward_kl_dpo(near, POLICY, beta=0.1),
  )


def test_a_fixed_band_reaches_both_methods():
  # With the fixed share 0.01 the bands are +-0.4 and +-0.46.
  clipped = jnp.array([[[-40.0, -40.4, -39.6], [-46.0, -45.54, -46.46]]])
  weight_K = jnp.array([0.2, 0.5, 0.3])
  for method in (losses.mrpo, losses.multi_dpo):
    got = method(
      POLICY, REF, weight=weight_K, epsilon_max=0.01, adaptive_epsilon=False
    )
    want = method(POLICY, clipped, weight=weight_K, epsilon_max=None)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_multi_dpo_sums_one_loss_for_each_reference(rng):
  policy_logp_BC, ref_logp_BCK = pairs(rng)
  weight_BK = jnp.asarray(rng.uniform(size=(5, 3)).astype(np.float32))
  share_BK = np.asarray(weight_BK) / np.asarray(weight_BK).sum(1, keepdims=True)
  ipo = functools.partial(losses.ipo, scale_B=0.5)
  for pair_loss, beta in ((losses.dpo, 0.1), (ipo, 0.3)):
    want = sum(
      share_BK[:, k]
      * pair_loss(policy_logp_BC - ref_logp_BCK[..., k], beta=beta)
      for k in range(3)
    )
    got = losses.multi_dpo(
      policy_logp_BC,
      ref_logp_BCK,
      weight=weight_BK,
      beta=beta,
      pair_loss=pair_loss,
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_multi_dpo_of_a_loss_of_each_response(rng):
  # Two pairs, each of which trusts another reference.
  policy_logp_BC, ref_logp_BCK = pairs(rng, B=2, K=2)
  for weight_BK in (jnp.eye(2), jnp.eye(2)[::-1]):
    got = losses.multi_dpo(
      policy_logp_BC, ref_logp_BCK, weight=weight_BK, pair_loss=losses.kto
    )
    want = losses.mrpo(
      policy_logp_BC,
      ref_logp_BCK,
      weight=weight_BK,
      epsilon_max=None,
      pair_loss=losses.kto,
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)
  policy_logp_BC, ref_logp_BCK = pairs(rng, B=3, K=2)
  got = losses.multi_dpo(policy_logp_BC, ref_logp_BCK, pair_loss=losses.kto)
  assert got.shape == (3, 2)


def test_another_pair_loss_meets_the_virtual_reference():
  virtual_BC = losses.virtual_reference(REF, p=1, epsilon_max=None)
  got = losses.mrpo(
    POLICY, REF, p=1, epsilon_max=None, beta=0.3, pair_loss=losses.ipo
  )
  want = losses.ipo(POLICY - virtual_BC, beta=0.3)
  np.testing.assert_array_equal(got, want)


def test_the_band_lies_around_a_base_of_either_sign():
  # b = 2 and 6 of 8: shares 0.1 and 0.3 of |10| and |-10|: bands +-1, +-3.
  ref_logp_BCK = jnp.array([[[10.0, -6.0], [-10.0, -2.0]]])
  got = losses.trust_region(ref_logp_BCK, epsilon_max=0.4)
  np.testing.assert_allclose(got[0], [[10, 9], [-10, -7]], rtol=1e-6)


def simplex(rng, *shape):
  share = rng.dirichlet(np.ones(shape[-1]), shape[:-1])
  return share.astype(np.float32)


def test_the_geometric_mixture_is_exact_for_reverse_divergences(rng):
  # sum_k w_k KL(pi || pi_k) = KL(pi || prod pi_k^w_k / F) - log F for any pi,
  # here over 6 outcomes (as 3 pairs); the harmonic mean bounds it from above.
  refs = simplex(rng, 3, 6)
  weight_K = np.array([0.2, 0.5, 0.3])
  ref_logp_BCK = jnp.asarray(np.log(refs).T.reshape(3, 2, 3))
  geometric = losses.geometric(ref_logp_BCK, jnp.asarray(weight_K)).reshape(-1)
  harmonic = losses.harmonic(ref_logp_BCK, jnp.asarray(weight_K)).reshape(-1)
  total = np.exp(geometric).sum()
  for pi in simplex(rng, 20, 6):
    divergence = weight_K @ (pi * (np.log(pi) - np.log(refs))).sum(1)
    to_mixture = (pi * (np.log(pi) - geometric + np.log(total))).sum()
    np.testing.assert_allclose(
      divergence, to_mixture - np.log(total), rtol=1e-4, atol=1e-5
    )
    assert divergence <= (pi * (np.log(pi) - harmonic)).sum() + 1e-6


def test_the_arithmetic_mixture_is_exact_for_forward_divergences(rng):
  # sum_k w_k KL(pi_k || pi) = KL(mixture || pi) + what does not depend on pi.
  refs = simplex(rng, 3, 6)
  weight_K = np.array([0.2, 0.5, 0.3])
  ref_logp_BCK = jnp.asarray(np.log(refs).T.reshape(3, 2, 3))
  logp = losses.arithmetic(ref_logp_BCK, jnp.asarray(weight_K)).reshape(-1)
  mixture = np.exp(logp)
  rest = []
  for pi in simplex(rng, 20, 6):
    divergence = weight_K @ (refs * (np.log(refs) - np.log(pi))).sum(1)
    rest.append(divergence - (mixture * (logp - np.log(pi))).sum())
  np.testing.assert_allclose(rest, rest[0], atol=1e-5)


def test_an_optimistic_reference_is_never_wrong():
  margin_B = jnp.array([-3.0, 0.5, 2.0, -1e4])
  got = losses.optimistic_reference(margin_B)
  np.testing.assert_array_equal(got, [0.0, 0.5, 2.0, 0.0])
  got = losses.optimistic_reference(margin_B, floor=1.0)
  np.testing.assert_array_equal(got, [1.0, 1.0, 2.0, 1.0])
  got = losses.optimistic_reference(margin_B, floor=-2.0)
  np.testing.assert_array_equal(got, [-2.0, 0.5, 2.0, -2.0])
  grad = jax.grad(lambda x: losses.optimistic_reference(x).sum())(margin_B)
  assert not grad.any()
  assert losses.optimistic_reference(margin_B.astype("bfloat16")).dtype == "f4"


def test_hypo_asks_as_much_as_of_an_undecided_reference():
  # Policy margins 2, 2; reference margins -3 (held at the floor) and 1.
  policy_logp_BC = jnp.array([[-5.0, -7.0], [-5.0, -7.0]])
  ref_logp_BC = jnp.array([[-9.0, -6.0], [-5.0, -6.0]])
  for floor, margin in (
    (0.0, [2.0, 1.0]),
    (-1.0, [3.0, 1.0]),
    (1.5, [0.5] * 2),
  ):
    got = losses.hypo(policy_logp_BC, ref_logp_BC, beta=0.5, floor=floor)
    want = np.logaddexp(0, -0.5 * np.array(margin))
    np.testing.assert_allclose(got, want, rtol=1e-6)
  # Where the reference ranks right it is dpo.
  right = losses.dpo(policy_logp_BC - ref_logp_BC)[1]
  np.testing.assert_allclose(
    losses.hypo(policy_logp_BC, ref_logp_BC)[1], right, rtol=1e-6
  )


def test_mnpo_by_hand():
  # Delta = 3, 0; reference margins 1, 2 and 4, 0; 1 / (2 eta) = 2.
  margin_B = jnp.array([3.0, 0.0])
  ref_margin_BK = jnp.array([[1.0, 2.0], [4.0, 0.0]])
  for weight, want in (
    (None, [(3 - 1.5 - 2) ** 2, (0 - 2 - 2) ** 2]),
    (jnp.array([3.0, 1.0]), [(3 - 1.25 - 2) ** 2, (0 - 3 - 2) ** 2]),
    (jnp.array([[0.0, 7.0], [1.0, 3.0]]), [(3 - 2 - 2) ** 2, (-1 - 2) ** 2]),
  ):
    got = losses.mnpo(margin_B, ref_margin_BK, weight=weight, eta=0.25)
    np.testing.assert_allclose(got, want, rtol=1e-5)
  # The default asks for 1 / 0.015 = 66.67 nats.
  got = losses.mnpo(jnp.zeros(1), jnp.zeros((1, 3)))
  np.testing.assert_allclose(got, [(1 / 0.015) ** 2], rtol=1e-5)


def test_mnpo_drops_references_and_gives_them_no_gradient():
  margin_B = jnp.array([3.0])
  missing_BK = jnp.array([[1.0, jnp.nan]])
  got = losses.mnpo(margin_B, missing_BK, weight=jnp.array([1.0, 0.0]), eta=0.5)
  np.testing.assert_allclose(got, [1.0])
  ref_margin_BK = jnp.array([[1.0, 2.0]])
  by_policy, by_refs = jax.grad(
    lambda x, refs: losses.mnpo(x, refs, eta=0.5).sum(), argnums=(0, 1)
  )(margin_B, ref_margin_BK)
  np.testing.assert_allclose(by_policy, [2 * (3 - 1.5 - 1)])
  assert not by_refs.any()


def test_forward_kl_is_its_textbook_formula(rng):
  # -log sigmoid(beta (r(y_l) / p(y_l) - r(y_w) / p(y_w)))
  with jax.enable_x64(True):
    policy_logp_BC = jnp.asarray(rng.uniform(-6, -4, (20, 2)))
    ref_logp_BCK = jnp.asarray(rng.uniform(-6, -4, (20, 2, 3)))
    weight_K = jnp.array([0.2, 0.5, 0.3])
    mixed_BC = losses.power_mean(ref_logp_BCK, weight_K, p=1)
    loss = jax.jit(functools.partial(losses.forward_kl_dpo, beta=0.7))
    got = loss(policy_logp_BC, mixed_BC)
    assert got.dtype == jnp.float64
    total = jax.jit(lambda x, ref: loss(x, ref).sum())
    check_grads(
      lambda x: total(x, mixed_BC), (policy_logp_BC,), 1, modes=["rev"]
    )
    mixture_BC = np.exp(ref_logp_BCK) @ np.array([0.2, 0.5, 0.3])
    odds_BC = mixture_BC / np.exp(policy_logp_BC)
    margin_B = 0.7 * (odds_BC[:, 1] - odds_BC[:, 0])
    np.testing.assert_allclose(got, np.log1p(np.exp(-margin_B)), rtol=1e-6)
    assert not jax.grad(total, argnums=1)(policy_logp_BC, mixed_BC).any()


def test_forward_kl_clamps_its_exponents():
  # r / p of e^100, on the chosen and on the rejected side.
  ref_logp_BC = jnp.array([[0.0, -1.0], [-1.0, 0.0], [0.0, 0.0]])
  policy_logp_BC = ref_logp_BC - jnp.array([[100, 0], [0, 100], [-1e4, 1e4]])
  loss = lambda x: losses.forward_kl_dpo(x, ref_logp_BC).sum()  # noqa: E731
  got = losses.forward_kl_dpo(policy_logp_BC, ref_logp_BC)
  np.testing.assert_allclose(got, [0.1 * np.exp(80.0), 0.0, 0.0], rtol=1e-5)
  grad = jax.grad(loss)(policy_logp_BC)
  # d loss = -sigmoid(-m) beta (r_w/p_w d log p_w - ...); past 80 none.
  np.testing.assert_allclose(grad, [[0.0, 0.1], [0.0, 0.0], [0.0, 0.0]])


@pytest.mark.parametrize(
  "function,arrays,match",
  [
    (losses.hypo, (POLICY, REF), r"`ref_logp_BC` must have axes \[B C\]"),
    (losses.forward_kl_dpo, (POLICY, jnp.zeros((2, 2))), "B has size 1 in"),
    (
      losses.mnpo,
      (POLICY[:, 0], REF[0]),
      "B has size 1 in `policy_margin_B`, but 2",
    ),
    (losses.mnpo, (POLICY, REF[0]), r"\[B\]"),
    (losses.optimistic_reference, (POLICY,), r"\[B\]"),
    (
      losses.multi_dpo,
      (POLICY, REF[..., 0]),
      r"`ref_logp_BCK` must have axes \[B C K\]",
    ),
    (
      losses.virtual_reference,
      (POLICY,),
      r"`ref_logp_BCK` must have axes \[B C K\]",
    ),
    (losses.geometric, (REF, jnp.ones((2, 3))), "B has size 1 in .*weight_BK"),
    (
      losses.geometric,
      (POLICY, jnp.ones(3)),
      r"`ref_logp_BCK` must have axes \[B C K\]",
    ),
  ],
)
def test_margin_methods_refuse_a_wrong_axis_by_name(function, arrays, match):
  with pytest.raises(ValueError, match=match):
    function(*arrays)


def test_margin_methods_compute_in_float32_and_stay_finite():
  far = jnp.array([[1e4, -1e4], [-1e4, 1e4], [0.0, 0.0]])
  for method in (losses.hypo, losses.forward_kl_dpo):
    for ref_logp_BC in (far, -far):
      loss_B, pull = jax.vjp(method, far, ref_logp_BC)
      by_policy, by_ref = pull(jnp.ones(3))
      assert np.isfinite(loss_B).all() and np.isfinite(by_policy).all()
      assert not by_ref.any()
    assert method(POLICY.astype("bfloat16"), POLICY).dtype == jnp.float32
  loss_B = losses.mnpo(far[:, 0].astype("bfloat16"), far)
  assert np.isfinite(loss_B).all() and loss_B.dtype == jnp.float32
