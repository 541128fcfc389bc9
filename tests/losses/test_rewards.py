# SPDX-License-Identifier: Apache-2.0
"""Losses of single rewards against hand values, laws and refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import losses
from tests.material import losses_fixture as fixture
from tests.material.losses_fixture import logistic, sigmoid

# The policy gains 2 nats on chosen, loses 1 on rejected; at beta 0.5 the
# rewards are 1 and -0.5.
PAIR = jnp.array([[2.0, -1.0]])
LOGRATIO = jnp.asarray(fixture.logratio_BC, jnp.float32)


def close(got, want, rtol=1e-6):
  np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-7)


def test_nca_by_hand():
  # -log s(1) - 1/2 log s(-1) - 1/2 log s(0.5)
  want = logistic(1) + 0.5 * logistic(-1) + 0.5 * logistic(0.5)
  close(losses.nca(PAIR, beta=0.5), [want])


def test_bco_by_hand():
  # -log s(1 - 1/8) - log s(1/8 + 0.5)
  want = logistic(0.875) + logistic(0.625)
  close(losses.bco(PAIR, beta=0.5, shift=0.125), [want])


def test_apo_zero_by_hand():
  # 1 - s(1) + s(-0.5)
  close(losses.apo_zero(PAIR, beta=0.5), [1 - sigmoid(1) + sigmoid(-0.5)])


def test_apo_down_by_hand():
  # s(1) + 1 - s(1.5)
  close(losses.apo_down(PAIR, beta=0.5), [sigmoid(1) + 1 - sigmoid(1.5)])


def test_apo_zero_of_single_responses_by_hand():
  # 1 - s(1) where it is good, s(1) where it is bad
  got = losses.apo_zero_unpaired(
    jnp.array([2.0, 2.0]), jnp.array([True, False]), beta=0.5
  )
  close(got, [sigmoid(-1), sigmoid(1)])


def by_response(loss, **keywords):
  """A loss of single responses, of the chosen and of the rejected."""
  good_B = jnp.ones(4, bool)
  return (
    loss(LOGRATIO[:, 0], good_B, **keywords),
    loss(LOGRATIO[:, 1], ~good_B, **keywords),
  )


def test_apo_zero_is_the_sum_over_its_responses():
  got = sum(by_response(losses.apo_zero_unpaired, beta=0.3))
  close(got, losses.apo_zero(LOGRATIO, beta=0.3))


def test_kto_by_hand():
  # z = 1: 2 (1 - s(0.5 (2 - 1))) and 3 (1 - s(0.5 (1 + 1)))
  got = losses.kto(
    PAIR, beta=0.5, kl_shift=1.0, desirable_weight=2.0, undesirable_weight=3.0
  )
  close(got, [[2 * sigmoid(-0.5), 3 * sigmoid(-1)]])


def test_the_weights_of_apo_zero_of_single_responses():
  given = dict(desirable_weight=2.0, undesirable_weight=3.0)
  for got_B, weight, want_B in zip(
    by_response(losses.apo_zero_unpaired, **given),
    given.values(),
    by_response(losses.apo_zero_unpaired),
    strict=True,
  ):
    close(got_B, weight * want_B)


def test_bco_of_single_responses_by_hand():
  # -log s(1 - 1/8) where it is good, -log s(1/8 - 1) where it is bad
  got_B = losses.bco_unpaired(
    jnp.array([2.0, 2.0]), jnp.array([True, False]), beta=0.5, shift=0.125
  )
  close(got_B, [logistic(0.875), logistic(-0.875)])


def test_bco_is_the_sum_over_its_responses():
  given = dict(beta=0.3, shift=0.7)
  got = sum(by_response(losses.bco_unpaired, **given))
  close(got, losses.bco(LOGRATIO, **given))


def test_the_shift_of_bco_has_no_gradient():
  # The running mean of the rewards, this batch included, follows the policy.
  def total(shift):
    return losses.bco(LOGRATIO, shift=shift).sum()

  assert jax.grad(total)(0.3) == 0.0


def test_the_shift_of_bco_of_single_responses_has_no_gradient():
  def total(shift):
    good_B = jnp.ones(4, bool)
    return losses.bco_unpaired(LOGRATIO[:, 0], good_B, shift=shift).sum()

  assert jax.grad(total)(jnp.array(2.0)) == 0.0


def test_kto_estimates_its_shift_from_mismatched_responses():
  # z = (3 + 1) / 2, without the one that is none
  given = dict(beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
  good_B = jnp.array([True, False, True])
  logratio_B = jnp.array([4.0, 1.0, 0.0])
  got_B = losses.kto_unpaired(
    logratio_B,
    good_B,
    mismatched_logratio_B=jnp.array([3.0, 1.0, 50.0]),
    valid_B=jnp.array([True, True, False]),
    **given,
  )
  close(got_B[:2], [2 * sigmoid(-1), 3 * sigmoid(-0.5)])
  # A mean below 0 counts as 0.
  got_B = losses.kto_unpaired(
    logratio_B, good_B, mismatched_logratio_B=jnp.full(3, -1.0), **given
  )
  close(got_B, losses.kto_unpaired(logratio_B, good_B, **given))


def test_mismatched_responses_have_no_gradient():
  def total(mismatched_B):
    good_B = jnp.ones(4, bool)
    return losses.kto_unpaired(
      LOGRATIO[:, 0], good_B, mismatched_logratio_B=mismatched_B
    ).sum()

  assert not jax.grad(total)(jnp.full(4, 2.0)).any()


def test_kto_is_the_same_on_single_responses():
  given = dict(
    beta=0.3, kl_shift=0.4, desirable_weight=1.2, undesirable_weight=1.6
  )
  got_BC = losses.kto(LOGRATIO, **given)
  assert got_BC.shape == (4, 2)
  for column, want_B in enumerate(by_response(losses.kto_unpaired, **given)):
    close(got_BC[:, column], want_B)


def test_kto_shift_is_at_least_zero():
  for shift in (-5.0, jnp.array([-5.0, -1.0, -0.1, -9.0])):
    close(losses.kto(LOGRATIO, kl_shift=shift), losses.kto(LOGRATIO))


def test_kto_takes_a_shift_for_each_pair():
  shift_B = jnp.array([0.5, 0.0, 2.0, 1.0])
  got_BC = losses.kto(LOGRATIO, kl_shift=shift_B)
  for pair, shift in enumerate(shift_B.tolist()):
    want_BC = losses.kto(LOGRATIO, kl_shift=shift)
    close(got_BC[pair], want_BC[pair])


def test_labels_may_be_numbers():
  good_B = jnp.array([1, 0, 1, 0])
  for loss in (losses.kto_unpaired, losses.apo_zero_unpaired):
    want = loss(LOGRATIO[:, 0], good_B.astype(bool))
    close(loss(LOGRATIO[:, 0], good_B), want)


def test_kto_shift_is_cast_by_hand():
  with jax.numpy_dtype_promotion("strict"):
    got = losses.kto(LOGRATIO, kl_shift=jnp.ones(4, jnp.bfloat16))
  close(got, losses.kto(LOGRATIO, kl_shift=1.0))


def test_kto_shift_has_no_gradient():
  def total(shift):
    return losses.kto(LOGRATIO, kl_shift=shift).sum()

  assert jax.grad(total)(jnp.array(2.0)) == 0.0
  assert not jax.grad(total)(jnp.ones(4)).any()


LN_3, LN_4 = np.log(3.0), np.log(4.0)


@pytest.mark.parametrize(
  "divergence,alpha,chosen,want",
  [
    ("reverse_kl", 0.5, LN_3, LN_3),
    ("forward_kl", 0.5, LN_4, 3 / 4),  # 1 - 1/4
    ("js", 0.5, LN_3, np.log(1.5)),  # ln 2 + ln 3/4
    ("alpha", 0.5, LN_4, 1.0),  # (1/2 - 1) / (-1/2)
    ("alpha", 2.0, LN_3, 2.0),  # 3 - 1
    ("alpha", 3.0, LN_3, 4.0),  # (9 - 1) / 2
    ("alpha", 0.0, LN_4, 3 / 4),
    ("alpha", 1.0, LN_3, LN_3),
    ("chi_squared_kl", 0.5, LN_3, LN_3 + 2),  # 3 + ln 3 - 1
    ("chi_squared_kl", 0.5, -LN_4, -LN_4 - 3 / 4),
    ("log_squared", 0.5, LN_3, LN_3 / 3),
    ("log_squared", 0.5, -LN_4, -4 * LN_4),  # ln(1/4) / (1/4)
  ],
)
def test_f_dpo_by_hand(divergence, alpha, chosen, want):
  # h(0) = 0, so beta 2 doubles h of the chosen response.
  loss = functools.partial(
    losses.f_dpo, beta=2.0, divergence=divergence, alpha=alpha
  )
  close(loss(jnp.array([[chosen, 0.0]])), [logistic(2 * want)])
  close(loss(jnp.array([[0.0, chosen]])), [logistic(-2 * want)])


def test_f_dpo_between_the_divergences():
  alpha = functools.partial(losses.f_dpo, LOGRATIO, divergence="alpha")
  close(alpha(alpha=1.0), losses.dpo(LOGRATIO))
  close(alpha(alpha=1.0), losses.f_dpo(LOGRATIO))
  close(alpha(alpha=0.0), losses.f_dpo(LOGRATIO, divergence="forward_kl"))
  close(alpha(alpha=1.0 - 1e-6), losses.dpo(LOGRATIO), rtol=1e-4)


@pytest.mark.parametrize(
  "keywords,sign",
  [
    (dict(divergence="forward_kl"), -1),
    (dict(divergence="alpha", alpha=2.0), 1),
    (dict(divergence="chi_squared_kl"), 1),
  ],
)
def test_f_dpo_clamps_its_exponents_at_80(keywords, sign):
  # A tiny beta brings h down to the curved part of the sigmoid.
  loss = functools.partial(losses.f_dpo, beta=float(np.exp(-80.0)), **keywords)
  nats = sign * jnp.array([[79.0, 0.0], [80.0, 0.0], [81.0, 0.0], [1e4, 0.0]])
  got, pull = jax.vjp(loss, nats)
  height = np.exp([-1.0, 0.0, 0.0, 0.0])
  close(got, logistic(sign * height), rtol=1e-4)
  (grad,) = pull(jnp.ones(4))
  assert grad[0, 0] < -0.1 and not grad[2:, 0].any()


# f(t) of t = exp(r); h is its derivative, up to a constant.
GENERATORS = {
  "reverse_kl": lambda t: t * jnp.log(t),
  "forward_kl": lambda t: -jnp.log(t),
  "js": lambda t: t * jnp.log(t) - (t + 1) * jnp.log((t + 1) / 2),
  "chi_squared_kl": lambda t: (t - 1) ** 2 / 2 + t * jnp.log(t),
  "log_squared": lambda t: jnp.log(t) ** 2 / 2,
}


@pytest.mark.parametrize("name", GENERATORS)
def test_f_dpo_has_the_slope_of_its_divergence(name):
  with jax.enable_x64(True):
    ratio_BC = jnp.exp(jnp.asarray(fixture.logratio_BC))
    slope = jax.vmap(jax.grad(GENERATORS[name]))
    reward_BC = slope(ratio_BC.reshape(-1)).reshape(4, 2)
    want = losses.dpo(reward_BC, beta=0.3)
    got = losses.f_dpo(jnp.log(ratio_BC), beta=0.3, divergence=name)
    close(got, want, rtol=1e-12)


def test_where_divergences_are_least():
  # A divergence that is least below t = 1 lets the likelihood of a chosen
  # response fall (SquaredPO, lemma 2): that of DPO is, at 1 / e.
  least = {"reverse_kl": -1.0, "chi_squared_kl": None, "log_squared": 0.0}
  for name, r in least.items():
    slope = jax.grad(lambda r, name=name: GENERATORS[name](jnp.exp(r)))
    if r is not None:
      close(slope(r), 0.0)
  assert jax.grad(GENERATORS["chi_squared_kl"])(1.0) > 0  # below 1, too
  # Above e times the reference a response of SquaredPO is pulled down.
  loss = functools.partial(losses.f_dpo, divergence="log_squared")
  grad = jax.grad(lambda x: loss(x).sum())(
    jnp.array([[0.9, 0.0], [1.0, 0.0], [1.1, 0.0]])
  )
  assert grad[0, 0] < 0 and grad[1, 0] == 0 and grad[2, 0] > 0


def test_f_dpo_near_the_reference_is_dpo():
  near_BC = 1e-3 * LOGRATIO
  want = losses.dpo(near_BC, beta=10.0)
  squared = losses.f_dpo(near_BC, beta=10.0, divergence="log_squared")
  close(squared, want, rtol=1e-4)
  # r + exp(r) - 1 is 2 r there.
  mixed = losses.f_dpo(near_BC, beta=5.0, divergence="chi_squared_kl")
  close(mixed, want, rtol=1e-4)


def test_log_squared_clamps_its_exponent_at_80():
  loss = functools.partial(
    losses.f_dpo, beta=float(np.exp(-80.0)), divergence="log_squared"
  )
  nats = jnp.array([[-79.0, 0.0], [-80.0, 0.0], [-81.0, 0.0], [-1e4, 0.0]])
  got, pull = jax.vjp(loss, nats)
  close(got, [79 * np.exp(-1.0), 80.0, 80.0, 80.0], rtol=1e-4)
  (grad,) = pull(jnp.ones(4))
  assert grad[0, 0] < -10 and not grad[2:, 0].any()


@pytest.mark.parametrize("name", ["", "kl", "reverse", "js_divergence"])
def test_f_dpo_refuses_an_unknown_divergence_and_lists_the_known(name):
  known = "reverse_kl, forward_kl, js, alpha, chi_squared_kl, log_squared"
  with pytest.raises(ValueError, match=f"'{name}'; known: {known}"):
    losses.f_dpo(PAIR, divergence=name)


def test_bdpo_by_hand():
  # e^0 / (1/4 e^(ln 5) + 3/4) = 1/2, to the power of 2
  pair = jnp.array([[0.0, np.log(5.0)]])
  got = losses.bdpo(pair, beta=2.0, mixing=0.25)
  close(got, [np.log(1 + 2.0**2)])


def test_bdpo_between_dpo_and_the_chosen_response_alone():
  close(losses.bdpo(LOGRATIO, mixing=1.0), losses.dpo(LOGRATIO))
  alone = LOGRATIO.at[:, 1].set(0.0)
  close(losses.bdpo(LOGRATIO, mixing=0.0), losses.dpo(alone))
  for mixing in (0.0, 1.0):
    grad = jax.grad(lambda x, m=mixing: losses.bdpo(x, mixing=m).sum())(
      LOGRATIO
    )
    assert np.isfinite(grad).all() and bool(grad[:, 1].any()) == bool(mixing)


def test_bdpo_of_a_rejected_response_that_is_gone():
  # log(1/2) is left of it: 2 (0 + ln 2), and nothing to learn from it
  loss = functools.partial(losses.bdpo, beta=2.0)
  got, pull = jax.vjp(loss, jnp.array([[0.0, -1e4]]))
  close(got, [logistic(2 * np.log(2.0))])
  (grad,) = pull(jnp.ones(1))
  assert grad[0, 0] < -0.1 and grad[0, 1] == 0.0


@pytest.mark.parametrize("mixing", [0.2, 0.5, 0.9])
def test_bdpo_keeps_the_chosen_response(mixing):
  # Theorem 2: where the loss has not risen, (1 - mixing) ref <= p.
  draw = np.random.default_rng(0).uniform(-8, 8, (2000, 2))
  rng_BC = jnp.asarray(draw, jnp.float32)
  kept = losses.bdpo(rng_BC, mixing=mixing) <= np.log(2.0)
  assert 100 < kept.sum() < 1900
  assert (rng_BC[kept, 0] >= np.log1p(-mixing)).all()
  # DPO does not.
  kept = losses.dpo(rng_BC) <= np.log(2.0)
  assert (rng_BC[kept, 0] < np.log1p(-mixing)).any()


@pytest.mark.parametrize("mixing", [-0.1, 1.1, float("nan")])
def test_bdpo_refuses_what_is_no_share(mixing):
  with pytest.raises(ValueError, match=f"bdpo: mixing must be .* {mixing}"):
    losses.bdpo(PAIR, mixing=mixing)


def test_minor_dpo_by_hand():
  # 0.5 (2 - 1), and 0.5 * 2 where the rejected one is below the reference
  got = losses.minor_dpo(jnp.array([[2.0, 1.0], [2.0, -1.0]]), beta=0.5)
  close(got, [logistic(0.5), logistic(1.0)])


def test_minor_dpo_leaves_a_rejected_response_below_alone():
  grad = jax.grad(lambda x: losses.minor_dpo(x).sum())(
    jnp.array([[1.0, -2.0], [0.0, 0.0], [1.0, 2.0]])
  )
  assert (grad[:, 0] < 0).all()
  assert grad[:, 1].tolist()[:2] == [0.0, 0.0] and grad[2, 1] > 0


def test_cal_dpo_by_hand():
  # -log s(2.5) and (2 - 1)^2 + (-0.5 + 1)^2, whole and half
  pair = jnp.array([[2.0, -0.5]])
  close(losses.cal_dpo(pair, beta=0.5), [logistic(2.5) + 1.25])
  got = losses.cal_dpo(pair, beta=0.5, square_weight=0.5)
  close(got, [logistic(2.5) + 0.625])


def test_cal_dpo_without_squares_is_dpo_at_beta_1():
  got = losses.cal_dpo(LOGRATIO, square_weight=0.0)
  close(got, losses.dpo(LOGRATIO, beta=1.0))


def test_r_dpo_by_hand():
  # 0.5 * 3 + 0.25 (7 - 3): a longer chosen response has a larger margin
  length_BC = jnp.array([[7, 3]])
  got = losses.r_dpo(PAIR, length_BC, beta=0.5, alpha=0.25)
  close(got, [logistic(2.5)])


def test_r_dpo_of_equal_lengths_is_dpo():
  length_BC = jnp.full((4, 2), 9)
  close(losses.r_dpo(LOGRATIO, length_BC), losses.dpo(LOGRATIO))


def test_r_dpo_lengths_have_no_gradient():
  def total(length_BC):
    return losses.r_dpo(LOGRATIO, length_BC).sum()

  assert not jax.grad(total)(jnp.asarray(fixture.length_BC, jnp.float32)).any()


def test_dpop_by_hand():
  # 0.5 (6 - 2 * 1); where the chosen one gained there is no fine
  got = losses.dpop(jnp.array([[-1.0, -7.0], [1.0, -7.0]]), beta=0.5, penalty=2)
  close(got, [logistic(2.0), logistic(4.0)])


def test_dpop_without_penalty_is_dpo():
  close(losses.dpop(LOGRATIO, penalty=0.0), losses.dpo(LOGRATIO))


def test_signs_of_the_gradients():
  # chosen up (-1) or down (1), rejected up or down, at the start
  wanted = {
    losses.nca: (-1, 1),
    losses.bco: (-1, 1),
    losses.bdpo: (-1, 1),
    losses.apo_zero: (-1, 1),
    losses.kto: (-1, 1),
    losses.cal_dpo: (-1, 1),
    losses.minor_dpo: (-1, 0),
  }
  for loss, signs in wanted.items():
    grad = jax.grad(lambda x, loss=loss: loss(x).sum())(jnp.zeros((1, 2)))
    assert tuple(np.sign(grad[0])) == signs, loss.__name__
  # A chosen response above the reference comes down.
  grad = jax.grad(lambda x: losses.apo_down(x)[0])(jnp.array([[30.0, -30.0]]))
  assert grad[0, 0] > 0 and grad[0, 1] > 0
