# SPDX-License-Identifier: Apache-2.0
"""Several references become one: clip, weigh, mix.

No gradient flows through a reference, anywhere.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mrpo_jax.losses.arguments import Weights, checked
from mrpo_jax.losses.weighting import adaptive_weights, normalised_weight
from mrpo_jax.shapes import check, widen

SMALL_POWER = 0.01  # below, log-sum-exp / p rounds by more than 1e-5 nats


@checked
def power_mean(
  ref_logp_BCK: ArrayLike, weight_BK: Weights, *, p: float
) -> jax.Array:
  """Log of the weighted power mean of K reference probabilities.

      r(y) = ( sum_k  w_k * r_k(y)^p )^(1/p)

  p = -1 is MRPO's virtual reference (harmonic): one trusted reference that
  finds y unlikely is enough to make it unlikely.  p = 0 is the geometric mean,
  the exact optimum for several reverse-KL penalties; p = 1 the mixture.
  -inf and inf are the minimum and the maximum.  Not normalised over y.

  Args:
    ref_logp_BCK: log-probability of each response under each reference; nats,
      summed over response tokens.
    weight_BK: trust in each reference, [B, K] or [K]; non-negative,
      normalised here to sum 1 over K.  A zero removes that reference.
    p: static Python number, +-inf included.

  Returns:
    logp_BC: nats, float32 or better; no gradient.

  Source: MRPO, arXiv:2405.16388, for p = -1; Aminian et al.,
  arXiv:2502.01203, for p = 0.
  Numerics: one log-sum-exp over K; finite at +-1e4 nats; about p = 0 from the
  distances to the geometric mean, which p does not magnify.  A reference of
  weight 0 may hold any value, -inf included.

  >>> import jax.numpy as jnp
  >>> equal = jnp.full((1, 2, 3), -7.0)
  >>> power_mean(equal, jnp.ones(3), p=-1).tolist()
  [[-7.0, -7.0]]
  """
  check(ref_logp_BCK=ref_logp_BCK)
  ref_logp_BCK = jax.lax.stop_gradient(widen(ref_logp_BCK))
  weight_B1K = normalised_weight(weight_BK, ref_logp_BCK)[:, None, :]
  kept_BCK = jnp.broadcast_to(weight_B1K > 0, ref_logp_BCK.shape)
  safe_BCK = jnp.where(kept_BCK, ref_logp_BCK, 0.0)
  geometric_BC = jnp.sum(weight_B1K * safe_BCK, axis=-1)
  if abs(p) < jnp.finfo(safe_BCK.dtype).tiny:
    return geometric_BC
  if p == math.inf:
    return jnp.max(safe_BCK, axis=-1, where=kept_BCK, initial=-jnp.inf)
  if p == -math.inf:
    return jnp.min(safe_BCK, axis=-1, where=kept_BCK, initial=jnp.inf)
  log_weight_B1K = jnp.log(jnp.where(weight_B1K > 0, weight_B1K, 1.0))
  term_BCK = jnp.where(kept_BCK, log_weight_B1K + p * safe_BCK, -jnp.inf)
  mixed_BC = jax.nn.logsumexp(term_BCK, axis=-1) / p
  if abs(p) >= SMALL_POWER:
    return mixed_BC
  apart_BCK = p * (safe_BCK - geometric_BC[..., None])
  is_near_BCK = kept_BCK & (jnp.abs(apart_BCK) < 1.0)
  grown_BCK = jnp.expm1(jnp.where(is_near_BCK, apart_BCK, 0.0))
  more_BC = jnp.log1p(jnp.sum(weight_B1K * grown_BCK, axis=-1)) / p
  is_near_BC = jnp.all(is_near_BCK | ~kept_BCK, axis=-1)
  return jnp.where(is_near_BC, geometric_BC + more_BC, mixed_BC)


@checked
def harmonic(ref_logp_BCK: ArrayLike, weight_BK: Weights) -> jax.Array:
  """`power_mean` with p = -1: MRPO's virtual reference.

  >>> import jax.numpy as jnp
  >>> logp = jnp.log(jnp.array([[[0.5, 0.25], [0.5, 0.25]]]))
  >>> bool(jnp.allclose(harmonic(logp, jnp.ones(2)), jnp.log(1 / 3)))
  True
  """
  return power_mean(ref_logp_BCK, weight_BK, p=-1)


@checked
def geometric(ref_logp_BCK: ArrayLike, weight_BK: Weights) -> jax.Array:
  """`power_mean` with p = 0: the weighted mean of the log-probabilities.

  >>> import jax.numpy as jnp
  >>> geometric(jnp.array([[[-1.0, -3.0], [0.0, -4.0]]]), jnp.ones(2)).tolist()
  [[-2.0, -2.0]]
  """
  return power_mean(ref_logp_BCK, weight_BK, p=0)


@checked
def arithmetic(ref_logp_BCK: ArrayLike, weight_BK: Weights) -> jax.Array:
  """`power_mean` with p = 1: the mixture of the references.

  >>> import jax.numpy as jnp
  >>> logp = jnp.log(jnp.array([[[0.5, 0.25], [0.5, 0.25]]]))
  >>> bool(jnp.allclose(arithmetic(logp, jnp.ones(2)), jnp.log(3 / 8)))
  True
  """
  return power_mean(ref_logp_BCK, weight_BK, p=1)


@checked
def minimum(ref_logp_BCK: ArrayLike, weight_BK: Weights) -> jax.Array:
  """`power_mean` with p = -inf: the smallest, over weights above 0.

  >>> import jax.numpy as jnp
  >>> logp = jnp.array([[[-1.0, -3.0, -9.0], [0.0, -4.0, -9.0]]])
  >>> minimum(logp, jnp.array([1.0, 1.0, 0.0])).tolist()
  [[-3.0, -4.0]]
  """
  return power_mean(ref_logp_BCK, weight_BK, p=-math.inf)


@checked
def maximum(ref_logp_BCK: ArrayLike, weight_BK: Weights) -> jax.Array:
  """`power_mean` with p = inf: the largest, over weights above 0.

  >>> import jax.numpy as jnp
  >>> logp = jnp.array([[[-1.0, -3.0, 9.0], [0.0, -4.0, 9.0]]])
  >>> maximum(logp, jnp.array([1.0, 1.0, 0.0])).tolist()
  [[-1.0, 0.0]]
  """
  return power_mean(ref_logp_BCK, weight_BK, p=math.inf)


@checked
def trust_region(
  ref_logp_BCK: ArrayLike,
  *,
  epsilon_max: ArrayLike = 0.1,
  adaptive: bool = True,
) -> jax.Array:
  """Clips the other references into a band around reference 0 (CTRO).

      b(y)   = mean_k log r_k(y)
      eps(y) = epsilon_max * |b(y)| / (|b(y_w)| + |b(y_l)|)
      log r_k(y) in log r_0(y) +- eps(y) * |log r_0(y)|      for k >= 1

  The band is a share of the log-probability, so it grows with the response's
  length; the two eps of a pair sum to epsilon_max.

  Args:
    ref_logp_BCK: nats, summed over response tokens; reference 0 is the base.
    epsilon_max: share of |log r_0|, >= 0.
    adaptive: False uses epsilon_max for both responses.

  Returns:
    ref_logp_BCK: clipped, no gradient; reference 0 unchanged.  K = 1 returns
    its input, and so does a pair whose b is 0 on both responses.

  Source: released code of MRPO (arXiv:2405.16388) for K = 2.  For K > 2 the
  mean over all K, unclipped, is this project's choice: unverified in the
  paper.

  >>> import jax.numpy as jnp
  >>> far = jnp.array([[[-10.0, -50.0], [-10.0, -50.0]]])
  >>> trust_region(far, epsilon_max=0.2)[0].tolist()
  [[-10.0, -11.0], [-10.0, -11.0]]
  """
  check(ref_logp_BCK=ref_logp_BCK)
  ref_logp_BCK = jax.lax.stop_gradient(widen(ref_logp_BCK))
  if ref_logp_BCK.shape[-1] == 1:
    return ref_logp_BCK
  base_BC1 = ref_logp_BCK[..., :1]
  reach_BC1 = jnp.abs(base_BC1) * epsilon_max
  clip_B11 = True
  if adaptive:
    size_BC1 = jnp.abs(jnp.mean(ref_logp_BCK, axis=-1, keepdims=True))
    total_B11 = jnp.sum(size_BC1, axis=1, keepdims=True)
    clip_B11 = total_B11 > 0
    reach_BC1 = reach_BC1 * size_BC1 / jnp.where(clip_B11, total_B11, 1.0)
  low_BC1, high_BC1 = base_BC1 - reach_BC1, base_BC1 + reach_BC1
  clipped_BCK = jnp.clip(ref_logp_BCK, low_BC1, high_BC1)
  is_base_K = jnp.arange(ref_logp_BCK.shape[-1])[None, None, :] == 0
  return jnp.where(
    is_base_K | ~jnp.asarray(clip_B11), ref_logp_BCK, clipped_BCK
  )


@checked
def virtual_reference(
  ref_logp_BCK: ArrayLike,
  *,
  weight: Weights | None = None,
  epsilon_max: ArrayLike | None = 0.1,
  adaptive_epsilon: bool = True,
  p: float = -1,
  official_weights: bool = False,
) -> jax.Array:
  """K references become one: weigh what came in, then clip, then mix.

  Args:
    ref_logp_BCK: nats, summed over response tokens; reference 0 is the base.
    weight: [K] or [B, K], non-negative; None means `adaptive_weights` of the
      unclipped values, which read the label.
    epsilon_max: see `trust_region`; None means no clipping.
    adaptive_epsilon: see `trust_region`.
    p: see `power_mean`; -1 is the published harmonic mean.
    official_weights: swaps the two columns of the weight, however it came
      about, as the released code does; K = 2 only.

  Returns:
    logp_BC: log-probability of the virtual reference; nats, no gradient.

  Raises:
    ValueError: official_weights with K != 2.

  Source: MRPO, arXiv:2405.16388, order of operations as released.

  >>> import jax.numpy as jnp
  >>> logp = jnp.array([[[-10.0, -12.0], [-10.0, -30.0]]])
  >>> unclipped = virtual_reference(logp, weight=jnp.ones(2), epsilon_max=None)
  >>> bool(jnp.allclose(unclipped, harmonic(logp, jnp.ones(2))))
  True
  """
  check(ref_logp_BCK=ref_logp_BCK)
  if weight is None:
    weight = adaptive_weights(ref_logp_BCK)
  if official_weights:
    weight = swapped(weight, ref_logp_BCK)
  if epsilon_max is not None:
    ref_logp_BCK = trust_region(
      ref_logp_BCK, epsilon_max=epsilon_max, adaptive=adaptive_epsilon
    )
  return power_mean(ref_logp_BCK, weight, p=p)


def swapped(weight, ref_logp_BCK):
  """A weight with its two columns exchanged, as MRPO's released code has it.

  Raises:
    ValueError: K != 2.
  """
  if ref_logp_BCK.shape[-1] != 2:
    raise ValueError(
      "official_weights is defined for K=2 references, got "
      f"K={ref_logp_BCK.shape[-1]}"
    )
  return jnp.flip(jnp.asarray(weight), axis=-1)
