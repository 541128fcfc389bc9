# SPDX-License-Identifier: Apache-2.0
"""Losses of each response's own reward, not of their difference alone.

The reward is beta * r, with r the response's log-ratio (policy minus
reference; nats, summed over response tokens).  An equal shift of both
log-ratios changes these losses, unlike those of `pair`.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mrpo_jax.losses.arguments import checked
from mrpo_jax.losses.pair import MAX_EXPONENT, columns
from mrpo_jax.losses.regression import sppo_hard
from mrpo_jax.losses.related import kto_unpaired
from mrpo_jax.shapes import check, widen


@checked
def nca(logratio_BC: ArrayLike, *, beta: ArrayLike = 0.1) -> jax.Array:
  """Noise contrastive alignment on pairs: absolute rewards, pulled to 0.

      loss = -log sigmoid(beta r_w) - 1/2 log sigmoid(-beta r_w)
             - 1/2 log sigmoid(-beta r_l)

  At policy = reference it is 2 ln 2.

  Args:
    logratio_BC: policy minus reference log-probability; nats.
    beta: inverse temperature, per nat; the authors use 0.01.

  Returns:
    loss_B: nats, float32 or better.

  Source: NCA, arXiv:2402.05369; the form of TRL 1.16.

  >>> import jax.numpy as jnp
  >>> bool(jnp.isclose(nca(jnp.zeros((1, 2)))[0], 2 * jnp.log(2.0)))
  True
  """
  chosen_B, rejected_B = columns(logratio_BC)
  pull_B = jax.nn.log_sigmoid(-beta * chosen_B)
  pull_B += jax.nn.log_sigmoid(-beta * rejected_B)
  return -jax.nn.log_sigmoid(beta * chosen_B) - 0.5 * pull_B


@checked
def bco(
  logratio_BC: ArrayLike, *, beta: ArrayLike = 0.1, shift: ArrayLike = 0.0
) -> jax.Array:
  """Binary classifier optimization: chosen is good, rejected is bad.

      loss = -log sigmoid(beta r_w - shift) - log sigmoid(-(beta r_l - shift))

  At policy = reference and shift 0 it is 2 ln 2.

  Args:
    logratio_BC: policy minus reference log-probability; nats.
    beta: inverse temperature, per nat; the authors use 0.01.
    shift: subtracted from both rewards, no gradient; the paper's delta is a
      running mean of the rewards, TRL 1.16 uses 0.

  Returns:
    loss_B: nats, float32 or better.

  Source: BCO, arXiv:2404.04656.

  >>> import jax.numpy as jnp
  >>> bool(jnp.isclose(bco(jnp.zeros((1, 2)))[0], 2 * jnp.log(2.0)))
  True
  """
  chosen_B, rejected_B = columns(logratio_BC)
  shift = jax.lax.stop_gradient(shift)
  return -(
    jax.nn.log_sigmoid(beta * chosen_B - shift)
    + jax.nn.log_sigmoid(shift - beta * rejected_B)
  )


@checked
def apo_zero(logratio_BC: ArrayLike, *, beta: ArrayLike = 0.1) -> jax.Array:
  """Anchored preference optimization, zero: chosen up, rejected down.

      loss = 1 - sigmoid(beta r_w) + sigmoid(beta r_l)

  For chosen responses better than the model's own.  At policy = reference it
  is 1.

  Args:
    logratio_BC: policy minus reference log-probability; nats.
    beta: inverse temperature, per nat.

  Returns:
    loss_B: in (0, 2), float32 or better.

  Source: APO, arXiv:2408.06266; the form of TRL 1.16.

  >>> import jax.numpy as jnp
  >>> apo_zero(jnp.zeros((1, 2))).tolist()
  [1.0]
  """
  chosen_B, rejected_B = columns(logratio_BC)
  # 1 - sigmoid(x) = sigmoid(-x), without the cancellation.
  return jax.nn.sigmoid(-beta * chosen_B) + jax.nn.sigmoid(beta * rejected_B)


@checked
def apo_down(logratio_BC: ArrayLike, *, beta: ArrayLike = 0.1) -> jax.Array:
  """Anchored preference optimization, down: both down, rejected further.

      loss = sigmoid(beta r_w) + 1 - sigmoid(beta (r_w - r_l))

  For chosen responses worse than the model's own.  At policy = reference it
  is 1.

  Args:
    logratio_BC: policy minus reference log-probability; nats.
    beta: inverse temperature, per nat.

  Returns:
    loss_B: in (0, 2), float32 or better.

  Source: APO, arXiv:2408.06266; the form of TRL 1.16.

  >>> import jax.numpy as jnp
  >>> apo_down(jnp.zeros((1, 2))).tolist()
  [1.0]
  """
  chosen_B, rejected_B = columns(logratio_BC)
  wrong_B = jax.nn.sigmoid(-beta * (chosen_B - rejected_B))
  return jax.nn.sigmoid(beta * chosen_B) + wrong_B


@checked
def kto(
  logratio_BC: ArrayLike,
  *,
  beta: ArrayLike = 0.1,
  kl_shift: ArrayLike = 0.0,
  desirable_weight: ArrayLike = 1.0,
  undesirable_weight: ArrayLike = 1.0,
) -> jax.Array:
  """Kahneman-Tversky optimization, each response of a pair on its own.

      chosen:    weight_d * (1 - sigmoid(beta (r_w - z)))
      rejected:  weight_u * (1 - sigmoid(beta (z - r_l)))

  Args:
    logratio_BC: policy minus reference log-probability; nats.
    beta: inverse temperature, per nat.
    kl_shift: z, an estimate of KL(policy || reference) from mismatched
      prompts and responses; nats, a number or an array that broadcasts to
      [B], clamped at 0, no gradient.
    desirable_weight: on good responses.
    undesirable_weight: on bad ones.

  Returns:
    loss_BC: one value per response, float32 or better.

  Source: KTO, arXiv:2402.01306, equation 8.

  >>> import jax.numpy as jnp
  >>> kto(jnp.zeros((1, 2)), undesirable_weight=2.0).tolist()
  [[0.5, 1.0]]
  """
  both_B = columns(logratio_BC)
  weights = dict(
    beta=beta,
    kl_shift=kl_shift,
    desirable_weight=desirable_weight,
    undesirable_weight=undesirable_weight,
  )
  good = jnp.ones(both_B[0].shape, bool)
  return jnp.stack(
    [
      kto_unpaired(column_B, is_good_B, **weights)
      for column_B, is_good_B in zip(both_B, (good, ~good), strict=True)
    ],
    axis=-1,
  )


DIVERGENCES = ("reverse_kl", "forward_kl", "js", "alpha")
DIVERGENCES += ("chi_squared_kl", "log_squared")


@checked
def f_dpo(
  logratio_BC: ArrayLike,
  *,
  beta: ArrayLike = 0.1,
  divergence: str = "reverse_kl",
  alpha: float = 0.5,
) -> jax.Array:
  """DPO under another f-divergence to the reference.

      loss = -log sigmoid(beta * (h(r_w) - h(r_l)))

      reverse_kl:  h(r) = r                                    (this is DPO)
      forward_kl:  h(r) = 1 - exp(-r)
      js:          h(r) = ln 2 + log sigmoid(r)
      alpha:       h(r) = (exp((alpha - 1) r) - 1) / (alpha - 1)
      chi_squared_kl:  h(r) = r + exp(r) - 1             (this is chi-PO)
      log_squared:     h(r) = r exp(-r)                  (this is SquaredPO)

  h is f'(exp(r)) up to a constant; f is (t - 1)^2 / 2 + t log t of chi-PO and
  (log t)^2 / 2 of SquaredPO.  The latter is not convex: h falls again above
  r = 1, where a response is e times as likely as under the reference.

  Args:
    logratio_BC: policy minus reference log-probability; nats.
    beta: inverse temperature.
    divergence: one of the names above, static.
    alpha: of the alpha divergence, in TRL's sense: 1 is the reverse KL, 0 the
      forward; the authors' code counts 1 - alpha.

  Returns:
    loss_B: nats, float32 or better.

  Raises:
    ValueError: another divergence.

  Source: f-DPO, arXiv:2309.16240, table 1; chi-PO, arXiv:2407.13399, algorithm
  1 without its clip of the margin at 2 R_max, which asks for a bound on rewards
  that nobody knows; SquaredPO, arXiv:2602.06788.
  Numerics: exponents are clamped at 80; past it a response gets no gradient.

  >>> import jax.numpy as jnp
  >>> logratio_BC = jnp.array([[1.0, -2.0]])
  >>> float(f_dpo(logratio_BC, divergence="alpha", alpha=1.0)[0]) == float(
  ...   f_dpo(logratio_BC)[0]
  ... )
  True
  """
  if divergence not in DIVERGENCES:
    raise ValueError(
      f"unknown divergence {divergence!r}; known: {', '.join(DIVERGENCES)}"
    )
  check(logratio_BC=logratio_BC)
  reward_BC = widen(logratio_BC)
  power = {"forward_kl": -1.0, "alpha": alpha - 1.0}.get(divergence, 0.0)
  if divergence == "js":
    reward_BC = jax.nn.log_sigmoid(reward_BC)  # ln 2 goes in the difference
  elif divergence == "chi_squared_kl":
    reward_BC = jnp.minimum(reward_BC, MAX_EXPONENT)
    reward_BC += jnp.expm1(reward_BC)
  elif divergence == "log_squared":
    reward_BC = jnp.maximum(reward_BC, -MAX_EXPONENT)
    reward_BC *= jnp.exp(-reward_BC)
  elif power:
    exponent_BC = jnp.minimum(power * reward_BC, MAX_EXPONENT)
    reward_BC = jnp.expm1(exponent_BC) / power
  chosen_B, rejected_B = columns(reward_BC)
  return -jax.nn.log_sigmoid(beta * (chosen_B - rejected_B))


@checked
def bdpo(
  logratio_BC: ArrayLike, *, beta: ArrayLike = 0.1, mixing: ArrayLike = 0.5
) -> jax.Array:
  """Bounded DPO: a rejected response counts as mixed with the reference.

      loss = -log sigmoid( beta * (r_w - log( mixing exp(r_l) + 1 - mixing )) )

  In the place of p(y_l) stands mixing p(y_l) + (1 - mixing) ref(y_l), which
  does not vanish: where the loss is at most ln 2, its value at policy =
  reference, the chosen response has kept 1 - mixing of its probability.
  mixing = 1 is DPO.

  Args:
    logratio_BC: policy minus reference log-probability; nats.
    beta: inverse temperature, per nat.
    mixing: lambda, the policy's share of the mixture, in [0, 1]; at 0 the
      rejected response teaches nothing.

  Returns:
    loss_B: nats, float32 or better.

  Source: BDPO, arXiv:2506.12725, by the account of one of its authors; the
  paper's best mixing.

  >>> import jax.numpy as jnp
  >>> gone = bdpo(jnp.array([[0.0, -1e4]]), beta=1.0)[0]  # 1 / (1 + 1/2)
  >>> bool(jnp.isclose(gone, jnp.log(1.5)))
  True
  """
  chosen_B, rejected_B = columns(logratio_BC)
  kept_B = jnp.log(mixing) + rejected_B
  mixed_B = jnp.logaddexp(kept_B, jnp.log1p(-mixing))
  return -jax.nn.log_sigmoid(beta * (chosen_B - mixed_B))


@checked
def minor_dpo(logratio_BC: ArrayLike, *, beta: ArrayLike = 0.1) -> jax.Array:
  """DPO that stops pushing a rejected response below the reference.

      loss = -log sigmoid(beta * (r_w - max(0, r_l)))

  Args:
    logratio_BC: policy minus reference log-probability; nats.
    beta: inverse temperature, per nat.

  Returns:
    loss_B: nats, float32 or better.  At r_l = 0, where training starts, the
    rejected response gets no gradient (the convention of relu).

  Source: MinorDPO, arXiv:2408.09834, by a secondary account: unverified.

  >>> import jax.numpy as jnp
  >>> below = minor_dpo(jnp.array([[1.0, -5.0]]))
  >>> float(below[0]) == float(minor_dpo(jnp.array([[1.0, 0.0]]))[0])
  True
  """
  chosen_B, rejected_B = columns(logratio_BC)
  return -jax.nn.log_sigmoid(beta * (chosen_B - jax.nn.relu(rejected_B)))


@checked
def cal_dpo(
  logratio_BC: ArrayLike,
  *,
  beta: ArrayLike = 0.1,
  square_weight: ArrayLike = 1.0,
) -> jax.Array:
  """Calibrated DPO: the rewards shall also be +-1 / (2 beta) in themselves.

      loss = -log sigmoid(r_w - r_l)
             + weight * [ (r_w - 1 / (2 beta))^2 + (r_l + 1 / (2 beta))^2 ]

  There is no beta inside the sigmoid.

  Args:
    logratio_BC: policy minus reference log-probability; nats.
    beta: per nat, of the square terms; the authors use 0.001 to 0.002.
    square_weight: 1 as in the paper, 0.5 as in the authors' code.

  Returns:
    loss_B: float32 or better.

  Source: Cal-DPO, arXiv:2412.14516.

  >>> import jax.numpy as jnp
  >>> got = cal_dpo(jnp.array([[1.0, -1.0]]), beta=0.5)[0]
  >>> bool(jnp.isclose(got, jnp.log1p(jnp.exp(-2.0))))
  True
  """
  chosen_B, rejected_B = columns(logratio_BC)
  square_B = sppo_hard(logratio_BC, beta=beta)
  return square_weight * square_B - jax.nn.log_sigmoid(chosen_B - rejected_B)


@checked
def r_dpo(
  logratio_BC: ArrayLike,
  length_BC: ArrayLike,
  *,
  beta: ArrayLike = 0.1,
  alpha: ArrayLike = 0.05,
) -> jax.Array:
  """DPO with a reward for being short taken out of the margin.

      loss = -log sigmoid(beta (r_w - r_l) + alpha (|y_w| - |y_l|))

  The sign follows from the objective r - alpha |y|; some papers print the
  other one.

  Args:
    logratio_BC: policy minus reference log-probability; nats.
    length_BC: response tokens.
    beta: inverse temperature, per nat.
    alpha: per token, after beta.

  Returns:
    loss_B: nats, float32 or better.

  Source: R-DPO, arXiv:2403.19159; the sign in its code is unverified.

  >>> import jax.numpy as jnp
  >>> longer_BC = jnp.array([[30, 10]])
  >>> got = r_dpo(jnp.zeros((1, 2)), longer_BC, alpha=0.05)[0]
  >>> bool(jnp.isclose(got, jnp.log1p(jnp.exp(-1.0))))
  True
  """
  check(logratio_BC=logratio_BC, length_BC=length_BC)
  chosen_B, rejected_B = columns(logratio_BC)
  longer_B, shorter_B = columns(length_BC)
  excess_B = jax.lax.stop_gradient(longer_B - shorter_B)
  margin_B = beta * (chosen_B - rejected_B) + alpha * excess_B
  return -jax.nn.log_sigmoid(margin_B)


@checked
def dpop(
  logratio_BC: ArrayLike, *, beta: ArrayLike = 0.1, penalty: ArrayLike = 5.0
) -> jax.Array:
  """DPO-positive: a fine where the chosen response gets less likely.

      loss = -log sigmoid(beta * (r_w - r_l - penalty * max(0, -r_w)))

  Args:
    logratio_BC: policy minus reference log-probability; nats.
    beta: inverse temperature, per nat.
    penalty: lambda; the authors use 5 to 50.

  Returns:
    loss_B: nats, float32 or better.

  Source: DPOP (Smaug), arXiv:2402.13228, equation 3.

  >>> import jax.numpy as jnp
  >>> got = dpop(jnp.array([[-1.0, -7.0]]), beta=1.0)[0]  # 6 - 5 * 1
  >>> bool(jnp.isclose(got, jnp.log1p(jnp.exp(-1.0))))
  True
  """
  chosen_B, rejected_B = columns(logratio_BC)
  fine_B = penalty * jax.nn.relu(-chosen_B)
  return -jax.nn.log_sigmoid(beta * (chosen_B - rejected_B - fine_B))
