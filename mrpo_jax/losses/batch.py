# SPDX-License-Identifier: Apache-2.0
"""Losses that look across the pairs of a batch.

They take `valid_B`, a mask of the real pairs: without it, padding would
change the value of every other pair.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mrpo_jax.losses.arguments import checked
from mrpo_jax.losses.pair import dpo, margin
from mrpo_jax.shapes import CHOSEN, REJECTED, check, widen

MIN_BETA = 1e-3  # of adaptive_beta, as in the authors' code


def _valid(valid_B, **pairs):
  """The mask of the real pairs of an array, which is given by its name."""
  (array,) = pairs.values()
  if valid_B is None:
    return jnp.ones(len(array), bool)
  check(**pairs, valid_B=valid_B)
  return valid_B.astype(bool)


def _sorted(value_B, valid_B):
  """The valid values in ascending order, at the valid places; 0 elsewhere."""
  order_B = jnp.sort(jnp.where(valid_B, value_B, jnp.inf))
  rank_B = jnp.cumsum(valid_B) - 1  # of each valid place among the valid
  sorted_B = jnp.take(order_B, jnp.maximum(rank_B, 0))
  return jnp.where(valid_B, sorted_B, 0.0)


@checked
def aot(
  policy_logp_BC: ArrayLike,
  ref_logp_BC: ArrayLike,
  *,
  beta: ArrayLike = 0.1,
  label_smoothing: ArrayLike = 0.0,
  valid_B: ArrayLike | None = None,
) -> jax.Array:
  """Alignment by optimal transport: compare sorted margins, not paired ones.

      d    = sort(log p_w - log p_l) - sort(log r_w - log r_l)
      loss = -(1 - eps) * log sigmoid(beta d) - eps * log sigmoid(-beta d)

  The policy's margins shall dominate the reference's as a distribution.  With
  one pair it is DPO.

  Args:
    policy_logp_BC: nats, summed over response tokens.
    ref_logp_BC: the same under the reference; no gradient.
    beta: inverse temperature, per nat; the authors use 0.01.
    label_smoothing: eps, in [0, 1].
    valid_B: true for real pairs; None means all.

  Returns:
    loss_B in sorted order; with valid_B the values stand at the valid places,
    and what stands elsewhere means nothing.

  Source: AOT, arXiv:2406.05882, paired variant; the form of TRL 1.16.

  >>> import jax.numpy as jnp
  >>> policy_logp_BC = jnp.array([[-1.0, -5.0], [-3.0, -4.0]])
  >>> ref_logp_BC = policy_logp_BC[::-1]  # the same margins, other pairs
  >>> got = aot(policy_logp_BC, ref_logp_BC)
  >>> bool(jnp.allclose(got, jnp.log(2.0)))
  True
  """
  check(policy_logp_BC=policy_logp_BC, ref_logp_BC=ref_logp_BC)
  policy_B = margin(policy_logp_BC)
  ref_B = jax.lax.stop_gradient(margin(ref_logp_BC))
  valid_B = _valid(valid_B, policy_logp_BC=policy_logp_BC)
  gap_B = _sorted(policy_B, valid_B) - _sorted(ref_B, valid_B)
  gap_BC = jnp.stack([gap_B, jnp.zeros_like(gap_B)], axis=-1)
  return dpo(gap_BC, beta=beta, label_smoothing=label_smoothing)


@checked
def aot_unpaired(
  logratio_BC: ArrayLike,
  *,
  beta: ArrayLike = 0.1,
  label_smoothing: ArrayLike = 0.0,
  valid_B: ArrayLike | None = None,
) -> jax.Array:
  """Alignment by optimal transport between chosen and rejected rewards.

      d    = sort(r_w) - sort(r_l)
      loss = -(1 - eps) * log sigmoid(beta d) - eps * log sigmoid(-beta d)

  Args:
    logratio_BC: policy minus reference log-probability; nats.
    beta: inverse temperature, per nat.
    label_smoothing: eps, in [0, 1].
    valid_B: true for real pairs; None means all.

  Returns:
    loss_B in sorted order; see `aot`.

  Source: AOT, arXiv:2406.05882, unpaired variant; the form of TRL 1.16.

  >>> import jax.numpy as jnp
  >>> logratio_BC = jnp.array([[1.0, 3.0], [3.0, 1.0]])
  >>> bool(jnp.allclose(aot_unpaired(logratio_BC), jnp.log(2.0)))
  True
  """
  check(logratio_BC=logratio_BC)
  logratio_BC = widen(logratio_BC)
  valid_B = _valid(valid_B, logratio_BC=logratio_BC)
  sorted_BC = jnp.stack(
    [_sorted(logratio_BC[:, c], valid_B) for c in (CHOSEN, REJECTED)], axis=-1
  )
  return dpo(sorted_BC, beta=beta, label_smoothing=label_smoothing)


@checked
def dr_dpo(
  logratio_BC: ArrayLike,
  *,
  beta: ArrayLike = 0.1,
  beta_prime: ArrayLike = 1.0,
  valid_B: ArrayLike | None = None,
) -> jax.Array:
  """Distributionally robust DPO: a soft minimum over the batch.

      loss = -beta' * log mean_B exp(-dpo_B / beta')

  Pairs with a large loss, likely mislabelled, count less.  As beta' grows it
  becomes the mean.

  Args:
    logratio_BC: policy minus reference log-probability; nats.
    beta: inverse temperature of `dpo`, per nat.
    beta_prime: temperature over the batch, positive.
    valid_B: true for real pairs; None means all.

  Returns:
    A scalar, nats; 0 where no pair is valid.

  Source: Dr. DPO, arXiv:2407.07880.

  >>> import jax.numpy as jnp
  >>> bool(jnp.isclose(dr_dpo(jnp.zeros((3, 2))), jnp.log(2.0)))
  True
  """
  check(logratio_BC=logratio_BC)
  valid_B = _valid(valid_B, logratio_BC=logratio_BC)
  # Before the loss: nan in padding would reach the gradient as 0 * nan.
  logratio_BC = jnp.where(valid_B[:, None], widen(logratio_BC), 0.0)
  loss_B = dpo(logratio_BC, beta=beta)
  count = jnp.sum(valid_B).astype(loss_B.dtype)
  # Without a valid pair the sum runs over all, so that its gradient exists.
  term_B = jnp.where(valid_B | (count == 0), -loss_B / beta_prime, -jnp.inf)
  total = jax.nn.logsumexp(term_B) - jnp.log(jnp.maximum(count, 1))
  return jnp.where(count > 0, -beta_prime * total, 0.0)


@checked
def adaptive_beta(
  margin_B: ArrayLike,
  running_margin: ArrayLike,
  *,
  beta: ArrayLike = 0.1,
  strength: ArrayLike = 0.6,
  valid_B: ArrayLike | None = None,
) -> jax.Array:
  """beta-DPO's batch-level beta: larger where the pairs are easy.

      beta' = max( beta * (1 + strength * (mean_B margin - running)), 1e-3 )

  Args:
    margin_B: r_w - r_l, log-ratios without beta; nats.
    running_margin: running mean of the margins, this batch included.
    beta: where the margins are as usual, per nat.
    strength: a; 0 gives beta back.
    valid_B: true for real pairs; None means all.

  Returns:
    A scalar to pass as `beta` of any pair loss; no gradient.

  Source: beta-DPO, arXiv:2407.08639, in the form of the authors' code, whose
  margin has no beta in it; the paper's includes it (unverified).

  >>> import jax.numpy as jnp
  >>> round(float(adaptive_beta(jnp.array([2.0, 4.0]), 2.0)), 4)
  0.16
  """
  mean, _ = masked_moments(margin_B, valid_B)
  gap = jax.lax.stop_gradient(mean - widen(running_margin))
  return jnp.maximum(beta * (1.0 + strength * gap), MIN_BETA)


def masked_moments(
  margin_B: ArrayLike, valid_B: ArrayLike | None = None
) -> tuple[jax.Array, jax.Array]:
  """(mean, population standard deviation) over the valid pairs; 0 for none.

  >>> import jax.numpy as jnp
  >>> margin_B, valid_B = jnp.array([1.0, 3.0, 9.0]), jnp.array([1, 1, 0])
  >>> [float(moment) for moment in masked_moments(margin_B, valid_B)]
  [2.0, 1.0]
  """
  check(margin_B=margin_B)
  margin_B = widen(margin_B)
  valid_B = _valid(valid_B, margin_B=margin_B)
  count = jnp.maximum(jnp.sum(valid_B), 1).astype(margin_B.dtype)
  margin_B = jnp.where(valid_B, margin_B, 0.0)
  mean = jnp.sum(margin_B) / count
  square = jnp.sum(jnp.where(valid_B, jnp.square(margin_B - mean), 0.0)) / count
  positive = square > 0  # the square root has no gradient at 0
  return mean, jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)
