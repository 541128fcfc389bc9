# SPDX-License-Identifier: Apache-2.0
"""Losses across a batch: hand values, laws, padding that changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import losses
from mrpo_jax.losses.batch import MIN_BETA, masked_moments
from mrpo_jax.losses.pair import margin
from tests.material import losses_fixture as fixture
from tests.material.losses_fixture import logistic

LOGRATIO = jnp.asarray(fixture.logratio_BC, jnp.float32)
POLICY = jnp.asarray(fixture.policy_logp_BC, jnp.float32)
REF = jnp.asarray(fixture.ref_logp_BC, jnp.float32)


def close(got, want, rtol=1e-6):
  np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-7)


def test_aot_by_hand():
  # policy margins 4 and 1, the reference's 0 and 2: sorted 1 - 0 and 4 - 2
  policy_logp_BC = jnp.array([[-1.0, -5.0], [-3.0, -4.0]])
  ref_logp_BC = jnp.array([[-2.0, -2.0], [-1.0, -3.0]])
  got = losses.aot(policy_logp_BC, ref_logp_BC, beta=0.5)
  close(got, logistic([0.5, 1.0]))
  got = losses.aot(policy_logp_BC, ref_logp_BC, beta=0.5, label_smoothing=0.1)
  close(got, 0.9 * logistic([0.5, 1.0]) + 0.1 * logistic([-0.5, -1.0]))


def test_aot_unpaired_by_hand():
  # chosen 3 and 1, rejected 2 and -1: sorted 1 - -1 and 3 - 2
  logratio_BC = jnp.array([[3.0, 2.0], [1.0, -1.0]])
  got = losses.aot_unpaired(logratio_BC, beta=0.5)
  close(got, logistic([1.0, 0.5]))
  got = losses.aot_unpaired(logratio_BC, beta=0.5, label_smoothing=0.1)
  close(got, 0.9 * logistic([1.0, 0.5]) + 0.1 * logistic([-1.0, -0.5]))


def test_transport_of_one_pair_is_dpo():
  for b in range(4):
    want = losses.dpo(LOGRATIO[b : b + 1])
    close(losses.aot(POLICY[b : b + 1], REF[b : b + 1]), want, rtol=1e-5)
    close(losses.aot_unpaired(LOGRATIO[b : b + 1]), want)


def test_order_of_the_pairs_does_not_matter():
  order = jnp.array([2, 0, 3, 1])
  close(losses.aot(POLICY[order], REF), losses.aot(POLICY, REF))
  close(losses.aot(POLICY, REF[order]), losses.aot(POLICY, REF))
  close(losses.aot_unpaired(LOGRATIO[order]), losses.aot_unpaired(LOGRATIO))
  close(losses.dr_dpo(LOGRATIO[order]), losses.dr_dpo(LOGRATIO))


def test_transport_gives_each_pair_the_gradient_of_its_rank():
  # margins 1 and 4 against 0 and 2, as above: -beta sigmoid(-beta gap)
  policy_logp_BC = jnp.array([[-1.0, -5.0], [-3.0, -4.0]])
  ref_logp_BC = jnp.array([[-2.0, -2.0], [-1.0, -3.0]])

  def total(policy_logp_BC):
    return losses.aot(policy_logp_BC, ref_logp_BC, beta=0.5).sum()

  slope_B = -0.5 * fixture.sigmoid([-1.0, -0.5])
  want = np.stack([slope_B, -slope_B], axis=-1)
  close(jax.grad(total)(policy_logp_BC), want)


def test_dr_dpo_by_hand():
  # dpo is ln 2 and ln 4/3; -log of the mean of 1/2 and 3/4
  logratio_BC = jnp.array([[0.0, 0.0], [np.log(3.0), 0.0]])
  got = losses.dr_dpo(logratio_BC, beta=1.0)
  assert got.shape == ()
  close(got, -np.log(5 / 8))
  # at beta' = 1/2: -1/2 log of the mean of 1/4 and 9/16
  got = losses.dr_dpo(logratio_BC, beta=1.0, beta_prime=0.5)
  close(got, -0.5 * np.log(13 / 32))


def test_dr_dpo_lies_between_the_least_and_the_mean():
  loss_B = losses.dpo(LOGRATIO)
  soft = functools.partial(losses.dr_dpo, LOGRATIO)
  close(soft(beta_prime=1e-4), loss_B.min(), rtol=1e-2)
  close(soft(beta_prime=1e4), loss_B.mean(), rtol=1e-3)
  assert loss_B.min() < soft(beta_prime=0.1) < soft() < loss_B.mean()


def test_dr_dpo_trusts_easy_pairs_more():
  # shares of the gradient are exp(-loss / beta') over their sum
  def margins(logratio_BC, loss):
    return np.asarray(jax.grad(loss)(logratio_BC)[:, 0])

  weight_B = np.exp(-losses.dpo(LOGRATIO) / 0.2)
  weight_B = weight_B / weight_B.sum()
  plain_B = margins(LOGRATIO, lambda x: losses.dpo(x).sum())
  got_B = margins(LOGRATIO, lambda x: losses.dr_dpo(x, beta_prime=0.2))
  close(got_B, weight_B * plain_B, rtol=1e-5)


def test_adaptive_beta_by_hand():
  # mean 3, 2 above the running one: 0.1 (1 + 0.6 * 2), 0.5 (1 + 2 * 2)
  margin_B = jnp.array([2.0, 4.0])
  got = losses.adaptive_beta(margin_B, 1.0)
  assert got.shape == ()
  close(got, 0.22)
  close(losses.adaptive_beta(margin_B, 1.0, beta=0.5, strength=2.0), 2.5)


def test_adaptive_beta_without_strength_is_beta():
  margin_B = jnp.array([-20.0, 4.0])
  close(losses.adaptive_beta(margin_B, 1.0, beta=0.3, strength=0.0), 0.3)


def test_adaptive_beta_has_a_floor():
  got = losses.adaptive_beta(jnp.array([-50.0]), 1.0)
  close(got, 1e-3)
  assert MIN_BETA == 1e-3
  # 0.1 (1 - 0.6 * 1.65) = 1e-3; a little more is left alone
  close(losses.adaptive_beta(jnp.array([-1.6]), 0.0), 0.004, rtol=1e-5)


def test_adaptive_beta_is_a_beta_for_any_pair_loss():
  beta = losses.adaptive_beta(margin(LOGRATIO), jnp.array(0.2))
  close(losses.ipo(LOGRATIO, beta=beta), losses.ipo(LOGRATIO, beta=float(beta)))


def test_moments_by_hand():
  # mean 3, deviations -2, 2, 0, 0: variance 8 / 4
  mean, deviation = masked_moments(jnp.array([1.0, 5.0, 3.0, 3.0]))
  close([mean, deviation], [3.0, 2**0.5])


def test_moments_of_small_values():
  # deviations of 1e-3 from 1
  mean, deviation = masked_moments(jnp.array([0.999, 1.001]))
  close([mean, deviation], [1.0, 1e-3], rtol=1e-4)


def test_moments_of_equal_values_have_a_gradient():
  # and so have those of a batch without a valid pair
  for valid_B in (jnp.ones(3, bool), jnp.zeros(3, bool)):
    value_B = jnp.full(3, 2.0)
    mean, deviation = masked_moments(value_B, valid_B)
    assert mean == (2.0 if valid_B[0] else 0.0) and deviation == 0.0
    grad = jax.grad(lambda x, v=valid_B: masked_moments(x, v)[1])(value_B)
    assert not grad.any()


JUNK = [[np.nan, 1.0], [np.inf, -np.inf], [1e4, -1e4]]
PLACES = (0, 2, 5)  # of the junk in a batch of seven
VALID = jnp.array([False, True, False, True, True, False, True])


def with_junk(array, junk):
  """The rows of array at the valid places, junk at the others."""
  padded = np.zeros((7, *array.shape[1:]), np.float32)
  padded[np.asarray(VALID)] = array
  padded[list(PLACES)] = junk
  return jnp.asarray(padded)


MASKED = {
  "aot": (losses.aot, (POLICY, REF)),
  "aot smoothed": (
    functools.partial(losses.aot, label_smoothing=0.2),
    (POLICY, REF),
  ),
  "aot_unpaired": (losses.aot_unpaired, (LOGRATIO,)),
  "dr_dpo": (losses.dr_dpo, (LOGRATIO,)),
  "adaptive_beta": (
    lambda x, **keywords: losses.adaptive_beta(x, 0.3, **keywords),
    (margin(LOGRATIO),),
  ),
  "mean": (lambda *x, **k: masked_moments(*x, **k)[0], (margin(LOGRATIO),)),
  "deviation": (
    lambda *x, **k: masked_moments(*x, **k)[1],
    (margin(LOGRATIO),),
  ),
}


@pytest.mark.parametrize("name", MASKED)
def test_invalid_pairs_change_no_value_and_no_gradient(name):
  function, arrays = MASKED[name]
  want, pull = jax.vjp(function, *arrays)
  weight = jnp.arange(1.0, 5.0) if want.ndim else jnp.ones(())
  want_grads = pull(weight)

  junk = [JUNK if x.ndim == 2 else [row[0] for row in JUNK] for x in arrays]
  padded = [with_junk(x, j) for x, j in zip(arrays, junk, strict=True)]
  for valid_B in (VALID, VALID.astype(jnp.int32)):
    masked = functools.partial(function, valid_B=valid_B)
    got, pull = jax.vjp(masked, *padded)
    if want.ndim:
      got, weight = got[VALID], jnp.zeros(7).at[VALID].set(jnp.arange(1.0, 5.0))
    close(got, want)
    for grad, want_grad in zip(pull(weight), want_grads, strict=True):
      close(grad[VALID], want_grad)
      assert not grad[~VALID].any()


@pytest.mark.parametrize("name", MASKED)
def test_a_full_mask_is_no_mask(name):
  function, arrays = MASKED[name]
  np.testing.assert_array_equal(
    function(*arrays, valid_B=jnp.ones(4, bool)), function(*arrays)
  )


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("filled", [0.0, np.nan])
def test_a_batch_without_a_valid_pair_stays_finite(name, filled):
  function, arrays = MASKED[name]
  empty = [jnp.full_like(x, filled) for x in arrays]
  masked = functools.partial(function, valid_B=jnp.zeros(4, bool))
  # Nor is there a nan on the way that a later `where` would hide.
  with jax.debug_nans(not np.isnan(filled)):
    value, pull = jax.vjp(masked, *empty)
    grads = pull(jnp.ones_like(value))
  assert np.isfinite(value).all()
  assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("place", range(4))
def test_a_batch_of_one_valid_pair_is_that_pair(place):
  valid_B = jnp.arange(4) == place
  want = losses.dpo(LOGRATIO)[place]
  close(losses.dr_dpo(LOGRATIO, valid_B=valid_B), want)
  close(losses.aot_unpaired(LOGRATIO, valid_B=valid_B)[place], want)
  close(losses.aot(POLICY, REF, valid_B=valid_B)[place], want, rtol=1e-5)
  mean, deviation = masked_moments(margin(LOGRATIO), valid_B)
  close([mean, deviation], [margin(LOGRATIO)[place], 0.0])


def test_values_of_an_empty_batch():
  none = jnp.zeros(4, bool)
  assert losses.dr_dpo(LOGRATIO, valid_B=none) == 0.0
  # beta (1 + 0.6 (0 - 0.5))
  got = losses.adaptive_beta(margin(LOGRATIO), 0.5, valid_B=none)
  close(got, 0.07)


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize(
  "shape,message",
  [
    ((5,), "B has size 4 in .*, but 5 in `valid_B`"),
    ((4, 1), r"`valid_B` .*\[B\]"),
  ],
)
def test_a_mask_of_the_wrong_axes_is_refused_by_name(name, shape, message):
  function, arrays = MASKED[name]
  with pytest.raises(ValueError, match=message):
    function(*arrays, valid_B=jnp.ones(shape, bool))
