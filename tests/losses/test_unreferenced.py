# SPDX-License-Identifier: Apache-2.0
"""Losses without a reference, or with one per token: hand values and laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import losses
from mrpo_jax.losses.unreferenced import CERTAIN
from tests.material import losses_fixture as fixture
from tests.material.losses_fixture import logistic, sigmoid

MEAN = jnp.asarray(fixture.policy_mean_logp_BC, jnp.float32)
REF_MEAN = jnp.asarray(fixture.ref_mean_logp_BC, jnp.float32)
LN_2, LN_3 = np.log(2.0), np.log(3.0)


def close(got, want, rtol=1e-6):
  np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-7)


def test_nll_by_hand():
  close(losses.nll(jnp.array([-2.0, -0.25])), [2.0, 0.25])


def test_simpo_by_hand():
  # 2 * 1.5 - 1, and the scale on the whole of it
  mean_logp_BC = jnp.array([[-1.0, -2.5]])
  close(losses.simpo(mean_logp_BC), [logistic(2.0)])
  got = losses.simpo(mean_logp_BC, beta=4.0, gamma=5.0, scale_B=0.5)
  close(got, [logistic(0.5)])


def test_alpha_po_by_hand():
  # p = 1/2 and 1/4: (1 - p^-1) is -1 and -3, (1 - p^-2) / 2 is -1.5 and -7.5
  mean_logp_BC = jnp.array([[-LN_2, -2 * LN_2]])
  got = losses.alpha_po(mean_logp_BC, alpha=1.0, beta=2.0, gamma=1.5)
  close(got, [logistic(2 * 2 - 1.5)])
  got = losses.alpha_po(mean_logp_BC, alpha=2.0, beta=0.5, gamma=1.0)
  close(got, [logistic(0.5 * 6 - 1)])
  # and (1 - p) / -1 is p - 1: -1/2 and -3/4
  got = losses.alpha_po(mean_logp_BC, alpha=-1.0, beta=4.0, gamma=0.25)
  close(got, [logistic(4 * 0.25 - 0.25)])


def test_alpha_po_without_alpha_is_simpo():
  given = dict(beta=2.0, gamma=0.7)
  want = losses.simpo(MEAN, **given)
  close(losses.alpha_po(MEAN, alpha=0.0, **given), want)
  close(losses.alpha_po(MEAN, alpha=1e-6, **given), want, rtol=1e-4)


def test_alpha_po_clamps_its_exponents_at_80():
  beta = float(np.exp(-80.0))
  loss = functools.partial(losses.alpha_po, alpha=2.0, beta=beta, gamma=0.0)
  unlikely = jnp.array([[0.0, -39.5], [0.0, -40.0], [0.0, -41.0], [0.0, -1e4]])
  # a margin of beta (e^(2 * nats) - 1) / 2
  got, pull = jax.vjp(loss, unlikely)
  close(got, logistic(np.exp([-1.0, 0.0, 0.0, 0.0]) / 2), rtol=1e-4)
  (grad,) = pull(jnp.ones(4))
  assert grad[0, 1] > 0.1 and not grad[2:, 1].any()


def test_simper_by_hand():
  # perplexities 2 and 4
  close(losses.simper(jnp.array([[-LN_2, -2 * LN_2]])), [1 / 4 - 1 / 2])


def test_simper_leaves_the_unlikely_alone():
  # d loss / d mean_logp is p, its sign alone differs
  grad = jax.grad(lambda x: losses.simper(x).sum())(MEAN)
  p_BC = np.exp(fixture.policy_mean_logp_BC)
  close(grad, p_BC * np.array([-1.0, 1.0]))


def test_cpo_by_hand():
  # 0.25 (-2 + 8)
  close(losses.cpo(jnp.array([[-2.0, -8.0]]), beta=0.25), [logistic(1.5)])


def test_slic_by_hand():
  # 2 - (-3 + 3.5), and nothing from a margin of 2 on
  logp_BC = jnp.array([[-3.0, -3.5], [-3.0, -5.0], [-3.0, -6.0]])
  close(losses.slic(logp_BC, delta=2.0), [1.5, 0.0, 0.0])
  close(losses.slic(logp_BC), [0.5, 0.0, 0.0])
  grad = jax.grad(lambda x: losses.slic(x).sum())(logp_BC)
  close(grad, [[-1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])


def test_orpo_by_hand():
  # odds of 1/2 and 1/4 are 1 and 1/3, so their log-ratio is ln 3
  mean_logp_BC = jnp.log(jnp.array([[0.5, 0.25]]))
  got = losses.orpo(mean_logp_BC, weight=0.5)
  close(got, [0.5 * logistic(LN_3)])
  close(losses.orpo(mean_logp_BC[:, ::-1]), [0.1 * logistic(-LN_3)])


def test_orpo_of_a_certain_response_is_finite():
  certain = jnp.array([[0.0, -1.0], [-1.0, 0.0], [0.0, 0.0], [1.0, -1.0]])
  got, pull = jax.vjp(losses.orpo, certain)
  (grad,) = pull(jnp.ones(4))
  assert np.isfinite(got).all() and np.isfinite(grad).all()
  # The clamp stands at a mean of -1e-6, past it there is no gradient.
  assert CERTAIN == -1e-6
  close(got, losses.orpo(jnp.minimum(certain, -1e-6)))
  assert not grad[certain >= 0].any() and grad[0, 1] > 0
  # log odds of p = exp(-1e-6) and exp(-1)
  log_odds = -1e-6 - np.log(-np.expm1(-1e-6)) + 1 + np.log(-np.expm1(-1.0))
  close(got[1], 0.1 * logistic(-log_odds), rtol=1e-5)
  nearly = losses.orpo(jnp.array([[-1.0, -2e-6]]))[0]
  close(got[1] - nearly, 0.1 * LN_2, rtol=1e-3)


def test_rainbow_po_by_hand():
  # 1.5 - 0.25 * 1 - 0.75 * 0.5 = 0.875, times 2, times 4
  mean_logp_BC = jnp.array([[-1.0, -2.5]])
  ref_mean_logp_BC = jnp.array([[-2.0, -3.0]])
  given = dict(beta=4.0, home_advantage=0.5)
  got = losses.rainbow_po(
    mean_logp_BC, ref_mean_logp_BC, scale_B=jnp.array([2.0]), **given
  )
  close(got, [logistic(7.0)], rtol=1e-5)
  # all of the reference, and none: 4 (1.5 - 1), 4 (1.5 - 0.5)
  for mixing, want in ((1.0, 2.0), (0.0, 4.0)):
    got = losses.rainbow_po(
      mean_logp_BC, ref_mean_logp_BC, mixing=mixing, **given
    )
    close(got, [logistic(want)])


def test_rainbow_po_lies_between_simpo_and_dpo():
  given = dict(beta=3.0, home_advantage=0.4)
  got = losses.rainbow_po(MEAN, REF_MEAN, mixing=0.0, **given)
  close(got, losses.simpo(MEAN, beta=3.0, gamma=1.2))
  got = losses.rainbow_po(MEAN, REF_MEAN, mixing=1.0, **given)
  close(got, losses.dpo(MEAN - REF_MEAN, beta=3.0))


def test_alpha_dpo_by_hand():
  # D = 1.5, D_ref = 1: M = (2 * 0.5 - 0.25) / 0.5 = 1.5, target 1 + 0.2 * 1.5
  mean_logp_BC = jnp.array([[-1.0, -2.5]])
  ref_mean_logp_BC = jnp.array([[-2.0, -3.0]])
  got = losses.alpha_dpo(
    mean_logp_BC, ref_mean_logp_BC, beta=2.0, gamma=1.0, mean=0.25, std=0.5
  )
  close(got, [logistic(2 * 1.5 - 1.3)])


def test_alpha_dpo_without_alpha_is_simpo():
  got = losses.alpha_dpo(MEAN, REF_MEAN, alpha=0.0)
  close(got, losses.simpo(MEAN, beta=2.5, gamma=0.6))


def test_alpha_dpo_target_has_no_gradient():
  # d loss / d mean_w = -beta sigmoid(target - beta D), the target held still
  given = dict(beta=2.0, gamma=0.5, alpha=0.7)
  moments = jnp.array(0.3), jnp.array(0.8)

  def total(mean_BC, ref_BC, mean, std):
    return losses.alpha_dpo(mean_BC, ref_BC, mean=mean, std=std, **given).sum()

  grads = jax.grad(total, argnums=(0, 1, 2, 3))(MEAN, REF_MEAN, *moments)
  policy_B = np.asarray(MEAN[:, 0] - MEAN[:, 1])
  ref_B = np.asarray(REF_MEAN[:, 0] - REF_MEAN[:, 1])
  target_B = 0.5 + 0.7 * (2 * (policy_B - ref_B) - 0.3) / 0.8
  slope_B = -2 * sigmoid(target_B - 2 * policy_B)
  close(grads[0], np.stack([slope_B, -slope_B], axis=-1), rtol=1e-5)
  for grad in grads[1:]:
    assert not grad.any()


def test_tpo_by_hand():
  # 0.25 (-2 + 8), and half of the gold response's 3 nats
  got = losses.tpo(
    jnp.array([[-2.0, -8.0]]), jnp.array([-3.0]), beta=0.25, alpha=0.5
  )
  close(got, [logistic(1.5) + 1.5])


@pytest.mark.parametrize(
  "loss",
  [
    losses.simpo,
    losses.alpha_po,
    losses.simper,
    losses.cpo,
    losses.slic,
    losses.orpo,
  ],
)
def test_gradient_raises_the_chosen_and_lowers_the_rejected(loss):
  grad = jax.grad(lambda x: loss(x).sum())(jnp.array([[-1.0, -1.25]]))
  assert grad[0, 0] < 0 < grad[0, 1]
