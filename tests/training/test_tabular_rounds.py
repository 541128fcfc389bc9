# SPDX-License-Identifier: Apache-2.0
"""Laws of rounds on a table of responses, every outcome counted.

APO: rounds of exact DPO, extrapolated as the trainer does it.  APA: where its
regression ends, whose target is no distribution.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import brentq
from scipy.special import lambertw, softmax

from mrpo_jax import losses
from mrpo_jax.training import tabular, train_state
from tests.training.test_tabular import (
  BETA,
  DRAWN_B,
  PREFERRED_B,
  PROMPT_B,
  REF_LOGP_XYK,
  RESPONSE_BC,
  REWARD_XY,
  X,
  Y,
)

REF_LOGP_XY = REF_LOGP_XYK[..., 0]
ROUNDS = 3


def dpo(ref_logits_XY):
  """Logits of exact DPO against a reference: where descent ends."""
  ref_logp_XY = np.log(softmax(np.asarray(ref_logits_XY), axis=1))
  policy_XY = tabular.fit(
    losses.build("dpo", beta=BETA),
    ref_logp_XY[..., None],
    PROMPT_B,
    RESPONSE_BC,
    weight_B=DRAWN_B * PREFERRED_B,
    lr=50.0,
    steps=10_000,
  )
  return np.log(policy_XY)


def outcomes(alpha):
  """Logits after each of the rounds, moved by `ReferenceMoves`."""
  moves = train_state.ReferenceMoves(round=1, alpha=alpha)
  with jax.enable_x64(True):
    state = train_state.create(
      {"logits": jnp.asarray(REF_LOGP_XY)}, optax.adam(0.1), {}, moves.names
    )
    found = []
    for _ in range(ROUNDS):
      state = moves(state, optax.adam(0.1))
      # A round starts where its reference stands.
      start, reference = state.params, state.moving["reference"]
      np.testing.assert_array_equal(start["logits"], reference["logits"])
      logits_XY = jnp.asarray(dpo(reference["logits"]))
      state = state.replace(params={"logits": logits_XY}, step=state.step + 1)
      found.append(np.asarray(logits_XY))
  return found


def gained(alpha):
  """c_t after each round: d_1 = 1, d_{t+1} = 1 + alpha d_t, c_t their sum."""
  steps = [1.0]
  for _ in range(ROUNDS - 1):
    steps.append(1.0 + alpha * steps[-1])
  return np.cumsum(steps)


def centred(logits_XY):
  return logits_XY - logits_XY.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("alpha,last", [(0.0, 3.0), (0.3, 3.69), (0.6, 4.56)])
def test_accelerated_rounds_are_a_smaller_beta(alpha, last):
  for logits_XY, c in zip(outcomes(alpha), gained(alpha), strict=True):
    got = centred(logits_XY - REF_LOGP_XY)
    np.testing.assert_allclose(got, centred(REWARD_XY) * c / BETA, atol=1e-6)
  assert c == pytest.approx(last, rel=1e-12)
  T = ROUNDS
  closed = T / (1 - alpha) - alpha * (1 - alpha**T) / (1 - alpha) ** 2
  assert c == pytest.approx(closed, rel=1e-12)


# APA.

REF_XY = np.exp(REF_LOGP_XY)
# Centred under the reference: an advantage of its own policy.
ADVANTAGE_XY = REWARD_XY - (REF_XY * REWARD_XY).sum(axis=1, keepdims=True)
LAM = 0.7


def fit_apa(drawn_XY, lam=LAM):
  """Where descent on APA's loss ends, tokens drawn from these policies."""
  places = np.stack(np.meshgrid(np.arange(X), np.arange(Y), indexing="ij"), -1)
  prompt_B, response_B = places.reshape(-1, 2).T
  advantage_B = ADVANTAGE_XY[prompt_B, response_B]

  def loss(policy_logp_BC, ref_logp_BCK):
    ref_logp_B = ref_logp_BCK[:, 0, 0]
    return losses.apa(policy_logp_BC[:, 0], ref_logp_B, advantage_B, lam=lam)

  return tabular.fit(
    loss,
    REF_LOGP_XYK[..., :1],
    prompt_B,
    np.stack([response_B, response_B], axis=1),  # a token, not a pair
    weight_B=drawn_XY[prompt_B, response_B],
    lr=0.2,
    steps=20_000,
  )


