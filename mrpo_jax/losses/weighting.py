# SPDX-License-Identifier: Apache-2.0
"""Weights of references: how much each is trusted, rules with a memory."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mrpo_jax.losses.arguments import Weights, checked
from mrpo_jax.shapes import CHOSEN, REJECTED, check, widen


def check_weight(weight: Weights, **references: ArrayLike) -> jax.Array:
  """A weight as an array, [K] or [B, K] as the references are.

  Args:
    weight: numbers, or an array.
    **references: the array that has the references, by its name.

  Raises:
    ValueError: another shape; it names `weight` and the axis.
  """
  weight = jnp.asarray(weight)
  axes = "K" if weight.ndim <= 1 else "BK"
  check(**references, **{f"weight_{axes}": weight})
  return weight


def normalised_weight(weight: Weights, ref_logp_BCK: ArrayLike) -> jax.Array:
  """[K] or [B, K] non-negative weights as weight_BK that sum to 1 over K.

  Raises:
    ValueError: [K] weights whose values are known are negative, not finite, or
      all 0.
  """
  weight = widen(check_weight(weight, ref_logp_BCK=ref_logp_BCK))
  weight = jax.lax.stop_gradient(weight)
  if weight.ndim == 1:
    _refuse_weights(weight)
    weight = weight[None, :]
  weight_BK = weight / jnp.sum(weight, axis=-1, keepdims=True)
  pairs, _, references = ref_logp_BCK.shape
  return jnp.broadcast_to(weight_BK, (pairs, references))


def _refuse_weights(weight_K):
  """A ValueError for known weights that no share can be made of."""
  if isinstance(weight_K, jax.core.Tracer):
    return
  known = weight_K.tolist()
  if min(known) < 0 or not 0 < sum(known) < math.inf:
    raise ValueError(
      "weights must be from 0 up, finite, and one of them positive, got "
      f"{known}"
    )


@checked
def uniform_weights(ref_logp_BCK: ArrayLike) -> jax.Array:
  """weight_BK = 1 / K: reads no label, so it is the same in evaluation.

  Args:
    ref_logp_BCK: only its shape counts.

  Returns:
    weight_BK: sums to 1 over K.

  >>> import jax.numpy as jnp
  >>> uniform_weights(jnp.zeros((1, 2, 4))).tolist()
  [[0.25, 0.25, 0.25, 0.25]]
  """
  check(ref_logp_BCK=ref_logp_BCK)
  pairs, _, references = ref_logp_BCK.shape
  dtype = widen(ref_logp_BCK).dtype
  return jnp.full((pairs, references), 1.0 / references, dtype)


@checked
def adaptive_weights(ref_logp_BCK: ArrayLike) -> jax.Array:
  """Each reference's share of the absolute margins, per pair (ARWC).

      d_k = | log r_k(y_w) - log r_k(y_l) |
      w_k = d_k / sum_j d_j

  It reads which response is the chosen one only through an absolute value, but
  it is computed from the labelled pair: there is no such weight for a single
  response.

  Args:
    ref_logp_BCK: nats, summed over response tokens, not clipped.

  Returns:
    weight_BK: sums to 1 over K, no gradient; uniform where every d_k is 0.

  Source: released code of MRPO (arXiv:2405.16388), without its 1e-6 in the
  denominator.

  >>> import jax.numpy as jnp
  >>> logp = jnp.array([[[-1.0, -2.0], [-4.0, -3.0]]])
  >>> adaptive_weights(logp).tolist()
  [[0.75, 0.25]]
  """
  check(ref_logp_BCK=ref_logp_BCK)
  ref_logp_BCK = jax.lax.stop_gradient(widen(ref_logp_BCK))
  return _shares(_margin_sizes(ref_logp_BCK))


def _margin_sizes(score_BCK):
  return jnp.abs(score_BCK[:, CHOSEN] - score_BCK[:, REJECTED])


def _shares(amount):
  """Each entry's share of the sum over the last axis; uniform for all zeros."""
  total = jnp.sum(amount, axis=-1, keepdims=True)
  uniform = jnp.full_like(amount, 1.0 / amount.shape[-1])
  return jnp.where(
    total > 0, amount / jnp.where(total > 0, total, 1.0), uniform
  )


@checked
def discrimination_weights(score_NCK: ArrayLike) -> jax.Array:
  """Each reference's share of the absolute margins over a data set (VDW).

      w_k = sum_n |score_k(y_w) - score_k(y_l)|  /  the same over all k

  The scale is the caller's: a reference with ten times the log-ratios gets
  ten times the weight, so compare means per token, or z-scores.

  Args:
    score_NCK: scores of held-out pairs under each reference, sums or means.

  Returns:
    weight_K: sums to 1, no gradient; uniform where every margin is 0.

  Source: arXiv:2512.10040, validation discrimination weighting.

  >>> import jax.numpy as jnp
  >>> score_NCK = jnp.array([[[-1.0, -2.0], [-4.0, -3.0]]])
  >>> discrimination_weights(score_NCK).tolist()
  [0.75, 0.25]
  """
  check(score_NCK=score_NCK)
  score_NCK = jax.lax.stop_gradient(widen(score_NCK))
  return _shares(jnp.sum(_margin_sizes(score_NCK), axis=0))


