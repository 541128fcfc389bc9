# SPDX-License-Identifier: Apache-2.0
"""Losses that pull each response towards a number: hand values and laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import losses
from mrpo_jax.losses.regression import MAX_EXPONENT
from tests.material import losses_fixture as fixture

LOGRATIO = jnp.asarray(fixture.logratio_BC, jnp.float32)


def close(got, want, rtol=1e-6):
  np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-7)


def test_sppo_hard_by_hand():
  # 1 / (2 * 0.25) = 2: (3 - 2)^2 + (-0.5 + 2)^2
  got = losses.sppo_hard(jnp.array([[3.0, -0.5]]), beta=0.25)
  close(got, [3.25])


def test_sppo_by_hand():
  # Targets (0.75 - 0.5) / 0.25 = 1 and 0: 1/2 (2^2 + 1^2)
  win_rate_BC = jnp.array([[0.75, 0.5]])
  got = losses.sppo(jnp.array([[3.0, -1.0]]), win_rate_BC, beta=0.25)
  close(got, [2.5])


def test_sppo_at_certain_win_rates_is_half_of_the_hard_form():
  certain_BC = jnp.array(4 * [[1.0, 0.0]])
  got = losses.sppo(LOGRATIO, certain_BC)
  close(got, 0.5 * losses.sppo_hard(LOGRATIO))


def test_sppo_hard_parts_the_two_responses():
  grad = jax.grad(lambda x: losses.sppo_hard(x)[0])(jnp.zeros((1, 2)))
  assert grad[0, 0] < 0 < grad[0, 1]


def test_qrpo_by_hand():
  # beta 1 / ln 3: Z = (3 - 1) / ln 3, so beta log Z = (ln 2 - ln ln 3) / ln 3
  beta = 1 / np.log(3.0)
  partition = beta * np.log(2 * beta)
  got = losses.qrpo(
    jnp.array([[2.0, -1.0]]), jnp.array([[0.75, 0.5]]), beta=beta
  )
  error_C = np.array([0.75, 0.5]) - partition - beta * np.array([2.0, -1.0])
  close(got, [0.5 * np.sum(error_C**2)])


@pytest.mark.parametrize("beta", [0.02, 0.1, 1.0, 5.0])
def test_qrpo_knows_its_partition(beta):
  # Of Y equally likely responses with quantiles 1 / Y .. 1: where the loss is
  # 0, the policy is the reference times exp(q / beta), normalised.
  count = 20_000
  quantile = (np.arange(count) + 0.5) / count
  best = -np.log(count) + quantile / beta
  best -= np.log(np.sum(np.exp(best - best.max()))) + best.max()
  logratio = best + np.log(count)
  with jax.enable_x64(True):
    got = losses.qrpo(
      jnp.asarray(logratio).reshape(-1, 2),
      jnp.asarray(quantile).reshape(-1, 2),
      beta=beta,
    )
  np.testing.assert_allclose(got, 0.0, atol=1e-8)


def test_qrpo_gradient_by_hand():
  # -beta (q - beta log Z - beta r) of each response, and none of q
  quantile_BC = jnp.array([[0.75, 0.5]])
  grads = jax.grad(lambda *x: losses.qrpo(*x, beta=0.5)[0], argnums=(0, 1))(
    jnp.array([[2.0, -1.0]]), quantile_BC
  )
  partition = 0.5 * np.log(0.5 * np.expm1(2.0))
  error_C = np.array([0.75, 0.5]) - partition - 0.5 * np.array([2.0, -1.0])
  close(grads[0], [-0.5 * error_C])
  assert not grads[1].any()


def test_qrpo_of_a_tiny_beta_is_finite():
  got = losses.qrpo(LOGRATIO, jnp.ones((4, 2)), beta=1e-4)
  # 1 - beta (log beta + 1 / beta) - beta r
  want = (-1e-4 * (np.log(1e-4) + fixture.logratio_BC)) ** 2
  close(got, want.mean(axis=1), rtol=1e-2)


def test_reward_quantile_by_hand():
  # of 4 draws, 3 earn no more than 1 and 1 no more than 0
  reward_BC = jnp.array([[1.0, 0.0], [5.0, -5.0]])
  drawn_BY = jnp.array([[0.0, 1.0, 0.5, 2.0], [0.0, 1.0, 0.5, 2.0]])
  got = losses.reward_quantile(reward_BC, drawn_BY)
  close(got, [[0.75, 0.25], [1.0, 0.0]])
  assert got.dtype == jnp.float32
  # It does not see how rewards are scaled.
  close(losses.reward_quantile(jnp.exp(reward_BC), jnp.exp(drawn_BY)), got)
  with pytest.raises(ValueError, match="axis B has size 2 in `reward_BC`"):
    losses.reward_quantile(reward_BC, drawn_BY[:1])


# Three responses to one prompt: under the fixed model, and under the policy
# that draws; what each earns.
REF = np.log([0.5, 0.3, 0.2])
BEHAVIOUR = np.log([0.2, 0.2, 0.6])
EARNED = np.array([0.5, -0.25, 0.1])


def test_dar_by_hand():
  # (1/4)^(1/2) e^(2 * 0.5) and, over the cap, 3
  got = losses.dar(
    jnp.array([-2.0, -4.0]),
    jnp.log(jnp.array([0.1, 0.4])),
    jnp.log(jnp.array([0.4, 0.1])),
    jnp.array([0.5, 0.5]),
    lam=0.5,
    mixing=0.5,
    cap=3.0,
  )
  close(got, [np.e, 12.0])


def test_dar_leads_to_the_mixture_times_the_advantage():
  # Expected over the policy that draws, it is least where
  # p ~ ref^mixing behaviour^(1 - mixing) exp(advantage / lam), the best policy
  # of lam (mixing KL(p || ref) + (1 - mixing) KL(p || behaviour)).
  lam, mixing = 0.4, 0.3
  best = mixing * REF + (1 - mixing) * BEHAVIOUR + EARNED / lam
  best -= np.log(np.exp(best).sum())
  with jax.enable_x64(True):
    fixed = [jnp.asarray(x) for x in (REF, BEHAVIOUR, EARNED)]

    def expected(logit):
      logp = jax.nn.log_softmax(logit)
      loss = losses.dar(logp, *fixed, lam=lam, mixing=mixing, cap=1e9)
      return jnp.sum(jnp.exp(fixed[1]) * loss)

    def objective(logit):
      logp = jax.nn.log_softmax(logit)
      kl_ref, kl_behaviour = (
        jnp.sum(jnp.exp(logp) * (logp - other)) for other in fixed[:2]
      )
      cost = mixing * kl_ref + (1 - mixing) * kl_behaviour
      return jnp.sum(jnp.exp(logp) * fixed[2]) - lam * cost

    for function in (expected, objective):
      np.testing.assert_allclose(
        jax.grad(function)(jnp.asarray(best)), 0.0, atol=1e-12
      )
      other = jax.grad(function)(jnp.asarray(best + [0.1, 0.0, 0.0]))
      assert np.abs(other).max() > 1e-3


def test_dar_without_the_fixed_model_is_awr():
  given = [jnp.asarray(x, jnp.float32) for x in (REF, BEHAVIOUR, EARNED)]
  got = losses.dar(given[1], *given, lam=0.5, mixing=0.0)
  close(got, losses.awr(given[1], given[2], lam=0.5))


def test_dar_of_far_models_is_finite():
  far_B = jnp.array([-1e4, -1.0])
  near_B = far_B[::-1]
  loss = functools.partial(losses.dar, cap=1e30, mixing=1.0)
  got = loss(jnp.full(2, -2.0), far_B, near_B, jnp.zeros(2))
  close(got, [0.0, 2e30])
  assert MAX_EXPONENT == 80


@pytest.mark.parametrize(
  "keyword,value", [("lam", 0.0), ("cap", -1.0), ("mixing", 1.5)]
)
def test_dar_refuses_what_its_numbers_cannot_be(keyword, value):
  with pytest.raises(ValueError, match=f"dar: {keyword} must be .* {value}"):
    losses.dar(*4 * [jnp.zeros(1)], **{keyword: value})