def best_and_z(lam=LAM):
  """(ref exp(A / lam) / Z, Z) of each prompt."""
  tilted_XY = REF_XY * np.exp(ADVANTAGE_XY / lam)
  Z_X1 = tilted_XY.sum(axis=1, keepdims=True)
  return tilted_XY / Z_X1, Z_X1[:, 0]


def nearest(drawn_Y, target_Y):
  """The policy that minimises E_drawn (log p - log target)^2, by Lagrange.

  q (log p - log t) + nu p = 0, so p = q W(nu t / q) / nu, with the nu at which
  it sums to one: 0 where the target does.
  """

  def policy(nu):
    return drawn_Y * lambertw(nu * target_Y / drawn_Y).real / nu

  return policy(
    brentq(lambda nu: policy(nu).sum() - 1.0, 1e-9, 1e9, xtol=1e-14)
  )


@functools.cache
def fitted():
  return fit_apa(REF_XY)


def test_apas_target_is_more_than_a_distribution():
  np.testing.assert_allclose((REF_XY * ADVANTAGE_XY).sum(axis=1), 0, atol=1e-12)
  for lam in (0.1, 0.7, 5.0):
    assert np.all(best_and_z(lam)[1] > 1.0)  # Jensen
  # Up to the fourth order log Z is the variance over 2 lam^2.
  variance_X = (REF_XY * ADVANTAGE_XY**2).sum(axis=1)
  log_Z_X = np.log(best_and_z(100.0)[1])
  np.testing.assert_allclose(log_Z_X, variance_X / 2e4, rtol=0.05)


def test_apa_ends_at_the_nearest_policy_to_its_target():
  target_XY = REF_XY * np.exp(ADVANTAGE_XY / LAM)
  want_XY = np.stack(list(map(nearest, REF_XY, target_XY)))
  np.testing.assert_allclose(want_XY.sum(axis=1), 1.0, rtol=1e-9)
  np.testing.assert_allclose(fitted(), want_XY, atol=1e-9)


def test_apas_gap_to_the_optimum_is_its_closed_form():
  best_XY, Z_X = best_and_z()
  measured_XY = np.log(fitted() / best_XY)
  # log p - log best = log Z - W(nu exp(A / lam)), for one nu of a prompt.
  share_XY = (np.log(Z_X)[:, None] - measured_XY) / (fitted() / REF_XY)
  nu_X1 = share_XY.mean(axis=1, keepdims=True)
  weight_XY = lambertw(nu_X1 * np.exp(ADVANTAGE_XY / LAM)).real
  closed_XY = np.log(Z_X)[:, None] - weight_XY
  np.testing.assert_allclose(measured_XY, closed_XY, atol=1e-7)
  # The gap is real: what pays most gets less than it should.
  top_X = ADVANTAGE_XY.argmax(axis=1)
  assert np.all(measured_XY[np.arange(X), top_X] < -0.05)
  # The optimum itself has the residual log Z everywhere, so more loss.
  squares_X = (REF_XY * (measured_XY - np.log(Z_X)[:, None]) ** 2).sum(axis=1)
  assert np.all(squares_X < np.log(Z_X) ** 2)


def test_on_its_own_tokens_apa_ends_at_the_optimum():
  # Where what is drawn is the policy itself, the residual is one number.
  best_XY, _ = best_and_z()
  np.testing.assert_allclose(fit_apa(best_XY), best_XY, atol=1e-9)
  # And rounds go there, from the reference.
  policy_XY = REF_XY
  target_XY = REF_XY * np.exp(ADVANTAGE_XY / LAM)
  apart = []
  for _ in range(30):
    policy_XY = np.stack(list(map(nearest, policy_XY, target_XY)))
    apart.append(np.abs(policy_XY - best_XY).max())
  assert apart[-1] < 1e-6 < apart[0]
  assert all(b < a or b < 1e-6 for a, b in zip(apart, apart[1:], strict=False))
