# SPDX-License-Identifier: Apache-2.0
"""One beta per reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mrpo_jax import losses

RNG = np.random.default_rng(5)
POLICY_BC = -jnp.asarray(RNG.uniform(5, 12, (4, 2)).astype(np.float32))
REF_BCK = -jnp.asarray(RNG.uniform(5, 12, (4, 2, 3)).astype(np.float32))
FIGURES = dict(
  length_BC=jnp.asarray(RNG.integers(2, 9, (4, 2)).astype(np.float32)),
  kl_BC=jnp.asarray(RNG.uniform(0, 3, (4, 2)).astype(np.float32)),
  normalised_entropy_BC=jnp.asarray(
    RNG.uniform(0.1, 0.9, (4, 2)).astype(np.float32)
  ),
  aux_reward_BC=jnp.asarray(RNG.uniform(0, 1, (4, 2)).astype(np.float32)),
  value_B=jnp.zeros(4),
)
BETAS = (0.1, 0.3, 0.7)
GIVEN = {"combine": dict(losses=("hinge", "dpo"), loss_weights=(1.0, 2.0))}


def takes_betas(name):
  try:
    losses.build(name, mixture="harmonic", betas=BETAS, **GIVEN.get(name, {}))
  except ValueError:
    return False
  return True


NAMES = [name for name in losses.names() if takes_betas(name)]


def called(method, pairs=slice(None), **more):
  figures = {**FIGURES, "mean_excess_BC": -FIGURES["kl_BC"], **more}
  figures = {key: value[pairs] for key, value in figures.items()}
  return method(POLICY_BC[pairs], REF_BCK[pairs], **figures)


def test_which_losses_take_betas():
  others = set(losses.names()) - set(NAMES)
  free = {"nll", "simpo", "simper", "alpha_po", "cpo", "slic", "orpo", "tpo"}
  free |= {"bradley_terry", "apa", "awr", "ppo"}
  across = {"aot", "aot_unpaired", "dr_dpo", "beta_dpo"}
  no_beta = {"mnpo"}
  single = {"kto_unpaired", "apo_zero_unpaired", "bco_unpaired"}
  assert others == free | across | no_beta | single


@pytest.mark.parametrize("mixture", ["harmonic", "multi"])
@pytest.mark.parametrize("name", NAMES)
def test_equal_betas_are_one(name, mixture):
  given = dict(mixture=mixture, weights=(1.0, 2.0, 3.0), **GIVEN.get(name, {}))
  got = called(losses.build(name, betas=(0.3, 0.3, 0.3), **given))
  want = called(losses.build(name, beta=0.3, **given))
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_a_mixture_by_hand():
  # w beta = 0.05, 0.15: beta is 0.2, and the mixture 1/4 and 3/4.
  policy_BC = jnp.array([[-10.0, -12.0]])
  ref_BCK = jnp.array([[[-11.0, -15.0], [-14.0, -10.0]]])
  method = losses.build(
    "dpo", mixture="geometric", weights=(1, 1), betas=(0.1, 0.3)
  )
  np.testing.assert_allclose(method.virtual(ref_BCK), [[-14.0, -11.0]])
  # Log-ratios 4 and -1.
  got = method(policy_BC, ref_BCK)
  np.testing.assert_allclose(got, [np.log1p(np.exp(-0.2 * 5))], rtol=1e-6)
  weight_BK, _ = method.mixing.shares(method.init(2), ref_BCK)
  np.testing.assert_allclose(weight_BK, [[0.05, 0.15]], rtol=1e-6)
  # The weights themselves are as given.
  np.testing.assert_array_equal(
    method.mixing.weights(method.init(2), ref_BCK), [1, 1]
  )


def test_one_loss_per_reference_by_hand():
  policy_BC = jnp.array([[-10.0, -12.0]])
  ref_BCK = jnp.array([[[-11.0, -15.0], [-14.0, -10.0]]])
  method = losses.build(
    "dpo", mixture="multi", weights=(3, 1), betas=(0.1, 0.3)
  )
  # Margins (1 - 2) = -1 and 5 - -2 = 7.
  one, other = np.log1p(np.exp(0.1 * 1.0)), np.log1p(np.exp(-0.3 * 7.0))
  got = method(policy_BC, ref_BCK)
  np.testing.assert_allclose(got, [0.75 * one + 0.25 * other], rtol=1e-6)


def test_the_geometric_mean_is_the_exact_optimum(rng):
  # Of E[r] - sum_k w_k beta_k KL(p || r_k) over all distributions p of six
  # outcomes: log p = (r + sum_k w_k beta_k log r_k) / beta + constant, so
  # that the loss of a pair is that of its true rewards.
  reward_Y = rng.normal(size=6)
  ref_YK = rng.dirichlet(np.ones(6), size=3).T
  share_K = np.array([0.2, 0.5, 0.3]) * BETAS
  score_Y = (reward_Y + np.log(ref_YK) @ share_K) / share_K.sum()
  policy_Y = np.exp(score_Y) / np.exp(score_Y).sum()

  def objective(p_Y):
    kl_K = (p_Y[:, None] * np.log(p_Y[:, None] / ref_YK)).sum(0)
    return p_Y @ reward_Y - share_K @ kl_K

  others = [rng.dirichlet(50 * policy_Y) for _ in range(1000)]
  assert max(map(objective, others)) < objective(policy_Y)
  pair_BC = np.array([[0, 1], [2, 3], [5, 4]])
  method = losses.build(
    "dpo", mixture="geometric", weights=(0.2, 0.5, 0.3), betas=BETAS
  )
  got = method(np.log(policy_Y)[pair_BC], np.log(ref_YK)[pair_BC])
  gap_B = reward_Y[pair_BC[:, 0]] - reward_Y[pair_BC[:, 1]]
  np.testing.assert_allclose(got, np.log1p(np.exp(-gap_B)), rtol=1e-4)


MORE = [dict(name=name, **GIVEN.get(name, {})) for name in NAMES]
MORE += [
  dict(name="dpo", dispersion=2.0, nll=0.5),
  dict(name="ipo", scale="mean"),
  dict(name="mallows_phi", dispersion=2.0),
]


@pytest.mark.parametrize("section", MORE, ids=str)
def test_each_pair_has_the_beta_of_its_weights(section):
  clip = dict(epsilon_max=0.2, adaptive=False)
  section = dict(section, mixture="harmonic", clip=clip)
  method = losses.build(**section, weights="adaptive", betas=BETAS)
  got = called(method)
  _, ref_BCK = method.scaled(POLICY_BC, REF_BCK, **FIGURES)
  share_BK = np.asarray(losses.adaptive_weights(ref_BCK)) * BETAS
  for b, share_K in enumerate(share_BK):
    alone = losses.build(
      **section, weights=tuple(share_K.tolist()), beta=float(share_K.sum())
    )
    want = called(alone, slice(b, b + 1))
    np.testing.assert_allclose(got[b], want[0], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("mixture", ["harmonic", "multi"])
def test_each_beta_moves_the_loss_by_its_reference(mixture):
  section = dict(name="dpo", mixture=mixture, weights=(1.0, 1.0, 0.0))
  want = called(losses.build(**section, betas=(0.1, 0.2, 0.3)))
  # A dropped reference has no beta.
  got = called(losses.build(**section, betas=(0.1, 0.2, 30.0)))
  np.testing.assert_allclose(got, want, rtol=1e-6)
  for betas in ((0.2, 0.2, 0.3), (0.1, 0.3, 0.3)):
    got = called(losses.build(**section, betas=betas))
    assert (jnp.abs(got - want) > 1e-4).any()


@pytest.mark.parametrize("mixture", ["harmonic", "geometric", "multi"])
def test_gradients(mixture):
  method = losses.build("dpo", mixture=mixture, betas=BETAS, weights="adaptive")
  call = lambda policy: method(policy, REF_BCK)  # noqa: E731
  check_grads(call, (POLICY_BC,), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)
  assert not jax.grad(lambda ref: method(POLICY_BC, ref).sum())(REF_BCK).any()
  got = jax.jit(method)(POLICY_BC, REF_BCK)
  np.testing.assert_allclose(got, call(POLICY_BC), rtol=1e-5)
  far = jax.value_and_grad(lambda x: method(1e4 * x, 1e4 * REF_BCK).sum())
  assert all(np.isfinite(x).all() for x in far(POLICY_BC))


def test_one_reference_needs_no_mixture():
  method = losses.build("dpo", betas=(0.3,))
  got = method(POLICY_BC, REF_BCK[..., :1])
  want = losses.dpo(POLICY_BC - REF_BCK[..., 0], beta=0.3)
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_rewards_keep_the_beta_of_the_loss():
  assert losses.build("dpo", mixture="multi", betas=BETAS).beta == 0.1
  method = losses.build("dpo", mixture="multi", beta=0.4, betas=BETAS)
  assert method.beta == 0.4
  without = losses.build("dpo", mixture="multi", betas=BETAS)
  np.testing.assert_array_equal(called(method), called(without))


def test_the_loss_where_policy_and_references_agree():
  # (1 / (2 beta))^2 at beta = (0.1 + 3 * 0.3) / 4, and of each by its weight.
  given = dict(name="ipo", weights=(1, 3), betas=(0.1, 0.3))
  method = losses.build(**given, mixture="harmonic")
  assert method.start_loss == pytest.approx(4.0)
  method = losses.build(**given, mixture="multi")
  assert method.start_loss == pytest.approx(0.25 * 25 + 0.75 / 0.36)


@pytest.mark.parametrize("mixture", ["harmonic", "multi"])
def test_a_beta_per_reference(mixture):
  method = losses.build("dpo", mixture=mixture, betas=(0.1, 0.3))
  match = "'dpo' has 2 betas, but K=3 references"
  for call in (called, lambda m: m.virtual(REF_BCK)):
    with pytest.raises(ValueError, match=match):
      call(method)


@pytest.mark.parametrize(
  "section,match",
  [
    (dict(name="aot"), "'aot' does not take 'betas'; it takes: adaptive"),
    (dict(name="dr_dpo"), "'dr_dpo' does not take 'betas'"),
    (dict(name="mnpo"), "'mnpo' does not take 'betas'"),
    (dict(name="beta_dpo"), "'beta_dpo' does not take 'betas'"),
    (dict(name="dpo", adaptive_beta=0.0), "does not take 'betas'"),
    (dict(name="alpha_dpo", running=0.9), "does not take 'betas'"),
    (dict(name="mrpo", official_weights=True), "does not take 'betas'"),
    (dict(name="simpo"), "'simpo' does not take 'betas'"),
    (dict(name="dpo"), "'dpo' takes one reference, got 3 betas; name a mixt"),
    (dict(name="mrpo", betas=()), r"a tuple of positive numbers.*got \(\)"),
    (dict(name="mrpo", betas=(0.1, 0.0)), "a tuple of positive numbers"),
    (dict(name="mrpo", betas=(0.1, float("inf"))), "a tuple of positive"),
    (dict(name="mrpo", betas=(float("nan"),)), "a tuple of positive numbers"),
    (dict(name="mrpo", betas="12"), "a tuple of positive numbers.*got '12'"),
    (dict(name="mrpo", betas=0.1), "a tuple of positive numbers.*got 0.1"),
  ],
)
def test_what_betas_cannot_be_is_refused(section, match):
  with pytest.raises(ValueError, match=match):
    losses.build(**{"betas": BETAS, **section})
