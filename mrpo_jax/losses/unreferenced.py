# SPDX-License-Identifier: Apache-2.0
"""Losses of the policy's own log-probabilities.

None adds a likelihood term of its own unless its name says so: add `nll` with
a weight.  `mean_logp` is the log-probability of a response divided by its
count of response tokens.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mrpo_jax.losses.arguments import checked
from mrpo_jax.losses.pair import MAX_EXPONENT, margin, rescaled
from mrpo_jax.shapes import check, widen

CERTAIN = -1e-6  # a mean log-probability; orpo's odds are infinite at 0


@checked
def nll(mean_logp_B: ArrayLike) -> jax.Array:
  """Negative log-likelihood per response token: supervised fine-tuning.

      loss = -log p(y | x) / |y|

  Args:
    mean_logp_B: log-probability of each response; nats, divided by its count
      of response tokens.

  Returns:
    loss_B: nats per token, float32 or better.

  Source: maximum likelihood; as an extra term of a pair loss see iterative
  RPO, arXiv:2404.19733.

  >>> import jax.numpy as jnp
  >>> nll(jnp.array([-1.5])).tolist()
  [1.5]
  """
  check(mean_logp_B=mean_logp_B)
  return -widen(mean_logp_B)


@checked
def simpo(
  mean_logp_BC: ArrayLike,
  *,
  beta: ArrayLike = 2.0,
  gamma: ArrayLike = 1.0,
  scale_B: ArrayLike = 1.0,
) -> jax.Array:
  """Simple preference optimization: mean log-probabilities, a target margin.

      loss = -log sigmoid( scale * (beta * (mean_w - mean_l) - gamma) )

  Args:
    mean_logp_BC: policy, per response token; nats.
    beta: 2 to 10.
    gamma: target margin, after beta; the paper tunes gamma / beta.
    scale_B: factor per pair; MallowsPO's dispersion enters here.

  Returns:
    loss_B: nats, float32 or better.

  Source: SimPO, arXiv:2405.14734, equation 6.

  >>> import jax.numpy as jnp
  >>> got = simpo(jnp.array([[-1.0, -1.5]]))[0]  # 2 * 0.5 - 1 = 0
  >>> bool(jnp.isclose(got, jnp.log(2.0)))
  True
  """
  check(mean_logp_BC=mean_logp_BC)
  margin_B = beta * margin(mean_logp_BC) - gamma
  margin_B = rescaled(margin_B, scale_B, mean_logp_BC=mean_logp_BC)
  return -jax.nn.log_sigmoid(margin_B)


@checked
def alpha_po(
  mean_logp_BC: ArrayLike,
  *,
  alpha: float = 0.25,
  beta: ArrayLike = 2.5,
  gamma: ArrayLike = 0.1,
) -> jax.Array:
  """AlphaPO: SimPO with a bent reward.

      reward = (1 - p^-alpha) / alpha,   p = exp(mean_logp)
      loss   = -log sigmoid( beta * (reward_w - reward_l) - gamma )

  alpha = 0 is SimPO.

  Args:
    mean_logp_BC: policy, per response token; nats.
    alpha: shape of the reward.
    beta: inverse temperature.
    gamma: target margin, after beta.

  Returns:
    loss_B: nats, float32 or better.

  Source: AlphaPO, arXiv:2501.03884; the form of TRL 1.16.
  Numerics: exponents are clamped at 80.

  >>> import jax.numpy as jnp
  >>> mean_logp_BC = jnp.array([[-1.0, -1.5]])
  >>> float(alpha_po(mean_logp_BC, alpha=0.0, beta=2.0, gamma=1.0)[0]) == float(
  ...   simpo(mean_logp_BC)[0]
  ... )
  True
  """
  check(mean_logp_BC=mean_logp_BC)
  reward_BC = widen(mean_logp_BC)
  if alpha:
    exponent_BC = jnp.minimum(-alpha * reward_BC, MAX_EXPONENT)
    reward_BC = -jnp.expm1(exponent_BC) / alpha
  return simpo(reward_BC, beta=beta, gamma=gamma)


@checked
def simper(mean_logp_BC: ArrayLike) -> jax.Array:
  """SimPER: inverse perplexities, with no hyper-parameter.

      loss = p_l - p_w,   p = exp(mean_logp)

  p is 1 / perplexity of a response.  The gradient of each vanishes with p: an
  unlikely response is let alone.

  Args:
    mean_logp_BC: policy, per response token; nats, at most 0.

  Returns:
    loss_B: in (-1, 1), float32 or better.

  Source: SimPER, arXiv:2502.00883; the authors' code.
  Numerics: exponents are clamped at 80.

  >>> import jax.numpy as jnp
  >>> simper(jnp.log(jnp.array([[0.5, 0.25]]))).tolist()
  [-0.25]
  """
  check(mean_logp_BC=mean_logp_BC)
  p_BC = jnp.exp(jnp.minimum(widen(mean_logp_BC), MAX_EXPONENT))
  return -margin(p_BC)


@checked
def cpo(logp_BC: ArrayLike, *, beta: ArrayLike = 0.1) -> jax.Array:
  """Contrastive preference optimization: DPO against a uniform reference.

      loss = -log sigmoid( beta * (log p_w - log p_l) )

  The published method adds `nll` with weight 1.

  Args:
    logp_BC: policy, summed over response tokens; nats.
    beta: inverse temperature, per nat.

  Returns:
    loss_B: nats, float32 or better.

  Source: CPO, arXiv:2401.08417, equation 3 without its likelihood term.

  >>> import jax.numpy as jnp
  >>> got = cpo(jnp.array([[-5.0, -15.0]]))[0]
  >>> bool(jnp.isclose(got, jnp.log1p(jnp.exp(-1.0))))
  True
  """
  check(logp_BC=logp_BC)
  return -jax.nn.log_sigmoid(beta * margin(logp_BC))


@checked
def slic(logp_BC: ArrayLike, *, delta: ArrayLike = 1.0) -> jax.Array:
  """Sequence likelihood calibration: chosen likelier by `delta` nats.

      loss = max(0, delta - log p_w + log p_l)

  The published method adds `nll`; HALOs use weight 0.1.

  Args:
    logp_BC: policy, summed over response tokens; nats.
    delta: the margin asked for; nats.

  Returns:
    loss_B: nats, float32 or better; no gradient where the margin is reached.

  Source: SLiC-HF, arXiv:2305.10425, equation 1; the form of HALOs.

  >>> import jax.numpy as jnp
  >>> slic(jnp.array([[-5.0, -5.5], [-5.0, -9.0]])).tolist()
  [0.5, 0.0]
  """
  check(logp_BC=logp_BC)
  return jax.nn.relu(delta - margin(logp_BC))


@checked
def orpo(mean_logp_BC: ArrayLike, *, weight: ArrayLike = 0.1) -> jax.Array:
  """Odds-ratio preference optimization, its odds term.

      odds(y) = p / (1 - p),   p = exp(mean_logp)
      loss    = -weight * log sigmoid( log odds(y_w) - log odds(y_l) )

  The published method adds `nll` with weight 1.

  Args:
    mean_logp_BC: policy, per response token; nats, at most 0.
    weight: lambda.

  Returns:
    loss_B: nats, float32 or better.

  Source: ORPO, arXiv:2403.07691, equations 6 and 7.
  Numerics: mean_logp is at most -1e-6 here, so that value and gradient are
  finite for a certain response; past it there is no gradient.

  >>> import jax.numpy as jnp
  >>> got = orpo(jnp.log(jnp.array([[0.5, 0.25]])), weight=1.0)[0]  # odds 3
  >>> bool(jnp.isclose(got, jnp.log(4.0 / 3.0)))
  True
  """
  check(mean_logp_BC=mean_logp_BC)
  mean_logp_BC = jnp.minimum(widen(mean_logp_BC), CERTAIN)
  log_odds_BC = mean_logp_BC - jnp.log(-jnp.expm1(mean_logp_BC))
  return -weight * jax.nn.log_sigmoid(margin(log_odds_BC))


@checked
def rainbow_po(
  mean_logp_BC: ArrayLike,
  ref_mean_logp_BC: ArrayLike,
  *,
  beta: ArrayLike = 10.0,
  mixing: ArrayLike = 0.25,
  home_advantage: ArrayLike = 0.1,
  scale_B: ArrayLike = 1.0,
) -> jax.Array:
  """RainbowPO: a geometric mix of the reference and a constant margin.

      m    = (mean_w - mean_l) - mixing * (ref_w - ref_l)
             - (1 - mixing) * home_advantage
      loss = -log sigmoid( scale * beta * m )

  mixing = 0 is SimPO with gamma = beta * home_advantage, mixing = 1 the
  length-normalised DPO.

  Args:
    mean_logp_BC: policy, per response token; nats.
    ref_mean_logp_BC: the same under the reference; no gradient.
    beta: inverse temperature.
    mixing: share of the reference, in [0, 1].
    home_advantage: margin of the other part; nats per token.
    scale_B: factor per pair; MallowsPO's dispersion enters here.

  Returns:
    loss_B: nats, float32 or better.

  Source: RainbowPO, arXiv:2410.04203.

  >>> import jax.numpy as jnp
  >>> mean_logp_BC = jnp.array([[-1.0, -1.5]])
  >>> reference_free = rainbow_po(
  ...   mean_logp_BC, mean_logp_BC, beta=2.0, mixing=0.0, home_advantage=0.5
  ... )
  >>> float(reference_free[0]) == float(simpo(mean_logp_BC)[0])
  True
  """
  check(mean_logp_BC=mean_logp_BC, ref_mean_logp_BC=ref_mean_logp_BC)
  ref_B = jax.lax.stop_gradient(margin(ref_mean_logp_BC))
  margin_B = margin(mean_logp_BC) - mixing * ref_B
  margin_B -= (1.0 - mixing) * home_advantage
  margin_B = rescaled(margin_B, scale_B, mean_logp_BC=mean_logp_BC)
  return -jax.nn.log_sigmoid(beta * margin_B)


@checked
def alpha_dpo(
  mean_logp_BC: ArrayLike,
  ref_mean_logp_BC: ArrayLike,
  *,
  beta: ArrayLike = 2.5,
  gamma: ArrayLike = 0.6,
  alpha: ArrayLike = 0.2,
  mean: ArrayLike = 0.0,
  std: ArrayLike = 1.0,
) -> jax.Array:
  """alpha-DPO: SimPO whose target margin follows the pair.

      D    = mean_w - mean_l,   D_ref the same under the reference
      M    = (beta * (D - D_ref) - mean) / std
      loss = -log sigmoid( beta * D - no_gradient(gamma + alpha * M) )

  alpha = 0 is SimPO.

  Args:
    mean_logp_BC: policy, per response token; nats.
    ref_mean_logp_BC: the same under the reference; no gradient.
    beta: inverse temperature.
    gamma: target margin, after beta.
    alpha: how far the target follows the pair.
    mean: running mean of beta * (D - D_ref) over the pairs.
    std: running standard deviation of the same, positive.

  Returns:
    loss_B: nats, float32 or better.

  Source: alpha-DPO, arXiv:2410.10148.  The authors' code subtracts inside
  beta, so its alpha is beta times this one, and starts mean and std at 0.

  >>> import jax.numpy as jnp
  >>> mean_logp_BC = jnp.array([[-1.0, -1.5]])
  >>> got = alpha_dpo(mean_logp_BC, mean_logp_BC, beta=2.0, gamma=1.0)
  >>> float(got[0]) == float(simpo(mean_logp_BC)[0])
  True
  """
  check(mean_logp_BC=mean_logp_BC, ref_mean_logp_BC=ref_mean_logp_BC)
  margin_B = margin(mean_logp_BC)
  gap_B = (beta * (margin_B - margin(ref_mean_logp_BC)) - mean) / std
  target_B = jax.lax.stop_gradient(gamma + alpha * gap_B)
  return -jax.nn.log_sigmoid(beta * margin_B - target_B)


@checked
def tpo(
  logp_BC: ArrayLike,
  gold_mean_logp_B: ArrayLike,
  *,
  beta: ArrayLike = 0.1,
  alpha: ArrayLike = 0.05,
) -> jax.Array:
  """Triple preference optimization: a pair and a gold response.

      loss = -log sigmoid( beta * (log p_w - log p_l) ) - alpha * gold

  Args:
    logp_BC: policy, summed over response tokens; nats.
    gold_mean_logp_B: policy log-probability of a third, gold response, per
      token of it; nats.
    beta: inverse temperature, per nat.
    alpha: weight of the gold response's likelihood.

  Returns:
    loss_B: nats, float32 or better.

  Source: TPO, arXiv:2405.16681; the defaults of its repository.

  >>> import jax.numpy as jnp
  >>> got = tpo(jnp.zeros((1, 2)), jnp.array([-2.0]), alpha=0.5)[0]
  >>> bool(jnp.isclose(got, jnp.log(2.0) + 1.0))
  True
  """
  check(logp_BC=logp_BC, gold_mean_logp_B=gold_mean_logp_B)
  return cpo(logp_BC, beta=beta) + alpha * nll(gold_mean_logp_B)
