# SPDX-License-Identifier: Apache-2.0
"""Losses against several references, or one made of them.

No gradient flows through a reference, anywhere.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mrpo_jax.losses.arguments import (
  CHOICE_OF,
  PairLoss,
  Weights,
  checked,
  keywords_of,
)
from mrpo_jax.losses.mixture import power_mean, trust_region, virtual_reference
from mrpo_jax.losses.pair import dpo, margin
from mrpo_jax.losses.rewards import f_dpo
from mrpo_jax.losses.weighting import (
  check_weight,
  normalised_weight,
  uniform_weights,
)
from mrpo_jax.shapes import check, widen


@checked
def mrpo(
  policy_logp_BC: ArrayLike,
  ref_logp_BCK: ArrayLike,
  *,
  beta: ArrayLike = 0.1,
  pair_loss: PairLoss = dpo,
  **virtual: Any,
) -> jax.Array:
  """Multi-reference preference optimization.

      log r~ = virtual reference of r_0 .. r_{K-1}
      loss   = -log sigmoid( beta * (Delta_policy - Delta_r~) )

  Without further arguments this is the published method: adaptive weights,
  adaptive trust region, harmonic mean.  Adaptive weights read which response
  is the chosen one: do not use them for evaluation without saying so.

  Args:
    policy_logp_BC: policy log-probability; nats, summed over response tokens;
      index 0 chosen, 1 rejected.
    ref_logp_BCK: the same under each frozen reference; index 0 of K is the
      base.
    beta: inverse temperature, per nat.
    pair_loss: called as `pair_loss(logratio_BC, beta=beta)`.
    **virtual: keywords of `virtual_reference`.

  Returns:
    loss_B: nats, float32 or better; gradient only through the policy.

  Source: MRPO, arXiv:2405.16388.  The released code puts each weight on the
  other reference; `official_weights=True` reproduces that.

  >>> import jax.numpy as jnp
  >>> logp = jnp.array([[-5.0, -9.0]])
  >>> bool(jnp.isclose(mrpo(logp, logp[..., None])[0], jnp.log(2.0)))
  True
  """
  check(policy_logp_BC=policy_logp_BC, ref_logp_BCK=ref_logp_BCK)
  _refuse_unknown(virtual)
  ref_logp_BC = virtual_reference(ref_logp_BCK, **virtual)
  return pair_loss(widen(policy_logp_BC) - ref_logp_BC, beta=beta)


def _refuse_unknown(virtual):
  """A TypeError for the first keyword that `mrpo` does not take."""
  known = keywords_of(virtual_reference)
  here = {choice: name for name, choice in reversed(CHOICE_OF.items())}
  for key in virtual:
    if key not in known:
      taken = ", ".join(["beta", "pair_loss", *known])
      meant = f", which is {here[key]!r} here" if key in here else ""
      raise TypeError(f"mrpo does not take {key!r}{meant}; it takes: {taken}")


@checked
def multi_dpo(
  policy_logp_BC: ArrayLike,
  ref_logp_BCK: ArrayLike,
  *,
  beta: ArrayLike = 0.1,
  weight: Weights | None = None,
  epsilon_max: ArrayLike | None = None,
  adaptive_epsilon: bool = True,
  pair_loss: PairLoss = dpo,
) -> jax.Array:
  """The weighted sum of one pair loss per reference.

      loss = sum_k  w_k * pair_loss(policy - log r_k)

  Args:
    policy_logp_BC: nats, summed over response tokens.
    ref_logp_BCK: the same under each frozen reference.
    beta: inverse temperature, per nat.
    weight: [K] or [B, K], non-negative, normalised to sum 1; None is uniform.
    epsilon_max: see `trust_region`; None means no clipping.
    adaptive_epsilon: see `trust_region`.
    pair_loss: called as `pair_loss(logratio_BC, beta=beta)`.

  Returns:
    loss_B: nats, float32 or better; gradient only through the policy.  Of a
    pair loss with a value for each response, as `kto`, it is loss_BC.

  Source: the Multi-DPO baseline of MRPO, arXiv:2405.16388; whether the paper's
  is uniform and unclipped is unverified.

  >>> import jax.numpy as jnp
  >>> logp = jnp.array([[-5.0, -9.0]])
  >>> twice = jnp.stack([logp, logp], axis=-1)
  >>> bool(jnp.isclose(multi_dpo(logp, twice)[0], jnp.log(2.0)))
  True
  """
  check(policy_logp_BC=policy_logp_BC, ref_logp_BCK=ref_logp_BCK)
  policy_logp_BC = widen(policy_logp_BC)
  if weight is None:
    weight = uniform_weights(ref_logp_BCK)
  return weighted_losses(
    lambda ref_logp_BC: pair_loss(policy_logp_BC - ref_logp_BC, beta=beta),
    ref_logp_BCK,
    weight=weight,
    epsilon_max=epsilon_max,
    adaptive_epsilon=adaptive_epsilon,
  )


def weighted_losses(
  loss_against,
  ref_logp_BCK,
  *,
  weight,
  epsilon_max,
  adaptive_epsilon,
  betas=None,
):
  """sum_k w_k * loss_against(log r_k), the references clipped before.

  Args:
    loss_against: ref_logp_BC -> loss_B, a scalar or loss_BC; with betas
      (ref_logp_BC, beta).
    ref_logp_BCK: nats; no gradient.
    weight: [K] or [B, K], non-negative, normalised to sum 1.
    epsilon_max: see `trust_region`; None means no clipping.
    adaptive_epsilon: see `trust_region`.
    betas: one number per reference, or None.

  Returns:
    loss_B; loss_BC of a loss with a value for each response.
  """
  ref_logp_BCK = jax.lax.stop_gradient(widen(ref_logp_BCK))
  weight_BK = normalised_weight(weight, ref_logp_BCK)
  if epsilon_max is not None:
    ref_logp_BCK = trust_region(
      ref_logp_BCK, epsilon_max=epsilon_max, adaptive=adaptive_epsilon
    )
  # A dropped reference may hold anything; 0 * nan would not be dropped.
  ref_logp_BCK = jnp.where(weight_BK[:, None, :] > 0, ref_logp_BCK, 0.0)
  given, axes = (ref_logp_BCK,), (-1,)
  if betas is not None:
    given, axes = (ref_logp_BCK, jnp.asarray(betas)), (-1, 0)
  loss_BK = jax.vmap(loss_against, in_axes=axes, out_axes=-1)(*given)
  if loss_BK.ndim == 3:  # [B, C, K], one of each response
    weight_BK = weight_BK[:, None]
  return jnp.sum(weight_BK * loss_BK, axis=-1)


@checked
def optimistic_reference(
  ref_margin_B: ArrayLike, *, floor: ArrayLike = 0.0
) -> jax.Array:
  """A reference that is never wrong by more than the floor.

      Delta_ref = max( log r(y_w) - log r(y_l), floor )

  Where the reference ranks a pair wrongly, DPO asks the policy for less; this
  asks for as much as if the reference had been undecided.

  Args:
    ref_margin_B: reference log-probability, chosen minus rejected; nats.
    floor: nats.

  Returns:
    ref_margin_B: no gradient.

  Source: HyPO, arXiv:2602.11902.

  >>> import jax.numpy as jnp
  >>> optimistic_reference(jnp.array([-3.0, 2.0])).tolist()
  [0.0, 2.0]
  """
  check(ref_margin_B=ref_margin_B)
  return jnp.maximum(jax.lax.stop_gradient(widen(ref_margin_B)), floor)


@checked
def hypo(
  policy_logp_BC: ArrayLike,
  ref_logp_BC: ArrayLike,
  *,
  beta: ArrayLike = 0.1,
  floor: ArrayLike = 0.0,
) -> jax.Array:
  """DPO against an optimistic reference.

      loss = -log sigmoid( beta * (Delta_policy - max(Delta_ref, floor)) )

  Args:
    policy_logp_BC: nats, summed over response tokens.
    ref_logp_BC: the same under the reference; no gradient.
    beta: inverse temperature, per nat.
    floor: see `optimistic_reference`.

  Returns:
    loss_B: nats, float32 or better.

  Source: HyPO, arXiv:2602.11902.

  >>> import jax.numpy as jnp
  >>> equal = jnp.array([[-9.0, -5.0]])  # both rank the pair wrongly
  >>> bool(jnp.isclose(hypo(equal, equal)[0], jnp.log1p(jnp.exp(0.4))))
  True
  """
  check(policy_logp_BC=policy_logp_BC, ref_logp_BC=ref_logp_BC)
  ref_B = optimistic_reference(margin(ref_logp_BC), floor=floor)
  return -jax.nn.log_sigmoid(beta * (margin(policy_logp_BC) - ref_B))


@checked
def mnpo(
  policy_margin_B: ArrayLike,
  ref_margin_BK: ArrayLike,
  *,
  weight: Weights | None = None,
  eta: ArrayLike = 0.0075,
) -> jax.Array:
  """Multiplayer Nash preference optimization: a squared margin to several.

      loss = ( Delta_policy - sum_k w_k Delta_k - 1 / (2 eta) )^2

  The references are the initial policy and earlier ones.

  Args:
    policy_margin_B: policy log-probability, chosen minus rejected; nats.
    ref_margin_BK: the same under each reference; no gradient.
    weight: [K] or [B, K], non-negative, normalised to sum 1; None is uniform.
    eta: the margin asked for is 1 / (2 eta); the authors' value goes with
      mean log-probabilities.

  Returns:
    loss_B: nats squared, float32 or better.

  Source: MNPO, arXiv:2509.23102, equation 15, with the weights of equation 17;
  eta of the authors' code (smiles724/MNPO).  There, unlike here, missing
  references are left out without renormalising.

  >>> import jax.numpy as jnp
  >>> got = mnpo(jnp.array([3.0]), jnp.array([[1.0, 2.0]]), eta=0.5)
  >>> got.tolist()  # 3 - 1.5 - 1
  [0.25]
  """
  check(policy_margin_B=policy_margin_B, ref_margin_BK=ref_margin_BK)
  ref_margin_BK = jax.lax.stop_gradient(widen(ref_margin_BK))
  # As log-probabilities of a pair whose rejected response has 0.
  ref_BCK = jnp.stack([ref_margin_BK, jnp.zeros_like(ref_margin_BK)], axis=1)
  if weight is None:
    weight = uniform_weights(ref_BCK)
  else:
    check_weight(weight, ref_margin_BK=ref_margin_BK)
  mixed_BC = power_mean(ref_BCK, weight, p=0)
  return jnp.square(widen(policy_margin_B) - margin(mixed_BC) - 0.5 / eta)


@checked
def forward_kl_dpo(
  policy_logp_BC: ArrayLike, ref_logp_BC: ArrayLike, *, beta: ArrayLike = 0.1
) -> jax.Array:
  """DPO of the forward KL, whose exact reference is the arithmetic mixture.

      loss = -log sigmoid( beta * [ r(y_l) / p(y_l) - r(y_w) / p(y_w) ] )

  Args:
    policy_logp_BC: nats, summed over response tokens.
    ref_logp_BC: `power_mean(..., p=1)` of the references; no gradient.
    beta: inverse temperature.

  Returns:
    loss_B: nats, float32 or better.

  Source: derived from Aminian et al., arXiv:2502.01203, theorem on the
  forward KL; it is the forward-KL case of `f_dpo`.
  Numerics: exponents are clamped at 80; past it a response gets no gradient.

  >>> import jax.numpy as jnp
  >>> logp_BC = jnp.array([[-5.0, -9.0]])
  >>> bool(jnp.isclose(forward_kl_dpo(logp_BC, logp_BC)[0], jnp.log(2.0)))
  True
  """
  check(policy_logp_BC=policy_logp_BC, ref_logp_BC=ref_logp_BC)
  ref_logp_BC = jax.lax.stop_gradient(widen(ref_logp_BC))
  logratio_BC = widen(policy_logp_BC) - ref_logp_BC
  return f_dpo(logratio_BC, beta=beta, divergence="forward_kl")