@checked
def accuracy_weights(score_NCK: ArrayLike) -> jax.Array:
  """Each reference's share of the correctly ranked pairs (VAW).

      n_k = number of pairs with score_k(y_w) > score_k(y_l)
      w_k = n_k / sum_j n_j

  Args:
    score_NCK: scores of held-out pairs under each reference, sums or means.

  Returns:
    weight_K: sums to 1, no gradient; uniform where no pair is ranked right.

  Source: arXiv:2512.10040, validation accuracy weighting.

  >>> import jax.numpy as jnp
  >>> score_NCK = jnp.array([[[-1.0, -4.0], [-2.0, -3.0]]])
  >>> accuracy_weights(score_NCK).tolist()
  [1.0, 0.0]
  """
  check(score_NCK=score_NCK)
  score_NCK = jax.lax.stop_gradient(widen(score_NCK))
  right_NK = score_NCK[:, CHOSEN] > score_NCK[:, REJECTED]
  return _shares(jnp.sum(right_NK, axis=0).astype(score_NCK.dtype))


class WeightRule(NamedTuple):
  """Weights with a memory, in the manner of an optax transformation.

  `init(K) -> state`; `weights(state, ref_logp_BCK) -> weight`, [K] or [B, K];
  `update(state, ref_logp_BCK, feedback=None) -> state` after the step;
  `measure(state, score_NCK) -> state` before the first step, where a rule
  looks at held-out pairs, else None.  All are pure; a state is a tree of
  arrays.

  >>> import jax.numpy as jnp
  >>> rule = sliding_window(window=2)
  >>> rule.init(3).shape
  (2, 3)
  """

  init: Callable
  weights: Callable
  update: Callable
  measure: Callable | None = None


def stateless(weigh: Callable[[jax.Array], jax.Array]) -> WeightRule:
  """The rule that always weighs by `weigh(ref_logp_BCK)`.

  >>> import jax.numpy as jnp
  >>> rule = stateless(uniform_weights)
  >>> rule.weights(rule.init(2), jnp.zeros((1, 2, 2))).tolist()
  [[0.5, 0.5]]
  """
  return WeightRule(
    init=lambda K: (),
    weights=lambda state, ref_logp_BCK: weigh(ref_logp_BCK),
    update=lambda state, ref_logp_BCK, feedback=None: state,
  )


def by_pair() -> WeightRule:
  """The rule that weighs as each pair itself says.

  Its state is what the batch gives, weight_BK, or [K] for all pairs; it is
  never kept from step to step.  A pair without a weight, of which a batch that
  is not full has some, gets the same of all.

  >>> import jax.numpy as jnp
  >>> weight_BK = jnp.array([[3.0, 1.0], [0.0, 0.0]])
  >>> by_pair().weights(weight_BK, jnp.zeros((2, 2, 2))).tolist()
  [[0.75, 0.25], [0.5, 0.5]]
  """

  def weights(state, ref_logp_BCK):
    if isinstance(state, tuple):
      raise ValueError("weights 'by_pair' are of the batch; give weight_BK")
    weight = check_weight(state, ref_logp_BCK=ref_logp_BCK)
    return _shares(jax.lax.stop_gradient(widen(weight)))

  return WeightRule(
    init=lambda K: (),
    weights=weights,
    update=lambda state, ref_logp_BCK, feedback=None: state,
  )


@checked
def measured(weigh: Callable[[jax.Array], jax.Array]) -> WeightRule:
  """The rule that keeps what `weigh(score_NCK)` says of held-out pairs.

  Args:
    weigh: score_NCK -> weight_K, `discrimination_weights` for one.

  Returns:
    WeightRule with weight_K; uniform until it is measured.

  >>> import jax.numpy as jnp
  >>> rule = measured(accuracy_weights)
  >>> score_NCK = jnp.array([[[-1.0, -4.0], [-2.0, -3.0]]])
  >>> state = rule.measure(rule.init(2), score_NCK)
  >>> rule.weights(state, score_NCK).tolist()
  [1.0, 0.0]
  """

  def weights(state, ref_logp_BCK):
    check(ref_logp_BCK=ref_logp_BCK, state_K=state)
    return state

  def measure(state, score_NCK):
    check(score_NCK=score_NCK, state_K=state)
    return weigh(score_NCK).astype(state.dtype)

  return WeightRule(
    init=lambda K: jnp.full(K, 1.0 / max(K, 1)),
    weights=weights,
    update=lambda state, ref_logp_BCK, feedback=None: state,
    measure=measure,
  )


