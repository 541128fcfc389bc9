# SPDX-License-Identifier: Apache-2.0
"""Losses of every token of a rollout, by its advantage; and their mean.

A rollout is a response that the policy itself has said.  `logp` is the
log-probability of each of its tokens now, `behaviour_logp` when it was said,
`ref_logp` under the initial policy; all in nats, of one shape.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mrpo_jax.losses.arguments import checked
from mrpo_jax.losses.related import MAX_EXPONENT
from mrpo_jax.shapes import check, widen


@checked
def apa(
  logp: ArrayLike,
  ref_logp: ArrayLike,
  advantage: ArrayLike,
  *,
  lam: ArrayLike = 0.1,
) -> jax.Array:
  """Advantage-induced policy alignment: regress log-ratios on advantages.

      loss = ( log p - log r - advantage / lam )^2

  Args:
    logp: policy log-probability of each token; nats, any shape.
    ref_logp: the same under the initial policy; no gradient.
    advantage: estimated advantage of each token; no gradient.
    lam: temperature, positive.

  Returns:
    One value per element, float32 or better.

  Source: APA, arXiv:2306.02231, with its normaliser taken as 1.

  >>> import jax.numpy as jnp
  >>> half = jnp.array(-0.5)
  >>> float(apa(half, half, jnp.array(0.5), lam=0.25))
  4.0
  """
  target = widen(ref_logp) + widen(advantage) / lam
  return jnp.square(widen(logp) - jax.lax.stop_gradient(target))


@checked
def awr(
  logp: ArrayLike, advantage: ArrayLike, *, lam: ArrayLike = 2.0
) -> jax.Array:
  """Advantage-weighted regression: likelihood of what turned out well.

      loss = -exp(advantage / lam) * log p

  Args:
    logp: policy log-probability of each token; nats, any shape.
    advantage: estimated advantage of each token; no gradient.
    lam: temperature, positive; the authors' exp(0.5 advantage) on HH is 2,
      and 1 on TL;DR.

  Returns:
    One value per element, float32 or better.

  Source: APA, arXiv:2306.02231, whose rival it is; arXiv:1910.00177.
  Numerics: the exponent is clamped at 70, so that 1e4 nats stay finite.

  >>> import jax.numpy as jnp
  >>> awr(jnp.array([-2.0]), jnp.array([0.0])).tolist()
  [2.0]
  """
  exponent = jnp.minimum(widen(advantage) / lam, MAX_EXPONENT)
  return -jnp.exp(jax.lax.stop_gradient(exponent)) * widen(logp)


@checked
def ppo_clip(
  logp: ArrayLike,
  behaviour_logp: ArrayLike,
  advantage: ArrayLike,
  *,
  cliprange: ArrayLike = 0.2,
) -> jax.Array:
  """Proximal policy optimization, its clipped form.

      ratio = p / behaviour
      loss = -min( ratio A,  clip(ratio, 1 - cliprange, 1 + cliprange) A )

  Args:
    logp: policy log-probability of each token; nats, any shape.
    behaviour_logp: the same when it was said; no gradient.
    advantage: estimated advantage of each token; no gradient.
    cliprange: how far the ratio may go from 1 and still count; positive.

  Returns:
    One value per element, float32 or better.

  Source: PPO, arXiv:1707.06347, equation 7.
  Numerics: the exponent is clamped at 70, so that 1e4 nats stay finite.

  >>> import jax.numpy as jnp
  >>> logp = jnp.log(jnp.array([1.5, 0.5]))
  >>> ppo_clip(logp, jnp.zeros(2), jnp.array([2.0, 2.0])).tolist()
  [-2.4000000953674316, -1.0]
  """
  gain = jax.lax.stop_gradient(widen(advantage))
  ratio = importance_ratio(logp, behaviour_logp)
  near = jnp.clip(ratio, 1.0 - cliprange, 1.0 + cliprange)
  return -jnp.minimum(ratio * gain, near * gain)


def importance_ratio(logp, behaviour_logp):
  """p / behaviour of each token, at most exp(70); the gradient is through p."""
  behaviour_logp = jax.lax.stop_gradient(widen(behaviour_logp))
  return jnp.exp(jnp.minimum(widen(logp) - behaviour_logp, MAX_EXPONENT))


@checked
def value_loss(value: ArrayLike, returns: ArrayLike) -> jax.Array:
  """Half the squared distance of a value from the return that came.

      loss = 1/2 ( V - return )^2

  Args:
    value: of the state before each token, any shape.
    returns: advantage plus the value when it was said; no gradient.

  Returns:
    One value per element, float32 or better; not clipped.

  Source: APA, arXiv:2306.02231, its code.

  >>> import jax.numpy as jnp
  >>> float(value_loss(jnp.array(3.0), jnp.array(1.0)))
  2.0
  """
  return 0.5 * jnp.square(widen(value) - jax.lax.stop_gradient(widen(returns)))


def token_mean(token_loss_BC, length_BC):
  """value_B whose mean over the pairs is the mean over all their tokens.

      value_b = sum_c token_loss_bc * pairs / tokens

  Args:
    token_loss_BC: sums over the tokens of each response.
    length_BC: their numbers; 0 where there is no response, and in both where
      there is no pair.

  >>> import jax.numpy as jnp
  >>> sums_BC = jnp.array([[6.0, 0.0], [2.0, 0.0]])
  >>> token_mean(sums_BC, jnp.array([[3.0, 0.0], [1.0, 0.0]])).tolist()
  [3.0, 1.0]
  """
  check(token_loss_BC=token_loss_BC, length_BC=length_BC)
  length_BC = widen(length_BC)
  pairs = jnp.sum(jnp.any(length_BC > 0, axis=1))
  tokens = jnp.maximum(jnp.sum(length_BC), 1.0)
  return jnp.sum(widen(token_loss_BC), axis=1) * (pairs / tokens)
