# SPDX-License-Identifier: Apache-2.0
"""Descent on a loss ends at that loss's exact optimum, every outcome counted.

Two prompts with six responses each; every ordered pair is seen, weighted by
how often it is drawn times its Bradley-Terry probability.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, logsumexp, softmax

from mrpo_jax import losses
from mrpo_jax.training import tabular

X, Y, K = 2, 6, 3
BETA = 0.5
WEIGHT_K = (0.5, 0.3, 0.2)
RNG = np.random.default_rng(0)
REWARD_XY = RNG.normal(size=(X, Y))
LOGITS_XYK = RNG.normal(size=(X, Y, K))
REF_LOGP_XYK = LOGITS_XYK - logsumexp(LOGITS_XYK, axis=1, keepdims=True)
PROMPT_B, *SIDES = (
  np.array([(x, i, j) for x in range(X) for i in range(Y) for j in range(i)])
  .repeat(2, axis=0)
  .T
)
RESPONSE_BC = np.stack(SIDES, axis=1)
RESPONSE_BC[1::2] = RESPONSE_BC[1::2, ::-1]  # each pair in both orders
DRAWN_B = RNG.dirichlet(np.ones(len(PROMPT_B) // 2)).repeat(2)
PREFERRED_B = expit(
  REWARD_XY[PROMPT_B, RESPONSE_BC[:, 0]]
  - REWARD_XY[PROMPT_B, RESPONSE_BC[:, 1]]
)


def fit(loss, ref_logp_XYK=REF_LOGP_XYK, *, lr=50.0, steps=20_000):
  return tabular.fit(
    loss,
    ref_logp_XYK,
    PROMPT_B,
    RESPONSE_BC,
    weight_B=DRAWN_B * PREFERRED_B,
    lr=lr,
    steps=steps,
  )


def tilted(ref_logp_XY, beta=BETA):
  """pi ~ reference * exp(reward / beta)."""
  return softmax(ref_logp_XY + REWARD_XY / beta, axis=1)


def test_one_pair_by_hand():
  # Of two arms, start 1/2 each: the logits part by 2 * lr * sigmoid(-m) a
  # step, m being their difference so far; at lr 1/2 by 1/2, then 0.37754.
  # The pair stands twice: the loss is a mean.
  two = functools.partial(
    tabular.fit,
    losses.build("dpo", beta=1.0),
    np.log(np.full((1, 2, 1), 0.5)),
    np.array([0, 0]),
    np.array([[1, 0], [1, 0]]),
    lr=0.5,
  )
  first, second = 0.6224593312018546, expit(0.5 + expit(-0.5))
  np.testing.assert_allclose(two(steps=1), [[1 - first, first]], rtol=1e-12)
  np.testing.assert_allclose(two(steps=2), [[1 - second, second]], rtol=1e-12)
  mean = (first + second) / 2
  for average in (2, 9):  # or of all, where there are fewer
    got = two(steps=2, average=average)
    np.testing.assert_allclose(got, [[1 - mean, mean]], rtol=1e-12)


def test_it_starts_at_reference_0():
  got = fit(losses.build("mrpo"), lr=0.0, steps=1)
  np.testing.assert_allclose(got, np.exp(REF_LOGP_XYK[..., 0]), rtol=1e-12)


def test_a_wrong_axis_is_named():
  with pytest.raises(
    ValueError, match="`response_BC` has size 3 and must be 2"
  ):
    tabular.fit(
      losses.build("dpo"),
      REF_LOGP_XYK[..., :1],
      np.zeros(3, int),
      np.zeros((3, 3), int),
      lr=1.0,
      steps=1,
    )


def test_float32_references_are_computed_in_float64():
  ref_logp_XYK = np.float32(REF_LOGP_XYK[..., :1])
  loss = losses.build("dpo", beta=BETA)
  got = fit(loss, ref_logp_XYK, steps=50)
  assert got.dtype == np.float64
  want = fit(loss, np.float64(ref_logp_XYK), steps=50)
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
  "given,match",
  [
    (dict(prompt_B=[0, 1]), "`prompt_B` holds 1, .* from 0 to 0"),
    # As the paper counts its arms.
    (dict(response_BC=[[1, 2], [2, 3]]), "`response_BC` holds 3, .* 0 to 2"),
    (dict(response_BC=[[0, -1], [1, 2]]), "`response_BC` holds -1, .* 0 to 2"),
    (dict(steps=0), "steps must be from 1 up, got 0"),
    (dict(average=0), "average must be from 1 up, got 0"),
  ],
)
def test_what_fit_cannot_do_is_refused(given, match):
  good = dict(
    ref_logp_XYK=np.log(np.full((1, 3, 1), 1 / 3)),
    prompt_B=[0, 0],
    response_BC=[[0, 1], [1, 2]],
    steps=2,
    average=1,
  )
  given = {key: np.asarray(value) for key, value in {**good, **given}.items()}
  numbers = {key: int(given.pop(key)) for key in ("steps", "average")}
  with pytest.raises(ValueError, match=match):
    tabular.fit(losses.build("dpo"), **given, **numbers, lr=0.1)


def test_dpo_tilts_its_reference():
  ref_XYK = REF_LOGP_XYK[..., :1]
  got = fit(losses.build("dpo", beta=BETA), ref_XYK)
  np.testing.assert_allclose(got, tilted(ref_XYK[..., 0]), atol=1e-12)


MEANS = {  # of probabilities, by their definition
  "harmonic": lambda r, w: 1 / (w / r).sum(-1),
  "geometric": lambda r, w: (r**w).prod(-1),
  "arithmetic": lambda r, w: (w * r).sum(-1),
  "minimum": lambda r, w: r.min(-1),
  "maximum": lambda r, w: r.max(-1),
}


@functools.cache
def fitted(mixture):
  return fit(losses.build("dpo", mixture=mixture, weights=WEIGHT_K, beta=BETA))


@pytest.mark.parametrize("mixture", MEANS)
def test_several_references_are_one_tilted(mixture):
  virtual_XY = MEANS[mixture](np.exp(REF_LOGP_XYK), np.array(WEIGHT_K))
  want_XY = tilted(np.log(virtual_XY))
  np.testing.assert_allclose(fitted(mixture), want_XY, atol=1e-12)


def objective(policy_XY):
  """E[reward] - beta * sum_k w_k KL(policy, r_k), summed over prompts."""
  log_ratio_XYK = np.log(policy_XY)[..., None] - REF_LOGP_XYK
  gain_XY = REWARD_XY - BETA * log_ratio_XYK @ np.array(WEIGHT_K)
  return (policy_XY * gain_XY).sum(axis=(-1, -2))


def test_the_geometric_mean_solves_several_kl_penalties(rng):
  best_XY = fitted("geometric")
  best = objective(best_XY)
  # The optimum of  E[r] - beta * KL(policy, product of r_k^w_k).
  log_product_XY = REF_LOGP_XYK @ np.array(WEIGHT_K)
  exact = BETA * logsumexp(log_product_XY + REWARD_XY / BETA, axis=1).sum()
  np.testing.assert_allclose(best, exact, atol=1e-12)
  size_N11 = 10.0 ** rng.uniform(-3, 0.5, size=(10_000, 1, 1))
  moved_NXY = softmax(
    np.log(best_XY) + size_N11 * rng.normal(size=(10_000, X, Y)), axis=-1
  )
  assert objective(moved_NXY).max() < best
  for other in ("harmonic", "arithmetic"):
    assert objective(fitted(other)) < best - 1e-3


def test_ipo_is_a_least_squares_problem():
  # With u = log policy / reference, a pair drawn with weight d is
  #   d * [ p (u_i - u_j - c)^2 + (1 - p) (u_j - u_i - c)^2 ],  c = 1 / (2 beta)
  # and least where u_i - u_j is (2 p - 1) c = (p - 1/2) / beta, if it can.
  ref_XYK = REF_LOGP_XYK[..., :1]
  got = fit(losses.build("ipo", beta=BETA), ref_XYK, lr=2.0, steps=20_000)
  for x in range(X):
    pairs = np.flatnonzero(PROMPT_B == x)[::2]  # one order of each
    sign_BY = (
      np.eye(Y)[RESPONSE_BC[pairs, 0]] - np.eye(Y)[RESPONSE_BC[pairs, 1]]
    )
    wanted_B = (PREFERRED_B[pairs] - 0.5) / BETA
    root_B = np.sqrt(DRAWN_B[pairs])
    u_Y, *_ = np.linalg.lstsq(
      root_B[:, None] * sign_BY, root_B * wanted_B, rcond=None
    )
    want_Y = softmax(ref_XYK[x, :, 0] + u_Y)
    np.testing.assert_allclose(got[x], want_Y, atol=1e-12)
    # The margins alone would not do: the problem has no exact solution.
    assert np.abs(sign_BY @ u_Y - wanted_B).max() > 1e-2


def test_a_prompts_dispersion_is_a_factor_on_beta():
  scale_X = np.array([0.6, 1.4])

  def loss(policy_BC, ref_BCK):
    logratio_BC = policy_BC - ref_BCK[..., 0]
    return losses.mallows_theta(
      logratio_BC, jnp.asarray(scale_X[PROMPT_B]), beta=BETA
    )

  ref_XYK = REF_LOGP_XYK[..., :1]
  want_XY = tilted(ref_XYK[..., 0], BETA * scale_X[:, None])
  np.testing.assert_allclose(fit(loss, ref_XYK), want_XY, atol=1e-12)


def test_the_forward_kl_wants_the_arithmetic_mean():
  # r = Z - beta * mean / policy, so policy = beta * mean / (Z - r).
  loss = losses.build(
    "forward_kl_dpo", mixture="arithmetic", weights=WEIGHT_K, beta=BETA
  )
  got = fit(loss, lr=5.0, steps=40_000)
  mean_XY = np.exp(REF_LOGP_XYK) @ np.array(WEIGHT_K)
  Z_XY = REWARD_XY + BETA * mean_XY / got
  want_XY = np.broadcast_to(Z_XY[:, :1], Z_XY.shape)
  np.testing.assert_allclose(Z_XY, want_XY, atol=1e-12)


def test_descent_is_in_float64_whatever_the_caller_uses():
  assert not jax.config.jax_enable_x64
  assert fitted("harmonic").dtype == np.float64