@checked
def scale_factors(ref_logp_NCK: ArrayLike) -> jax.Array:
  """Factors that give every reference's margins the spread of the base's.

      s_k = sqrt( mean_n Delta_k(n)^2 ),   Delta_k = log r_k(y_w) - log r_k(y_l)
      factor_k = s_0 / s_k

  A z-score of Delta_k whose centre is 0: exchanging the responses of a pair
  flips the sign of Delta, so the factors read no label.  The unit is the
  base's, so its factor is 1 and beta keeps its meaning.

  Args:
    ref_logp_NCK: nats, summed over response tokens, of a whole data set.

  Returns:
    factor_K: no gradient; 1 where a spread is 0.

  >>> import jax.numpy as jnp
  >>> ref_logp_NCK = jnp.array([[[-1.0, -10.0], [-3.0, -30.0]]])
  >>> [round(x, 4) for x in scale_factors(ref_logp_NCK).tolist()]
  [1.0, 0.1]
  """
  check(ref_logp_NCK=ref_logp_NCK)
  ref_logp_NCK = jax.lax.stop_gradient(widen(ref_logp_NCK))
  margin_NK = ref_logp_NCK[:, CHOSEN] - ref_logp_NCK[:, REJECTED]
  spread_K = jnp.sqrt(jnp.mean(margin_NK**2, axis=0))
  usable_K = (spread_K > 0) & (spread_K[0] > 0)
  return jnp.where(
    usable_K, spread_K[0] / jnp.where(usable_K, spread_K, 1.0), 1.0
  )


@checked
def sliding_window(window: int = 1) -> WeightRule:
  """Weights from the margins of the last batches; the pair at hand is not read.

      w_k = sum over the window's pairs of |margin_k|  /  the same over all k

  Args:
    window: how many batches to remember, static.

  Returns:
    WeightRule with weight_K; uniform before the first batch.

  Raises:
    ValueError: window below 1.

  Source: arXiv:2512.10040, sliding-window weighting.  Its code gives pair i
  the share of pair i of the batch before; here the window is pooled.

  >>> import jax.numpy as jnp
  >>> rule = sliding_window()
  >>> ref_logp_BCK = jnp.array([[[-1.0, -2.0], [-4.0, -3.0]]])
  >>> state = rule.update(rule.init(2), ref_logp_BCK)
  >>> rule.weights(state, ref_logp_BCK).tolist()
  [0.75, 0.25]
  """

  def weights(state, ref_logp_BCK):
    check(ref_logp_BCK=ref_logp_BCK, state_WK=state)
    return _shares(jnp.sum(state, axis=0))

  def update(state, ref_logp_BCK, feedback=None):
    check(ref_logp_BCK=ref_logp_BCK, state_WK=state)
    sizes_BK = _margin_sizes(jax.lax.stop_gradient(widen(ref_logp_BCK)))
    newest_1K = jnp.sum(sizes_BK, axis=0, keepdims=True).astype(state.dtype)
    return jnp.concatenate([state[1:], newest_1K])

  return WeightRule(lambda K: jnp.zeros((window, K)), weights, update)


class Arms(NamedTuple):
  """State of `thompson`."""

  key: jax.Array
  won_K: jax.Array  # Beta posterior of each reference
  lost_K: jax.Array
  arm: jax.Array  # the reference in use


@checked
def thompson(key: jax.Array, prior: float = 5.0) -> WeightRule:
  """Thompson sampling: one reference at a time, by what it was good for.

      theta_k ~ Beta(won_k, lost_k),   w = one-hot at argmax_k theta_k
      feedback:  won_arm += 1  if validation accuracy rose,  else lost_arm += 1

  Args:
    key: PRNG key of the draws.
    prior: won and lost of every reference at the start, positive.

  Returns:
    WeightRule with a one-hot weight_K.  `update` with feedback (True where
    validation accuracy rose) judges the arm and draws the next; without
    feedback nothing was learnt, and the arm stays.

  Raises:
    ValueError: prior not positive.

  Source: arXiv:2512.10040, Thompson sampling weighting.

  >>> import jax
  >>> import jax.numpy as jnp
  >>> rule = thompson(jax.random.key(0))
  >>> weight_K = rule.weights(rule.init(3), jnp.zeros((1, 2, 3)))
  >>> sorted(weight_K.tolist())
  [0.0, 0.0, 1.0]
  """

  def draw(key, won_K, lost_K):
    key, now = jax.random.split(key)
    theta_K = jax.random.beta(now, won_K, lost_K)
    return Arms(key, won_K, lost_K, jnp.argmax(theta_K))

  def init(K):
    return draw(key, jnp.full(K, float(prior)), jnp.full(K, float(prior)))

  def weights(state, ref_logp_BCK):
    check(ref_logp_BCK=ref_logp_BCK, won_K=state.won_K)
    return (jnp.arange(state.won_K.size) == state.arm).astype(jnp.float32)

  def update(state, ref_logp_BCK, feedback=None):
    check(ref_logp_BCK=ref_logp_BCK, won_K=state.won_K)
    if feedback is None:
      return state
    judged_K = weights(state, ref_logp_BCK)
    won_K = state.won_K + jnp.where(feedback, judged_K, 0.0)
    lost_K = state.lost_K + jnp.where(feedback, 0.0, judged_K)
    return draw(state.key, won_K, lost_K)

  return WeightRule(init, weights, update)
