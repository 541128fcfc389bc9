# SPDX-License-Identifier: Apache-2.0
"""What to watch beside the loss.  Metrics are not losses."""

import jax
import jax.numpy as jnp

from mrpo_jax.losses.mixture import power_mean, trust_region
from mrpo_jax.losses.weighting import normalised_weight
from mrpo_jax.shapes import CHOSEN, REJECTED, check, widen


def preference_metrics(policy_logp_BC, ref_logp_BC, *, beta=0.1):
  """Implicit rewards and how often they agree with the label.

      reward(y) = beta * (log p(y) - log r(y))

  Args:
    policy_logp_BC: nats, summed over response tokens.
    ref_logp_BC: the same under one reference, or zeros for none.
    beta: inverse temperature, per nat.

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
  check("B 2", policy_logp_BC, "B 2", ref_logp_BC)
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


def reference_metrics(
  ref_logp_BCK, weight, *, p=-1, epsilon_max=None, adaptive_epsilon=True
):
  """What each reference says on its own and does to the mixture.

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
  check("B 2 K", ref_logp_BCK)
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


def _responsibility(ref_logp_BCK, weight_BK, *, p):
  """d log mixture / d log r_k at the chosen response."""
  if abs(p) == float("inf"):
    extreme_BC = power_mean(ref_logp_BCK, weight_BK, p=p)
    hit_BK = ref_logp_BCK[:, CHOSEN] == extreme_BC[:, CHOSEN, None]
    hit_BK = (hit_BK & (weight_BK > 0)).astype(weight_BK.dtype)
    return hit_BK / jnp.sum(hit_BK, axis=-1, keepdims=True)
  kept_BK = weight_BK > 0
  log_weight_BK = jnp.log(jnp.where(kept_BK, weight_BK, 1.0))
  term_BK = log_weight_BK + p * ref_logp_BCK[:, CHOSEN]
  return jax.nn.softmax(term_BK, axis=-1, where=kept_BK)
