# SPDX-License-Identifier: Apache-2.0
"""Weights of single tokens, and the losses that need more than sums.

A score is the sum over a response of weight * token log-probability; scores
of policy and reference then stand in place of the summed log-probabilities.
The first four functions take arrays of one common shape and return weights of
that shape: `[B, C, T]`, packed rows `[R, M]`, or any other.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mrpo_jax.losses.arguments import checked
from mrpo_jax.losses.pair import MAX_EXPONENT, margin
from mrpo_jax.shapes import CHOSEN, REJECTED, check, widen


@checked
def temporal_decay(
  index: ArrayLike, *, gamma: ArrayLike = 0.98, offset: ArrayLike = 0
) -> jax.Array:
  """D2PO: earlier tokens of a response count more.

      weight_t = gamma^(t + offset)

  gamma = 1 is no weighting.

  Args:
    index: place of each token in its response, from 0; integers.
    gamma: decay per token, positive.
    offset: added to the place: 0 counts from the response's first token, 1 is
      the authors' code, the prompt's length (a number or an array) the paper.

  Returns:
    Weights, float32 or better.

  Source: D2PO, arXiv:2502.14340.

  >>> import jax.numpy as jnp
  >>> temporal_decay(jnp.arange(3), gamma=0.5).tolist()
  [1.0, 0.5, 0.25]
  """
  index = widen(index)
  offset = jnp.asarray(offset, index.dtype)
  return jnp.power(jnp.asarray(gamma, index.dtype), index + offset)


@checked
def length_desensitized(
  index: ArrayLike, shorter_length: ArrayLike, *, alpha: ArrayLike = 0.5
) -> jax.Array:
  """LD-DPO: what a response has beyond the shorter one's length counts less.

      weight_t = 1   for t < min(|y_w|, |y_l|),   alpha   after

  For policy and reference alike.  alpha = 1 is no weighting.

  Args:
    index: place of each token in its response, from 0.
    shorter_length: tokens of the shorter response of the token's pair.
    alpha: in [0, 1]; the paper finds 0.3 to 0.6 best.

  Returns:
    Weights, float32 or better.

  Source: LD-DPO, arXiv:2409.06411.

  >>> import jax.numpy as jnp
  >>> length_desensitized(jnp.arange(3), jnp.full(3, 2)).tolist()
  [1.0, 1.0, 0.5]
  """
  dtype = widen(index).dtype
  index, shorter_length = jnp.asarray(index), jnp.asarray(shorter_length)
  return jnp.where(index < shorter_length, 1.0, jnp.asarray(alpha, dtype))


@checked
def down_sample(
  key: jax.Array, index: ArrayLike, length: ArrayLike, keep: ArrayLike
) -> jax.Array:
  """SamPO: of each response as many tokens as the shorter one has.

  Draws exactly `keep` of each response's tokens, uniformly, without
  replacement.  Give policy and reference the same draw.

  Args:
    key: PRNG key.
    index: place of each token in its response, from 0, in reading order; a
      response starts where it is 0, also in packed rows.
    length: tokens of the token's response; a token at or past it is padding.
    keep: how many to keep, at most `length`.

  Returns:
    1.0 for the tokens drawn, else 0.0.

  Source: SamPO, arXiv:2406.10957.  The released code draws one subset for the
  policy and another for the reference, which is only noise.

  >>> import jax
  >>> import jax.numpy as jnp
  >>> index, length = jnp.arange(6), jnp.full(6, 6)
  >>> weight = down_sample(jax.random.key(0), index, length, jnp.full(6, 2))
  >>> float(weight.sum())
  2.0
  """
  shape = jnp.asarray(index).shape
  index, length, keep = (
    jnp.broadcast_to(jnp.asarray(x), shape).reshape(-1)
    for x in (index, length, keep)
  )
  response = jnp.cumsum(index == 0)
  draw = jax.random.uniform(key, index.shape, jnp.float32)
  draw = jnp.where(index < length, draw, 2.0)  # padding comes last
  place = jnp.arange(index.size)
  by_response, _, order = jax.lax.sort((response, draw, place), num_keys=2)
  starts = jnp.concatenate(
    [jnp.ones(1, bool), by_response[1:] != by_response[:-1]]
  )
  start = jax.lax.cummax(jnp.where(starts, place, 0))
  rank = jnp.zeros_like(place).at[order].set(place - start)
  kept = (rank < keep) & (index < length)
  return kept.astype(draw.dtype).reshape(shape)


@checked
def bridged(
  token_logp: ArrayLike, differs: ArrayLike, *, cap: ArrayLike = 2.0
) -> jax.Array:
  """BMC: tokens in which the two responses differ count more.

      weight_t = 1 + min(1 / p_t, cap)   where they differ,   1   elsewhere

  Args:
    token_logp: log-probability of each token under the policy; nats; no
      gradient.  The paper weights policy and reference by the policy's.
    differs: true where the token is part of the difference of the pair.
    cap: delta; the authors use 1.5 to 3.5.

  Returns:
    Weights, float32 or better.

  Source: BMC, arXiv:2408.07471.  The released code weights the reference's
  tokens by the reference's own probabilities.

  >>> import jax.numpy as jnp
  >>> token_logp = jnp.log(jnp.array([0.5, 0.1, 0.1]))
  >>> bridged(token_logp, jnp.array([1, 1, 0])).tolist()
  [3.0, 3.0, 1.0]
  """
  surprise = -jax.lax.stop_gradient(widen(token_logp))
  limit = jnp.log(jnp.asarray(cap, surprise.dtype))
  return 1.0 + jnp.where(
    jnp.asarray(differs), jnp.exp(jnp.minimum(surprise, limit)), 0.0
  )


@checked
def wpo_weight(mean_excess_BC: ArrayLike, *, clamp: bool = True) -> jax.Array:
  """WPO: off-policy pairs count less.

      weight = exp( sum over both responses of
                    mean_t [ log p_t - log sum_v p_t(v)^2 ] )

  How likely the policy is to have written the pair itself, against what it
  would write on average; multiplies any loss.

  Args:
    mean_excess_BC: mean over response tokens of log p_t minus the log of the
      sum of squared probabilities at that place; under the policy; nats.
    clamp: at most 1, as in the authors' code; TRL 1.16 does not clamp.

  Returns:
    weight_B: no gradient.

  Source: WPO, arXiv:2406.11827.

  >>> import jax.numpy as jnp
  >>> wpo_weight(jnp.log(jnp.array([[0.5, 0.5], [2.0, 1.0]]))).tolist()
  [0.25, 1.0]
  """
  check(mean_excess_BC=mean_excess_BC)
  exponent_B = jnp.sum(jax.lax.stop_gradient(widen(mean_excess_BC)), axis=-1)
  return jnp.exp(jnp.minimum(exponent_B, 0.0 if clamp else MAX_EXPONENT))


@checked
def tdpo(
  logratio_BC: ArrayLike,
  kl_BC: ArrayLike,
  *,
  beta: ArrayLike = 0.1,
  alpha: ArrayLike = 0.5,
  version: int = 2,
) -> jax.Array:
  """Token-level DPO: the margin pays for the divergence of each response.

      KL        = sum_t KL( reference(. | y_<t) || policy(. | y_<t) )
      version 1:  -log sigmoid( beta (r_w - r_l) - beta (KL_l - KL_w) )
      version 2:  -log sigmoid( beta (r_w - r_l)
                                - alpha beta (KL_l - no_gradient(KL_w)) )

  alpha = 0 is DPO.

  Args:
    logratio_BC: policy minus reference log-probability; nats.
    kl_BC: forward KL over the whole vocabulary, reference first, summed over
      response tokens; nats, with its gradient.
    beta: inverse temperature, per nat.
    alpha: of version 2; the authors try 0.1 to 0.7.
    version: 1 or 2, static.

  Returns:
    loss_B: nats, float32 or better.

  Raises:
    ValueError: another version.

  Source: TDPO, arXiv:2404.11999, equations 15 to 17.

  >>> import jax.numpy as jnp
  >>> got = tdpo(jnp.zeros((1, 2)), jnp.array([[1.0, 3.0]]), beta=1.0)[0]
  >>> bool(jnp.isclose(got, jnp.log1p(jnp.exp(1.0))))
  True
  """
  if version not in (1, 2):
    raise ValueError(f"tdpo: version must be 1 or 2, got {version}")
  check(logratio_BC=logratio_BC, kl_BC=kl_BC)
  kl_BC = widen(kl_BC)
  chosen_B, rejected_B = kl_BC[:, CHOSEN], kl_BC[:, REJECTED]
  cost_B = rejected_B - chosen_B
  if version == 2:
    cost_B = alpha * (rejected_B - jax.lax.stop_gradient(chosen_B))
  return -jax.nn.log_sigmoid(beta * (margin(logratio_BC) - cost_B))
