# SPDX-License-Identifier: Apache-2.0
"""Losses of the margin against hand values, laws and refusals."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mrpo_jax import losses
from mrpo_jax.losses.pair import MAX_EXPONENT, margin
from tests.material import losses_fixture as fixture
from tests.material.losses_fixture import logistic, sigmoid

LOGRATIO = jnp.asarray(fixture.logratio_BC, jnp.float32)
# The policy gains 2 nats on chosen, loses 1 on rejected.
PAIR = jnp.array([[2.0, -1.0]])
# At beta 1: sigmoid(ln 3) = 3 / 4.
THREE_QUARTERS = jnp.array([[jnp.log(3.0), 0.0]])


def test_margin_is_chosen_minus_rejected():
  np.testing.assert_array_equal(
    margin(jnp.array([[2.0, -1.0], [-4.0, 0.5]])), [3.0, -4.5]
  )


def test_hand_value():
  # Margin 0.5 * 3.
  got = losses.dpo(PAIR, beta=0.5)
  np.testing.assert_allclose(got, [np.log1p(np.exp(-1.5))], rtol=1e-6)


def test_full_smoothing_swaps_the_labels():
  np.testing.assert_allclose(
    losses.dpo(LOGRATIO, label_smoothing=1.0),
    losses.dpo(LOGRATIO[:, ::-1]),
    rtol=1e-6,
  )


def test_gradient_by_hand_and_by_differences():
  # d loss / d r_w = -beta * sigmoid(-beta * Delta)
  grad = jax.grad(lambda x: losses.dpo(x, beta=0.5).sum())(LOGRATIO)
  delta_B = LOGRATIO[:, 0] - LOGRATIO[:, 1]
  want_B = -0.5 / (1 + np.exp(0.5 * delta_B))
  np.testing.assert_allclose(grad[:, 0], want_B, rtol=1e-5)
  np.testing.assert_allclose(grad[:, 1], -want_B, rtol=1e-5)
  with jax.enable_x64(True):
    wide = jnp.asarray(fixture.logratio_BC)
    check_grads(losses.dpo, (wide,), 2, modes=["rev"])


def test_smoothed_dpo_by_hand():
  # Margin 0.5 * 2 * 3; a tenth of the labels the other way round.
  got = losses.dpo(PAIR, beta=0.5, scale_B=2.0, label_smoothing=0.1)
  want = 0.9 * logistic(3) + 0.1 * logistic(-3)
  np.testing.assert_allclose(got, [want], rtol=1e-6)


def test_robust_dpo_by_hand():
  # (0.75 * loss(1.5) - 0.25 * loss(-1.5)) / (1 - 0.5)
  got = losses.robust_dpo(PAIR, beta=0.5, label_smoothing=0.25)
  want = 1.5 * logistic(1.5) - 0.5 * logistic(-1.5)
  np.testing.assert_allclose(got, [want], rtol=1e-6)


def test_robust_dpo_expects_dpo_under_flipped_labels():
  eps = 0.3
  flipped = LOGRATIO[:, ::-1]
  robust = functools.partial(losses.robust_dpo, label_smoothing=eps)
  got = (1 - eps) * robust(LOGRATIO) + eps * robust(flipped)
  np.testing.assert_allclose(got, losses.dpo(LOGRATIO), rtol=1e-5)


def test_robust_dpo_without_smoothing_is_dpo():
  got = losses.robust_dpo(LOGRATIO, label_smoothing=0.0)
  np.testing.assert_allclose(got, losses.dpo(LOGRATIO), rtol=1e-6)


@pytest.mark.parametrize("share", [0.5, 0.7, 1.0, -0.1, float("nan")])
def test_robust_dpo_refuses_half_of_the_labels_flipped_and_more(share):
  with pytest.raises(
    ValueError, match=f"robust_dpo: label_smoothing must be .*, got {share}"
  ):
    losses.robust_dpo(PAIR, label_smoothing=share)


def test_hinge_by_hand():
  # 1 - 0.25 * 0.5 * 3, and past the margin nothing, from 4 nats on.
  got = losses.hinge(PAIR, beta=0.25, scale_B=0.5)
  np.testing.assert_allclose(got, [0.625], rtol=1e-6)
  wide = jnp.array([[2.0, -1.875], [2.0, -2.0], [2.0, -3.0]])
  np.testing.assert_allclose(losses.hinge(wide, beta=0.25), [1 / 32, 0, 0])
  grad = jax.grad(lambda x: losses.hinge(x, beta=0.25).sum())(wide)
  np.testing.assert_allclose(grad, [[-0.25, 0.25], [0, 0], [0, 0]])


def test_ipo_by_hand():
  # (0.5 * 3 - 1 / (2 * 0.25))^2: the scale is on the margin alone.
  got = losses.ipo(PAIR, beta=0.25, scale_B=0.5)
  np.testing.assert_allclose(got, [0.25], rtol=1e-6)


def test_exo_by_hand():
  # 3/4 log(3/4 / 9/10) + 1/4 log(1/4 / 1/10)
  got = losses.exo(THREE_QUARTERS, beta=1.0, epsilon=0.1)
  want = 0.75 * np.log(0.75 / 0.9) + 0.25 * np.log(0.25 / 0.1)
  np.testing.assert_allclose(got, [want], rtol=1e-6)


def test_exo_rests_where_the_policy_has_the_smoothed_labels():
  # sigmoid(ln 3) = 3/4 = 1 - epsilon
  loss = functools.partial(losses.exo, beta=1.0, epsilon=0.25)
  value, grad = jax.value_and_grad(lambda x: loss(x)[0])(THREE_QUARTERS)
  np.testing.assert_allclose(value, 0.0, atol=1e-7)
  np.testing.assert_allclose(grad, 0.0, atol=1e-7)
  nearby = loss(jnp.array([[1.0, 0.0], [1.2, 0.0]]))
  assert (nearby > 1e-5).all()


@pytest.mark.parametrize("epsilon", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_exo_refuses_labels_that_are_certain(epsilon):
  with pytest.raises(
    ValueError, match=f"exo: epsilon must be .*, got {epsilon}"
  ):
    losses.exo(PAIR, epsilon=epsilon)


@pytest.mark.parametrize(
  "temperature,switch", [(1.0, 3 / 4), (0.5, 9 / 10), (0.25, 81 / 82)]
)
def test_discopop_by_hand(temperature, switch):
  # sigmoid(ln 3 / temperature) is the share of exp(-ln 3) = 1/3; the rest is
  # of -log(3/4).
  got = losses.discopop(THREE_QUARTERS, beta=1.0, temperature=temperature)
  want = (1 - switch) * np.log(4 / 3) + switch / 3
  np.testing.assert_allclose(got, [want], rtol=1e-6)


def test_discopop_caps_its_exponential():
  # At temperature 4 and margin m the exponent is about m / 4 - m.
  loss = functools.partial(losses.discopop, beta=1.0, temperature=4.0)
  reach = 4 / 3 * MAX_EXPONENT
  below = loss(jnp.array([[-reach + 1, 0.0]]))[0] - reach + 1
  np.testing.assert_allclose(np.log(below), MAX_EXPONENT - 0.75, rtol=1e-5)
  past = loss(jnp.array([[-reach - 1, 0.0], [-reach - 9, 0.0]]))
  np.testing.assert_allclose(np.log(past), MAX_EXPONENT, rtol=1e-6)


def test_exponentials_end_at_80():
  assert MAX_EXPONENT == 80


def test_focal_dpo_by_hand():
  # (3/4)^2 * -log(3/4)
  got = losses.focal_dpo(THREE_QUARTERS, beta=1.0, gamma=2.0)
  np.testing.assert_allclose(got, [9 / 16 * np.log(4 / 3)], rtol=1e-6)


@pytest.mark.parametrize("detach_weight", [True, False])
def test_focal_dpo_without_gamma_is_dpo(detach_weight):
  focal = functools.partial(
    losses.focal_dpo, gamma=0.0, detach_weight=detach_weight
  )
  for got, want in zip(
    jax.vjp(focal, LOGRATIO), jax.vjp(losses.dpo, LOGRATIO), strict=True
  ):
    if callable(got):
      (got,), (want,) = got(jnp.ones(4)), want(jnp.ones(4))
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_focal_dpo_gradient_with_and_without_the_weight():
  # With p = sigmoid(m): d loss / dm is -p^gamma (1 - p), times
  # 1 + gamma log p where the weight is not detached.
  gamma, m_B = 2.0, np.array([-3.0, -0.6, 0.0, 2.0])
  logratio_BC = jnp.stack([jnp.array(m_B), jnp.zeros(4)], axis=-1)
  p_B = sigmoid(m_B)
  detached_B = -(p_B**gamma) * (1 - p_B)
  attached_B = detached_B * (1 + gamma * np.log(p_B))
  for detach, want_B in ((True, detached_B), (False, attached_B)):
    loss = functools.partial(
      losses.focal_dpo, beta=1.0, gamma=gamma, detach_weight=detach
    )
    grad = jax.grad(lambda x, loss=loss: loss(x).sum())(logratio_BC)
    np.testing.assert_allclose(grad[:, 0], want_B, rtol=1e-5)
    np.testing.assert_allclose(grad[:, 1], -want_B, rtol=1e-5)


def test_bpo_by_hand():
  # R = 2: (2^2 - 1) / 8 - (1/2 - 1) / 4, (2 - 1) / 4 + ln 2 / 4,
  # (sqrt 2 - 1) / 2 + (sqrt 2 - 1) / 2
  wrong = jnp.array([[0.0, jnp.log(2.0)]])
  for power, want in (
    (1.0, 0.5),
    (0.0, 0.25 + 0.25 * np.log(2)),
    (-0.5, np.sqrt(2) - 1),
  ):
    got = losses.bpo(wrong, beta=1.0, power=power)
    np.testing.assert_allclose(got, [want], rtol=1e-6)
  # R = 1/4: (1/16 - 1) / 8 - (4 - 1) / 4
  right = jnp.array([[jnp.log(4.0), 0.0]])
  got = losses.bpo(right, beta=1.0, power=-0.5)
  np.testing.assert_allclose(got, [1 / 2 - 1], rtol=1e-6)  # exp(-m / 2) - 1
  got = losses.bpo(right, beta=2.0, scale_B=0.5)
  np.testing.assert_allclose(got, [-15 / 128 - 3 / 4], rtol=1e-6)


@pytest.mark.parametrize("power", [2.0, 1.0, 0.0, -0.25])
def test_bpo_is_the_bregman_divergence_of_its_generator(power):
  # h'(R) R - h(R) - h'(1 / R)
  def h(R):
    if not power:
      return R * jnp.log(R) / 4
    return (R ** (1 + power) - R) / (4 * power * (1 + power))

  slope = jax.vmap(jax.grad(h))
  with jax.enable_x64(True):
    wide = jnp.asarray(fixture.logratio_BC)
    R_B = jnp.exp(-0.5 * margin(wide))
    want = slope(R_B) * R_B - h(R_B) - slope(1 / R_B)
    want -= slope(jnp.ones(4)) - h(1.0) - slope(jnp.ones(4))  # at R = 1
    got = losses.bpo(wide, beta=0.5, power=power)
    np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("power", [1.0, 0.0, -0.5])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
def test_bpo_is_least_where_dpo_is(power, share):
  # Where a share of equal pairs is ranked so: sigmoid(margin) is the share.
  def expected(m, loss, **keywords):
    pair = jnp.stack([m, jnp.zeros(())])[None]
    loss = functools.partial(loss, beta=1.0, **keywords)
    return share * loss(pair)[0] + (1 - share) * loss(pair[:, ::-1])[0]

  best = jnp.log(share / (1 - share))
  for loss, given in ((losses.dpo, {}), (losses.bpo, dict(power=power))):
    slope = jax.grad(functools.partial(expected, loss=loss, **given))
    np.testing.assert_allclose(slope(best), 0.0, atol=1e-6)
    assert slope(best - 0.5) < -0.01 and slope(best + 0.5) > 0.01


def test_bpo_starts_as_steep_as_dpo():
  for power in (3.0, 1.0, 0.0, -0.5, -0.9):
    bpo = functools.partial(losses.bpo, power=power)
    got, want = (
      jax.grad(lambda x, loss=loss: loss(x, beta=0.3)[0])(jnp.zeros((1, 2)))
      for loss in (bpo, losses.dpo)
    )
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_bpo_clamps_its_exponents_at_80():
  # power 1: -2 m of a wrong pair, m of a right one
  loss = functools.partial(losses.bpo, beta=1.0)
  nats = jnp.array([-39.5, -41.0, -1e4, 79.0, 81.0, 1e4])
  got, pull = jax.vjp(loss, jnp.stack([nats, jnp.zeros(6)], axis=-1))
  (grad,) = pull(jnp.ones(6))
  np.testing.assert_allclose(
    np.log(np.abs(got)),
    np.array([79.0, 80.0, 80.0, 79.0, 80.0, 80.0]) - np.log([8, 8, 8, 4, 4, 4]),
    rtol=1e-6,
  )
  assert grad[0, 0] < -1e30 and grad[3, 0] < -1e30
  assert (np.abs(grad[np.array([1, 2, 4, 5]), 0]) <= 0.25).all()


@pytest.mark.parametrize("power", [-1.0, -2.0, float("nan"), float("-inf")])
def test_bpo_refuses_a_power_of_minus_1_and_less(power):
  with pytest.raises(ValueError, match=f"bpo: power must be .*, got {power}"):
    losses.bpo(PAIR, power=power)


def test_combine_by_hand():
  # 0.8 * loss(0.75) + 0.2 * (1 - 0.75) + 3 * (3 - 2)^2
  mixed = losses.combine([losses.dpo, losses.hinge, losses.ipo], (0.8, 0.2, 3))
  got = mixed(PAIR, beta=0.25)
  np.testing.assert_allclose(got, [0.8 * logistic(0.75) + 3.05], rtol=1e-6)


def test_combine_of_one_is_that_loss():
  beta = inspect.signature(losses.combine([losses.dpo], [1])).parameters["beta"]
  assert beta.default == 0.1 and beta.kind is beta.KEYWORD_ONLY
  alone = losses.combine([losses.dpo], [1.0])
  np.testing.assert_array_equal(alone(LOGRATIO), losses.dpo(LOGRATIO))


def test_combine_takes_generators_more_than_once():
  mixed = losses.combine((f for f in [losses.dpo]), (w for w in [2.0]))
  for _ in range(2):
    np.testing.assert_array_equal(mixed(LOGRATIO), 2 * losses.dpo(LOGRATIO))


@pytest.mark.parametrize("weights", [[1.0], [1.0, 2.0, 3.0], []])
def test_combine_refuses_unequal_lengths(weights):
  with pytest.raises(ValueError, match=f"2 losses and {len(weights)} weights"):
    losses.combine([losses.dpo, losses.ipo], weights)


def test_combine_refuses_nothing():
  with pytest.raises(ValueError, match="0 losses and 0 weights"):
    losses.combine([], [])


MARGIN_LOSSES = [
  losses.bpo,
  losses.discopop,
  losses.dpo,
  losses.exo,
  losses.focal_dpo,
  losses.hinge,
  losses.ipo,
  losses.robust_dpo,
]


@pytest.mark.parametrize("loss", MARGIN_LOSSES)
def test_gradient_pulls_the_two_responses_apart_equally(loss):
  grad = jax.grad(lambda x: loss(x).sum())(LOGRATIO)
  np.testing.assert_allclose(grad[:, 0], -grad[:, 1], rtol=1e-6)
  assert (grad[:, 0] < 0).all()
