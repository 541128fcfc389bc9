# SPDX-License-Identifier: Apache-2.0
"""Sampling of the next token: repetition penalty, temperature, top-k, top-p.

The order, and what each does, is that of Hugging Face transformers.
"""

import dataclasses

import jax
import jax.numpy as jnp

NEVER = -jnp.inf
LEAST, MOST = 1e-6, 1e6  # of what logits are divided by: float32 holds both
BLOCK = 256  # tokens of the vocabulary whose shares are summed at once


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How tokens are drawn; the defaults draw from the model itself."""

  temperature: float = 1.0  # 0 is greedy
  top_k: int = 0  # so many likeliest tokens; 0 is all
  top_p: float = 1.0  # likeliest tokens that have this share together
  min_p: float = 0.0  # a token's least share of the likeliest one's
  repetition_penalty: float = 1.0  # of tokens that stand there already
  max_new_tokens: int = 256
  min_new_tokens: int = 0  # before them no end token comes
  samples: int = 1  # of each prompt

  def __post_init__(self):
    checks = {
      "temperature": self.temperature == 0 or LEAST <= self.temperature <= MOST,
      "top_k": self.top_k >= 0,
      "top_p": LEAST <= self.top_p <= 1,
      "min_p": self.min_p == 0 or LEAST <= self.min_p <= 1,
      "repetition_penalty": LEAST <= self.repetition_penalty <= MOST,
      "max_new_tokens": self.max_new_tokens >= 1,
      "min_new_tokens": 0 <= self.min_new_tokens <= self.max_new_tokens,
      "samples": self.samples >= 1,
    }
    for name, is_right in checks.items():
      if not is_right:
        raise ValueError(f"{name}={getattr(self, name)!r} is out of range")

  @property
  def penalises(self):
    return self.repetition_penalty != 1.0


def draw(sampling, logits_BV, uniform_B, *, seen_BV=None, banned_BV=None):
  """One token of each row.

  Args:
    sampling: Sampling.
    logits_BV: of the model, float32.
    uniform_B: random numbers in [0, 1).
    seen_BV: tokens that stand in the sequence, for the repetition penalty.
    banned_BV: tokens that may not come; None bans none.

  Returns:
    (token_B, logp_B, behaviour_logp_B, is_greedy_B): the tokens; their
    log-probability under the model; under what they were drawn from; whether
    each is the model's likeliest.
  """
  logp_BV = jax.nn.log_softmax(logits_BV)
  score_BV = processed(sampling, logits_BV, seen_BV, banned_BV)
  if sampling.temperature == 0:
    token_B = _first_best(score_BV).astype(jnp.int32)
    behaviour_B = jnp.zeros(token_B.shape, logits_BV.dtype)
  else:
    drawn_BV = jax.nn.log_softmax(score_BV)
    token_B = _inverse(jnp.exp(drawn_BV), uniform_B).astype(jnp.int32)
    behaviour_B = _of(drawn_BV, token_B)
  is_greedy_B = _of(logits_BV, token_B) == jnp.max(logits_BV, axis=1)
  return token_B, _of(logp_BV, token_B), behaviour_B, is_greedy_B


def _first_best(score_BV):
  """token_B: the likeliest, of equal ones the first.

  XLA's CPU backend finds a greatest number four times faster than its place.
  """
  V = score_BV.shape[1]
  is_best_BV = score_BV == jnp.max(score_BV, axis=1, keepdims=True)
  return jnp.min(jnp.where(is_best_BV, jnp.arange(V)[None], V - 1), axis=1)


def processed(sampling, logits_BV, seen_BV=None, banned_BV=None):
  """Logits of the distribution that tokens are drawn from, unnormed."""
  score_BV = logits_BV
  if sampling.penalises:
    by = sampling.repetition_penalty
    worse_BV = jnp.where(score_BV > 0, score_BV / by, score_BV * by)
    score_BV = jnp.where(seen_BV, worse_BV, score_BV)
  if banned_BV is not None:
    score_BV = jnp.where(banned_BV, NEVER, score_BV)
  if sampling.temperature == 0:
    return score_BV
  score_BV = score_BV / sampling.temperature
  V = score_BV.shape[1]
  if 0 < sampling.top_k < V:
    score_BV = top_k(score_BV, sampling.top_k)
  if sampling.top_p < 1:
    score_BV = top_p(score_BV, sampling.top_p)
  if sampling.min_p > 0:
    best_B1 = jnp.max(score_BV, axis=1, keepdims=True)
    least_B1 = best_B1 + jnp.log(sampling.min_p)
    score_BV = jnp.where(score_BV < least_B1, NEVER, score_BV)
  return score_BV


def top_k(score_BV, k):
  """Scores of the k likeliest tokens; all that equal the last one stay."""

  def enough(least_B1):
    return jnp.sum(score_BV >= least_B1, axis=1) >= k

  return jnp.where(score_BV >= _greatest(enough, score_BV), score_BV, NEVER)


def top_p(score_BV, p):
  """Scores of the fewest likeliest tokens that have the share p together.

  All that equal the last of them stay; a sort would keep one or the other.
  """
  share_BV = jax.nn.softmax(score_BV)

  def enough(least_B1):
    kept_BV = jnp.where(score_BV >= least_B1, share_BV, 0.0)
    return jnp.sum(kept_BV, axis=1) >= p

  # Where all shares together are rounded to less than p, it is no number, and
  # cuts nothing.
  least_B1 = _greatest(enough, score_BV)
  return jnp.where(score_BV < least_B1, NEVER, score_BV)


def _greatest(enough, score_BV):
  """score_B1: the greatest number that is enough; found bit by bit.

  Sorting a vocabulary takes longer than 32 sums over it.
  """

  sign = jnp.uint32(1 << 31)

  def number(order_B):
    """The float of that place in the order of floats, negative ones first."""
    bits_B = jnp.where(order_B >= sign, order_B ^ sign, ~order_B)
    return jax.lax.bitcast_convert_type(bits_B, jnp.float32)[:, None]

  def bit(i, order_B):
    more_B = order_B | (sign >> i.astype(jnp.uint32))
    least_B1 = number(more_B)
    # What is no number stands before -inf and after inf.
    is_enough_B = jnp.where(
      jnp.isnan(least_B1[:, 0]), more_B < sign, enough(least_B1)
    )
    return jnp.where(is_enough_B, more_B, order_B)

  start_B = jnp.zeros(score_BV.shape[0], jnp.uint32)
  return number(jax.lax.fori_loop(0, 32, bit, start_B))


def _inverse(share_BV, uniform_B):
  """token_B: the first whose share, with those before it, passes the number.

  Sums of blocks first, so that a long vocabulary is not summed up token by
  token, which rounds.
  """
  B, V = share_BV.shape
  share_BNv = jnp.pad(share_BV, ((0, 0), (0, -V % BLOCK))).reshape(B, -1, BLOCK)
  sum_BN = jnp.cumsum(jnp.sum(share_BNv, axis=2), axis=1)
  # A sum of shares is 1 but for rounding, which must not carry it past the end.
  whole_B = sum_BN[:, -1]
  passed_B = jnp.minimum(uniform_B * whole_B, jnp.nextafter(whole_B, 0.0))
  block_B = jnp.sum(sum_BN <= passed_B[:, None], axis=1)
  before_B = jnp.where(block_B > 0, _of(sum_BN, block_B - 1), 0.0)
  share_Bv = jnp.take_along_axis(share_BNv, block_B[:, None, None], axis=1)[
    :, 0
  ]
  sum_Bv = before_B[:, None] + jnp.cumsum(share_Bv, axis=1)
  inside_B = jnp.sum(sum_Bv <= passed_B[:, None], axis=1)
  # Rounding may carry it past the last token that has a share.
  last_B = BLOCK - 1 - jnp.argmax(share_Bv[:, ::-1] > 0, axis=1)
  return block_B * BLOCK + jnp.minimum(inside_B, last_B)


def _of(value_BN, place_B):
  return jnp.take_along_axis(value_BN, place_B[:, None], axis=1)[:, 0]
