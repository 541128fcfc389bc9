# SPDX-License-Identifier: Apache-2.0
"""Losses that pull each response towards a number: a win rate, a reward.

A response's log-ratio (policy minus reference; nats, summed over response
tokens) regresses on what it should be, or its likelihood is weighed by what it
earned.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mrpo_jax.losses.arguments import checked
from mrpo_jax.losses.pair import MAX_EXPONENT, columns
from mrpo_jax.shapes import check, widen


@checked
def sppo_hard(logratio_BC: ArrayLike, *, beta: ArrayLike = 0.1) -> jax.Array:
  """Self-play preference optimization with certain labels, as in TRL.

      loss = (r_w - 1 / (2 beta))^2 + (r_l + 1 / (2 beta))^2

  At policy = reference it is 1 / (2 beta^2).  It is twice `sppo` at win rates
  of 1 and 0.

  Args:
    logratio_BC: policy minus reference log-probability; nats.
    beta: per nat; the authors use 0.001.

  Returns:
    loss_B: nats squared, float32 or better.

  Source: SPPO, arXiv:2405.00675; the form of TRL 1.16.

  >>> import jax.numpy as jnp
  >>> sppo_hard(jnp.array([[3.0, -2.0]]), beta=0.25).tolist()
  [1.0]
  """
  chosen_B, rejected_B = columns(logratio_BC)
  target = 0.5 / beta
  return jnp.square(chosen_B - target) + jnp.square(rejected_B + target)


@checked
def sppo(
  logratio_BC: ArrayLike, win_rate_BC: ArrayLike, *, beta: ArrayLike = 0.1
) -> jax.Array:
  """Self-play preference optimization: rewards regress on win rates.

      loss = 1/2 sum over both responses of (r - (P - 1/2) / beta)^2

  Args:
    logratio_BC: policy minus reference log-probability; nats.
    win_rate_BC: P, the probability that each response beats one drawn from
      the reference, in [0, 1]; no gradient.
    beta: per nat; the authors use 0.001.

  Returns:
    loss_B: nats squared, float32 or better.

  Source: SPPO, arXiv:2405.00675, in the form of the authors' code.

  >>> import jax.numpy as jnp
  >>> win_rate_BC = jnp.array([[0.75, 0.25]])
  >>> sppo(jnp.array([[2.0, 0.0]]), win_rate_BC, beta=0.25).tolist()
  [1.0]
  """
  check(logratio_BC=logratio_BC, win_rate_BC=win_rate_BC)
  win_rate_BC = jax.lax.stop_gradient(widen(win_rate_BC))
  target_BC = (win_rate_BC - 0.5) / beta
  return 0.5 * jnp.sum(jnp.square(widen(logratio_BC) - target_BC), axis=-1)


@checked
def qrpo(
  logratio_BC: ArrayLike, quantile_BC: ArrayLike, *, beta: ArrayLike = 0.1
) -> jax.Array:
  """Quantile reward policy optimization: rewards whose partition is known.

      log Z = log( beta (exp(1 / beta) - 1) )
      loss  = 1/2 sum over both responses of (q - beta log Z - beta r)^2

  Rewards as quantiles among the reference's own are uniform under it, so that
  log Z = log E_ref exp(q / beta) is known, and no response needs another one:
  its log-ratio goes to q / beta - log Z.

  Args:
    logratio_BC: policy minus reference log-probability; nats.
    quantile_BC: q, the share of responses drawn from the reference to the same
      prompt that earn no more than this one, in [0, 1]; see `reward_quantile`;
      no gradient.  Where a mixture stands for several references, it is the
      mixture that draws.
    beta: of the KL to the reference, per nat.

  Returns:
    loss_B: mean over the two responses, float32 or better.

  Source: QRPO, arXiv:2507.08068, for both responses of a pair as in the
  authors' code, whose log Z leaves out the -1: it is 4.5e-5 off at beta = 0.1,
  and 1.7 at beta = 5.

  >>> import jax.numpy as jnp
  >>> beta = 0.5
  >>> log_z = jnp.log(beta * jnp.expm1(1 / beta))
  >>> quantile_BC = jnp.array([[0.75, 0.25]])
  >>> fits_BC = quantile_BC / beta - log_z
  >>> float(qrpo(fits_BC, quantile_BC, beta=beta)[0]) < 1e-12
  True
  """
  check(logratio_BC=logratio_BC, quantile_BC=quantile_BC)
  quantile_BC = jax.lax.stop_gradient(widen(quantile_BC))
  # log(exp(x) - 1) = x + log(1 - exp(-x)), which does not overflow.
  log_z = jnp.log(beta) + 1.0 / beta + jnp.log(-jnp.expm1(-1.0 / beta))
  target_BC = quantile_BC - beta * log_z
  error_BC = target_BC - beta * widen(logratio_BC)
  return 0.5 * jnp.sum(jnp.square(error_BC), axis=-1)


def reward_quantile(
  reward_BC: ArrayLike, ref_reward_BY: ArrayLike
) -> jax.Array:
  """q of each response: the share of drawn ones that earn no more than it.

  Args:
    reward_BC: of the responses.
    ref_reward_BY: of responses to the same prompts, drawn from the reference.

  Returns:
    quantile_BC: in [0, 1]; no gradient.

  Source: QRPO, arXiv:2507.08068, the authors' code.

  >>> import jax.numpy as jnp
  >>> drawn_BY = jnp.array([[0.0, 1.0, 2.0, 3.0]])
  >>> reward_quantile(jnp.array([[2.0, -1.0]]), drawn_BY).tolist()
  [[0.75, 0.0]]
  """
  check(reward_BC=reward_BC, ref_reward_BY=ref_reward_BY)
  below_BCY = widen(ref_reward_BY)[:, None, :] <= widen(reward_BC)[..., None]
  return jnp.mean(below_BCY, axis=-1, dtype=widen(reward_BC).dtype)


@checked
def dar(
  logp_B: ArrayLike,
  ref_logp_B: ArrayLike,
  behaviour_logp_B: ArrayLike,
  advantage_B: ArrayLike,
  *,
  lam: ArrayLike = 0.05,
  mixing: ArrayLike = 0.1,
  cap: ArrayLike = 20.0,
) -> jax.Array:
  """Dual-regularized advantage regression: two references, one weight.

      weight = min( (ref / behaviour)^mixing * exp(advantage / lam), cap )
      loss   = -weight * log p

  The policy stays near a fixed model and near the one that drew the responses:
  mixing KL(p || ref) + (1 - mixing) KL(p || behaviour) is, up to a constant,
  the KL to their geometric mixture, and the best policy is that mixture times
  exp(advantage / lam), which over `behaviour` is the weight.  mixing = 0 is
  `awr` with a cap.

  Args:
    logp_B: policy log-probability of a drawn response; nats, summed over its
      tokens.
    ref_logp_B: the same under the fixed model; no gradient.
    behaviour_logp_B: the same under the policy that drew it; no gradient.
    advantage_B: its reward beside the others', whitened over the batch; no
      gradient.
    lam: of both KL terms, per unit of advantage; the paper's beta.
    mixing: the paper's alpha, share of the fixed model, in [0, 1].
    cap: of the weight, positive.

  Returns:
    loss_B: float32 or better.

  Source: DAR, arXiv:2602.11523, proposition 4.1 and theorem 4.2, by a secondary
  account: cap, whitening and defaults are unverified.
  Numerics: the exponent is clamped at 80.

  >>> import jax.numpy as jnp
  >>> logp_B, earned_B = jnp.array([-2.0, -2.0]), jnp.array([0.0, 1.0])
  >>> dar(logp_B, logp_B, logp_B, earned_B, cap=10.0).tolist()
  [2.0, 20.0]
  """
  check(
    logp_B=logp_B,
    ref_logp_B=ref_logp_B,
    behaviour_logp_B=behaviour_logp_B,
    advantage_B=advantage_B,
  )
  between_B = widen(ref_logp_B) - widen(behaviour_logp_B)
  exponent_B = mixing * between_B + widen(advantage_B) / lam
  weight_B = jnp.exp(jnp.minimum(exponent_B, MAX_EXPONENT))
  weight_B = jax.lax.stop_gradient(jnp.minimum(weight_B, cap))
  return -weight_B * widen(logp_B)


@checked
def expectile(residual: ArrayLike, *, tau: ArrayLike = 0.7) -> jax.Array:
  """Expectile regression: errors above count tau, errors below 1 - tau.

      loss = | tau - 1[residual < 0] | * residual^2

  Args:
    residual: return minus value, any shape.
    tau: in (0, 1); 0.5 is half the square.

  Returns:
    One value per element, float32 or better.

  Source: HPO, arXiv:2405.17956; its tau is unverified.

  >>> import jax.numpy as jnp
  >>> expectile(jnp.array([2.0, -2.0]), tau=0.75).tolist()
  [3.0, 1.0]
  """
  residual = widen(residual)
  return jnp.where(residual < 0, 1.0 - tau, tau) * jnp.square(residual)
