# SPDX-License-Identifier: Apache-2.0
"""Losses of the margin between the two responses of a pair.

Every function takes log-ratios (policy minus reference; nats, summed over
response tokens) and returns one value per pair; the caller reduces.  All of
them are functions of one number, the margin

    m = beta * scale * (r_w - r_l)

(`ipo` has its beta elsewhere), so `scale_B`, a factor per pair, may carry
MallowsPO's dispersion or any other per-prompt temperature.  Mean log-ratios
(per response token) may be given in place of sums.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mrpo_jax.losses.arguments import PairLoss, checked
from mrpo_jax.shapes import CHOSEN, REJECTED, check, widen

MAX_EXPONENT = 80.0  # exp of it is finite in float32, with room for factors


def margin(logratio_BC: ArrayLike) -> jax.Array:
  """Delta_B = r_w - r_l: how much more the policy moved towards the chosen.

  Args:
    logratio_BC: policy minus reference log-probability; nats.

  Returns:
    margin_B: nats, float32 or better.

  >>> import jax.numpy as jnp
  >>> margin(jnp.array([[2.0, -1.0]])).tolist()
  [3.0]
  """
  chosen_B, rejected_B = columns(logratio_BC)
  return chosen_B - rejected_B


def columns(logratio_BC: ArrayLike) -> tuple[jax.Array, jax.Array]:
  """(r_w, r_l), each [B], float32 or better.

  >>> import jax.numpy as jnp
  >>> [column_B.tolist() for column_B in columns(jnp.array([[2.0, -1.0]]))]
  [[2.0], [-1.0]]
  """
  check(logratio_BC=logratio_BC)
  logratio_BC = widen(logratio_BC)
  return logratio_BC[:, CHOSEN], logratio_BC[:, REJECTED]


def rescaled(
  value_B: ArrayLike, scale_B: ArrayLike, /, **pairs: ArrayLike
) -> jax.Array:
  """scale * value, where the scale is one number or one per pair.

  Args:
    value_B: of each pair.
    scale_B: one number or one per pair.
    **pairs: the array that the values were made of, by its name.

  >>> import jax.numpy as jnp
  >>> value_B = jnp.array([1.0, 2.0])
  >>> rescaled(value_B, jnp.array([3.0, 0.5]), value_B=value_B).tolist()
  [3.0, 1.0]
  """
  if jnp.ndim(scale_B):  # a plain number keeps the type of the value
    scale_B = widen(scale_B)
    check(**pairs, scale_B=scale_B)
  return scale_B * value_B


def _scaled_margin(logratio_BC, scale_B):
  return rescaled(margin(logratio_BC), scale_B, logratio_BC=logratio_BC)


@checked
def dpo(
  logratio_BC: ArrayLike,
  *,
  beta: ArrayLike = 0.1,
  scale_B: ArrayLike = 1.0,
  label_smoothing: ArrayLike = 0.0,
) -> jax.Array:
  """Direct preference optimization, with conservative label smoothing.

      m    = beta * scale * (r_w - r_l)
      loss = -(1 - eps) * log sigmoid(m) - eps * log sigmoid(-m)

  The logistic loss of a classifier that must prefer the chosen response.
  At policy = reference it is ln 2.

  Args:
    logratio_BC: policy minus reference log-probability; nats, summed over
      response tokens; index 0 chosen, 1 rejected.
    beta: inverse temperature, per nat; smaller lets the policy move further.
    scale_B: factor on the whole margin, per pair or one number.
    label_smoothing: eps, the assumed share of flipped labels, in [0, 1].

  Returns:
    loss_B: nats, float32 or better.

  Source: DPO, arXiv:2305.18290, equation 7; the smoothing is conservative DPO
  (E. Mitchell, "A note on DPO with noisy preferences", 2023).
  Numerics: log sigmoid as -softplus(-m); finite at +-1e4 nats.

  >>> import jax.numpy as jnp
  >>> bool(jnp.isclose(dpo(jnp.zeros((1, 2)))[0], jnp.log(2.0)))
  True
  """
  margin_B = beta * _scaled_margin(logratio_BC, scale_B)
  keep_B = -(1.0 - label_smoothing) * jax.nn.log_sigmoid(margin_B)
  return keep_B - label_smoothing * jax.nn.log_sigmoid(-margin_B)


@checked
def robust_dpo(
  logratio_BC: ArrayLike,
  *,
  beta: ArrayLike = 0.1,
  scale_B: ArrayLike = 1.0,
  label_smoothing: float = 0.1,
) -> jax.Array:
  """DPO whose expectation under flipped labels is DPO under the true ones.

      m    = beta * scale * (r_w - r_l)
      loss = [ -(1 - eps) * log sigmoid(m) + eps * log sigmoid(-m) ]
             / (1 - 2 eps)

  Unbiased where a share eps of the labels is flipped at random; it may be
  negative.  At policy = reference it is ln 2.

  Args:
    logratio_BC: policy minus reference log-probability; nats.
    beta: inverse temperature, per nat.
    scale_B: factor on the whole margin, per pair or one number.
    label_smoothing: eps, the share of flipped labels, in [0, 0.5).

  Returns:
    loss_B: nats, float32 or better.

  Raises:
    ValueError: label_smoothing outside [0, 0.5).

  Source: robust DPO, arXiv:2403.00409; the form of TRL 1.16.

  >>> import jax.numpy as jnp
  >>> bool(jnp.isclose(robust_dpo(jnp.zeros((1, 2)))[0], jnp.log(2.0)))
  True
  """
  if not 0 <= label_smoothing < 0.5:
    raise ValueError(
      f"robust_dpo: label_smoothing must be in [0, 0.5), got {label_smoothing}"
    )
  margin_B = beta * _scaled_margin(logratio_BC, scale_B)
  keep_B = -(1.0 - label_smoothing) * jax.nn.log_sigmoid(margin_B)
  flip_B = label_smoothing * jax.nn.log_sigmoid(-margin_B)
  return (keep_B + flip_B) / (1.0 - 2.0 * label_smoothing)


@checked
def hinge(
  logratio_BC: ArrayLike, *, beta: ArrayLike = 0.1, scale_B: ArrayLike = 1.0
) -> jax.Array:
  """Sequence likelihood calibration with a reference: a hinge on the margin.

      loss = max(0, 1 - beta * scale * (r_w - r_l))

  A pair that is right by 1 / beta nats teaches nothing more.  At policy =
  reference it is 1.

  Args:
    logratio_BC: policy minus reference log-probability; nats.
    beta: 1 / beta is the margin asked for, in nats.
    scale_B: factor on the whole margin, per pair or one number.

  Returns:
    loss_B: float32 or better; no gradient where the margin is reached.

  Source: RSO, arXiv:2309.06657 (hinge variant), after SLiC-HF,
  arXiv:2305.10425; the form of TRL 1.16.

  >>> import jax.numpy as jnp
  >>> hinge(jnp.array([[2.0, -1.0], [5.0, -8.0]]), beta=0.25).tolist()
  [0.25, 0.0]
  """
  return jax.nn.relu(1.0 - beta * _scaled_margin(logratio_BC, scale_B))


@checked
def ipo(
  logratio_BC: ArrayLike, *, beta: ArrayLike = 0.1, scale_B: ArrayLike = 1.0
) -> jax.Array:
  """Identity preference optimization: the margin shall be 1 / (2 beta).

      loss = ( scale * (r_w - r_l) - 1 / (2 beta) )^2

  It keeps pulling towards the reference where DPO's sigmoid saturates.  At
  policy = reference it is 1 / (4 beta^2).

  Args:
    logratio_BC: policy minus reference log-probability; nats, summed over
      response tokens as in the paper, or their means as in TRL and HALOs.
    beta: the paper's tau, per nat.
    scale_B: factor on the whole margin, per pair or one number.

  Returns:
    loss_B: nats squared, float32 or better.

  Source: IPO, arXiv:2310.12036, equation 17.

  >>> import jax.numpy as jnp
  >>> ipo(jnp.array([[2.0, -1.0]]), beta=0.25).tolist()
  [1.0]
  """
  return jnp.square(_scaled_margin(logratio_BC, scale_B) - 0.5 / beta)


@checked
def exo(
  logratio_BC: ArrayLike,
  *,
  beta: ArrayLike = 0.1,
  scale_B: ArrayLike = 1.0,
  epsilon: float = 1e-3,
) -> jax.Array:
  """Efficient exact optimization on pairs: a reverse KL to smoothed labels.

      q    = sigmoid(beta * scale * (r_w - r_l))
      loss = q log(q / (1 - eps)) + (1 - q) log((1 - q) / eps)

  Zero, with zero gradient, where q = 1 - eps.

  Args:
    logratio_BC: policy minus reference log-probability; nats.
    beta: inverse temperature, per nat.
    scale_B: factor on the whole margin, per pair or one number.
    epsilon: label smoothing, in (0, 1).

  Returns:
    loss_B: nats, float32 or better.

  Raises:
    ValueError: epsilon outside (0, 1): its logarithms would be infinite.

  Source: EXO, arXiv:2402.00856, pair-wise form; as in TRL 1.16.

  >>> import jax.numpy as jnp
  >>> logratio_BC = jnp.array([[jnp.log(3.0), 0.0]])  # q = 3 / 4
  >>> abs(float(exo(logratio_BC, beta=1.0, epsilon=0.25)[0])) < 1e-6
  True
  """
  if not 0 < epsilon < 1:
    raise ValueError(f"exo: epsilon must be in (0, 1), got {epsilon}")
  margin_B = beta * _scaled_margin(logratio_BC, scale_B)
  log_right_B = jax.nn.log_sigmoid(margin_B)
  log_wrong_B = jax.nn.log_sigmoid(-margin_B)
  right_B = jnp.exp(log_right_B) * (log_right_B - jnp.log1p(-epsilon))
  return right_B + jnp.exp(log_wrong_B) * (log_wrong_B - jnp.log(epsilon))


@checked
def discopop(
  logratio_BC: ArrayLike,
  *,
  beta: ArrayLike = 0.1,
  scale_B: ArrayLike = 1.0,
  temperature: ArrayLike = 0.05,
) -> jax.Array:
  """Discovered preference optimization: logistic below, exponential above.

      m    = beta * scale * (r_w - r_l),  t = sigmoid(m / temperature)
      loss = (1 - t) * -log sigmoid(m) + t * exp(-m)

  At policy = reference it is (ln 2 + 1) / 2.

  Args:
    logratio_BC: policy minus reference log-probability; nats.
    beta: inverse temperature of the margin, per nat.
    scale_B: factor on the whole margin, per pair or one number.
    temperature: of the switch between the two losses, positive.

  Returns:
    loss_B: float32 or better.

  Source: DiscoPOP, arXiv:2406.08414 (log-ratio modulated loss).
  Numerics: t * exp(-m) as exp(log sigmoid(m / temperature) - m), its exponent
  at most 80, so that it is finite at every margin.

  >>> import jax.numpy as jnp
  >>> got = discopop(jnp.zeros((1, 2)))[0]
  >>> bool(jnp.isclose(got, (jnp.log(2.0) + 1.0) / 2.0))
  True
  """
  margin_B = beta * _scaled_margin(logratio_BC, scale_B)
  log_switch_B = jax.nn.log_sigmoid(margin_B / temperature)
  exponent_B = jnp.minimum(log_switch_B - margin_B, MAX_EXPONENT)
  logistic_B = -jax.nn.log_sigmoid(margin_B)
  return -jnp.expm1(log_switch_B) * logistic_B + jnp.exp(exponent_B)


@checked
def focal_dpo(
  logratio_BC: ArrayLike,
  *,
  beta: ArrayLike = 0.1,
  scale_B: ArrayLike = 1.0,
  gamma: ArrayLike = 0.5,
  detach_weight: bool = True,
) -> jax.Array:
  """DPO that looks away from pairs which the policy still ranks wrongly.

      p    = sigmoid(beta * scale * (r_w - r_l))
      loss = -p^gamma * log p

  The reverse of the focal loss of vision, whose factor is (1 - p)^gamma.
  gamma = 0 is DPO.

  Args:
    logratio_BC: policy minus reference log-probability; nats.
    beta: inverse temperature, per nat.
    scale_B: factor on the whole margin, per pair or one number.
    gamma: exponent, >= 0.
    detach_weight: True gives p^gamma no gradient; with it the gradient
      changes sign where log p < -1 / gamma.

  Returns:
    loss_B: nats, float32 or better.

  Source: FocalPO, arXiv:2501.06645, by a secondary account: the default of
  gamma and whether the paper detaches the weight are unverified.

  >>> import jax.numpy as jnp
  >>> got = focal_dpo(jnp.zeros((1, 2)), gamma=1.0)[0]
  >>> bool(jnp.isclose(got, 0.5 * jnp.log(2.0)))
  True
  """
  margin_B = beta * _scaled_margin(logratio_BC, scale_B)
  log_right_B = jax.nn.log_sigmoid(margin_B)
  weight_B = jnp.exp(gamma * log_right_B)
  if detach_weight:
    weight_B = jax.lax.stop_gradient(weight_B)
  return -weight_B * log_right_B


@checked
def bpo(
  logratio_BC: ArrayLike,
  *,
  beta: ArrayLike = 0.1,
  scale_B: ArrayLike = 1.0,
  power: float = 1.0,
) -> jax.Array:
  """Bregman preference optimization by scaled Basu's power divergence.

      m    = beta * scale * (r_w - r_l),  R = exp(-m)
      loss = (R^(power + 1) - 1) / (4 (power + 1)) - (R^-power - 1) / (4 power)

  Matches the ratio R of the policy to that of the data, as DPO does by another
  divergence: the minimum over all policies is DPO's.  The slope in m is
  -(R^(power + 1) + R^-power) / 4, which is DPO's -1/2 at policy = reference,
  where the loss is 0.  With power > 0 a pair that is ranked right pulls ever
  harder, and with power >= 0 the loss has no lower bound.

  Args:
    logratio_BC: policy minus reference log-probability; nats.
    beta: inverse temperature of the margin, per nat.
    scale_B: factor on the whole margin, per pair or one number.
    power: the paper's lambda, above -1; 1 is the squared distance of the
      ratios (LSIF), 0 the limit (KLIEP), -1/2 the exponential loss of m / 2.

  Returns:
    loss_B: float32 or better; it may be negative.

  Raises:
    ValueError: power -1 or less.

  Source: BPO, arXiv:2505.19601, its SBA with s = 4, up to a constant; not the
  balanced preference optimization of the same letters.  The default of power
  is unverified, the authors' code not released.
  Numerics: exponents are clamped at 80; past it their term has no gradient.

  >>> import jax.numpy as jnp
  >>> logratio_BC = jnp.array([[0.0, jnp.log(2.0)]])  # R = 2: 3/8 + 1/8
  >>> round(float(bpo(logratio_BC, beta=1.0)[0]), 6)
  0.5
  """
  if not power > -1:
    raise ValueError(f"bpo: power must be above -1, got {power}")
  margin_B = beta * _scaled_margin(logratio_BC, scale_B)

  def term(exponent):  # (exp(exponent * m) - 1) / exponent
    if not exponent:
      return margin_B
    return jnp.expm1(jnp.minimum(exponent * margin_B, MAX_EXPONENT)) / exponent

  return -0.25 * (term(-1.0 - power) + term(power))


@checked
def combine(
  losses: Iterable[PairLoss], weights: Iterable[ArrayLike]
) -> PairLoss:
  """A weighted sum of pair losses, itself a pair loss.

      loss = sum_i  weight_i * loss_i

  Mixed preference optimization (arXiv:2411.10442) is 0.8 `dpo` + 0.2 `bco`
  + 1.0 `nll`; the likelihood is added by the caller.

  Args:
    losses: pair losses, each called as `loss(logratio_BC, beta=beta)`.
    weights: one number for each.

  Returns:
    f(logratio_BC, *, beta=0.1) -> loss_B.

  Raises:
    ValueError: none, or not one weight for each loss.

  >>> import jax.numpy as jnp
  >>> twice = combine([dpo, dpo], [1.5, 0.5])
  >>> bool(jnp.isclose(twice(jnp.zeros((1, 2)))[0], 2 * jnp.log(2.0)))
  True
  """
  losses, weights = tuple(losses), tuple(weights)
  if not losses or len(losses) != len(weights):
    raise ValueError(
      f"combine wants one weight for each loss, got {len(losses)} losses and "
      f"{len(weights)} weights"
    )

  @checked
  def combined(logratio_BC: ArrayLike, *, beta: ArrayLike = 0.1) -> jax.Array:
    pairs = zip(losses, weights, strict=True)
    return sum(weight * loss(logratio_BC, beta=beta) for loss, weight in pairs)

  return combined
