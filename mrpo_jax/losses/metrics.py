# SPDX-License-Identifier: Apache-2.0
"""Metrics of rewards, references and gradients; none is a loss."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mrpo_jax.losses.arguments import Weights, checked
from mrpo_jax.losses.mixture import power_mean, trust_region
from mrpo_jax.losses.weighting import normalised_weight
from mrpo_jax.shapes import CHOSEN, REJECTED, check, widen

ALONE = 0.99  # of the mixture: the others move its logarithm by 0.01 nats
SATURATED = (0.01, 0.99)  # of a gradient scale


@checked
def preference_metrics(
  policy_logp_BC: ArrayLike, ref_logp_BC: ArrayLike, *, beta: ArrayLike = 0.1
) -> dict[str, jax.Array]:
  """Implicit rewards and how often they agree with the label.

      reward(y) = beta * (log p(y) - log r(y))

  Args:
    policy_logp_BC: nats, summed over response tokens.
    ref_logp_BC: the same under one reference, or zeros for none.
    beta: inverse temperature, per nat; a number, or [B, 1] of each pair's.

  Returns:
    dict of value_B under TRL's names: `rewards/chosen`, `rewards/rejected`,
    `rewards/margins`, `rewards/accuracies` (1 where the chosen reward is
    strictly larger), `logps/chosen`, `logps/rejected` (the policy's).

  Source: DPO, arXiv:2305.18290, equation 5.

  >>> import jax.numpy as jnp
  >>> logp_BC = jnp.array([[-10.0, -20.0]])
  >>> figures = preference_metrics(logp_BC, logp_BC + jnp.array([[-2.0, 2.0]]))
  >>> round(float(figures["rewards/margins"][0]), 4)
  0.4
  """
  check(policy_logp_BC=policy_logp_BC, ref_logp_BC=ref_logp_BC)
  policy_logp_BC = widen(policy_logp_BC)
  reward_BC = beta * (policy_logp_BC - widen(ref_logp_BC))
  margin_B = reward_BC[:, CHOSEN] - reward_BC[:, REJECTED]
  return {
    "rewards/chosen": reward_BC[:, CHOSEN],
    "rewards/rejected": reward_BC[:, REJECTED],
    "rewards/margins": margin_B,
    "rewards/accuracies": (margin_B > 0).astype(margin_B.dtype),
    "logps/chosen": policy_logp_BC[:, CHOSEN],
    "logps/rejected": policy_logp_BC[:, REJECTED],
  }


@checked
def reference_metrics(
  ref_logp_BCK: ArrayLike,
  weight: Weights,
  *,
  p: float = -1,
  epsilon_max: ArrayLike | None = None,
  adaptive_epsilon: bool = True,
) -> dict[str, jax.Array]:
  """Margin, accuracy, weight and responsibility of each reference.

  Args:
    ref_logp_BCK: nats, summed over response tokens, not clipped.
    weight: [K] or [B, K], non-negative.
    p: see `power_mean`.
    epsilon_max: see `trust_region`; None means no clipping.
    adaptive_epsilon: see `trust_region`.

  Returns:
    dict: `margin` (nats, on unclipped values), `accuracy` (1 where the margin
    is positive), `weight`, `responsibility` (share of the mixture at the
    chosen response; sums to 1 over K), `clipped_low`, `clipped_high` (share of
    the two responses), each value_BK; `effective_references`, value_B, the
    exponential of the entropy of the responsibilities.

  >>> import jax.numpy as jnp
  >>> equal = jnp.full((1, 2, 4), -7.0)
  >>> figures = reference_metrics(equal, jnp.ones(4))
  >>> round(float(figures["effective_references"][0]), 4)
  4.0
  """
  check(ref_logp_BCK=ref_logp_BCK)
  ref_logp_BCK = jax.lax.stop_gradient(widen(ref_logp_BCK))
  weight_BK = normalised_weight(weight, ref_logp_BCK)
  margin_BK = ref_logp_BCK[:, CHOSEN] - ref_logp_BCK[:, REJECTED]
  mixed_BCK = ref_logp_BCK
  if epsilon_max is not None:
    mixed_BCK = trust_region(
      ref_logp_BCK, epsilon_max=epsilon_max, adaptive=adaptive_epsilon
    )
  share_BK = _responsibility(mixed_BCK, weight_BK, p=p)
  log_share_BK = jnp.log(jnp.where(share_BK > 0, share_BK, 1.0))
  dtype = margin_BK.dtype
  return {
    "margin": margin_BK,
    "accuracy": (margin_BK > 0).astype(dtype),
    "weight": weight_BK,
    "responsibility": share_BK,
    "clipped_low": jnp.mean((mixed_BCK > ref_logp_BCK).astype(dtype), axis=1),
    "clipped_high": jnp.mean((mixed_BCK < ref_logp_BCK).astype(dtype), axis=1),
    "effective_references": jnp.exp(-jnp.sum(share_BK * log_share_BK, axis=-1)),
  }


@checked
def reference_relations(
  ref_logp_BCK: ArrayLike,
  weight: Weights,
  *,
  p: float = -1,
  epsilon_max: ArrayLike | None = None,
  adaptive_epsilon: bool = True,
) -> dict[str, jax.Array]:
  """Agreement of the references, and pairs where they cancel their weights.

  Args:
    ref_logp_BCK: nats, summed over response tokens, not clipped.
    weight: [K] or [B, K], non-negative.
    p: see `power_mean`.
    epsilon_max: see `trust_region`; None means no clipping.
    adaptive_epsilon: see `trust_region`.

  Returns:
    dict: `agreement`, value_BKK, 1 where two references rank the pair alike (a
    reference that is undecided agrees with none, itself included); `cancels`,
    value_B, 1 where one reference has at least 0.99 of the mixture at both
    responses, and not by its weight alone: the weights then drop out of their
    difference and change nothing (0 for K = 1 and p = 0).

  >>> import jax.numpy as jnp
  >>> logp = jnp.array([[[-1.0, -9.0], [-2.0, -8.0]]])
  >>> figures = reference_relations(logp, jnp.ones(2))
  >>> figures["agreement"][0].tolist(), figures["cancels"].tolist()
  ([[1.0, 0.0], [0.0, 1.0]], [1.0])
  """
  check(ref_logp_BCK=ref_logp_BCK)
  ref_logp_BCK = jax.lax.stop_gradient(widen(ref_logp_BCK))
  weight_BK = normalised_weight(weight, ref_logp_BCK)
  sign_BK = jnp.sign(ref_logp_BCK[:, CHOSEN] - ref_logp_BCK[:, REJECTED])
  alike_BKK = sign_BK[:, :, None] * sign_BK[:, None, :] > 0
  mixed_BCK = ref_logp_BCK
  if epsilon_max is not None:
    mixed_BCK = trust_region(
      ref_logp_BCK, epsilon_max=epsilon_max, adaptive=adaptive_epsilon
    )
  # A share that is a weight's alone changes with it.
  cancels_BK = weight_BK < ALONE
  for choice in (CHOSEN, REJECTED):
    share_BK = _responsibility(mixed_BCK, weight_BK, p=p, choice=choice)
    cancels_BK &= share_BK >= ALONE
  dtype = ref_logp_BCK.dtype
  return {
    "agreement": alike_BKK.astype(dtype),
    "cancels": jnp.any(cancels_BK, axis=-1).astype(dtype),
  }


@checked
def gradient_metrics(margin_B: ArrayLike) -> dict[str, jax.Array]:
  """The factor on a pair's gradient in DPO, and where it is saturated.

      gradient_scale = sigmoid(-m),   m = beta * ( log-ratio margin )

  Near 0 a pair is learnt and ignored, near 1 it counts whole whatever the
  policy does.

  Args:
    margin_B: reward margins, beta included.

  Returns:
    dict of value_B: `gradient_scale`, `gradient_scale/low` (1 below 0.01),
    `gradient_scale/high` (1 above 0.99).

  Source: DPO, arXiv:2305.18290, equation 7.

  >>> import jax.numpy as jnp
  >>> figures = gradient_metrics(jnp.array([0.0, 9.0]))
  >>> figures["gradient_scale/low"].tolist()
  [0.0, 1.0]
  """
  check(margin_B=margin_B)
  scale_B = jax.nn.sigmoid(-widen(margin_B))
  low, high = SATURATED
  return {
    "gradient_scale": scale_B,
    "gradient_scale/low": (scale_B < low).astype(scale_B.dtype),
    "gradient_scale/high": (scale_B > high).astype(scale_B.dtype),
  }


def _responsibility(ref_logp_BCK, weight_BK, *, p, choice=CHOSEN):
  """d log mixture / d log r_k at one response."""
  ref_logp_BK = ref_logp_BCK[:, choice]
  if abs(p) == float("inf"):
    extreme_BC = power_mean(ref_logp_BCK, weight_BK, p=p)
    hit_BK = ref_logp_BK == extreme_BC[:, choice, None]
    hit_BK = (hit_BK & (weight_BK > 0)).astype(weight_BK.dtype)
    return hit_BK / jnp.sum(hit_BK, axis=-1, keepdims=True)
  kept_BK = weight_BK > 0
  log_weight_BK = jnp.log(jnp.where(kept_BK, weight_BK, 1.0))
  term_BK = log_weight_BK + p * ref_logp_BK
  return jax.nn.softmax(term_BK, axis=-1, where=kept_BK)
