# SPDX-License-Identifier: Apache-2.0
"""Rotary positions and the ways to stretch them past their training length."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from mrpo_jax.shapes import check, widen

WIDEST = 2**16  # dims of a head; the widest known have a hundredth of it


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary embedding of one kind of layer.

  `settings` are those of the kind, under the names of Hugging Face's
  `rope_parameters`, everything resolved that these leave open.
  """

  theta: float = 10000.0
  dims: int | None = None  # the first of each head that turn; None for all
  kind: str = "default"  # a key of KINDS
  settings: tuple[tuple[str, object], ...] = ()

  @property
  def longest(self):
    """Up to this length a sequence turns alike, whatever stands beside it.

    Beyond it the kind asks for the longest sequence of the batch.  None where
    it never does.
    """
    return (
      dict(self.settings)[BOUNDS[self.kind]] if self.kind in BOUNDS else None
    )


def check_rope(rope, head_dim):
  """Raises ValueError where a Rope divides by zero, or turns by no number."""
  dims = rope.dims or head_dim
  if dims % 2:
    raise ValueError(f"head_dim={dims} is odd; RoPE turns pairs")
  if dims > WIDEST:  # before an array is made of them
    raise ValueError(
      f"head_dim={dims} is more than {WIDEST}, the most for RoPE"
    )
  settings = dict(rope.settings)
  lengths = (1, 2 * rope.longest) if rope.longest else (1,)
  try:
    with np.errstate(divide="raise", invalid="raise", over="raise"):
      for length in lengths:
        turn = KINDS[rope.kind](rope.theta, dims, length, **settings)
        numbers = np.append(*turn).astype(np.float32)
        if not (np.isfinite(numbers).all() and (numbers > 0).all()):
          raise ValueError("a number is not positive")
  except (ArithmeticError, ValueError):
    given = {"theta": rope.theta, **settings}
    given = [f"{k}={v}" for k, v in given.items() if not isinstance(v, tuple)]
    raise ValueError(
      f"rope_type={rope.kind!r} with {', '.join(given)} over {dims} dims "
      "divides by zero, or turns by no positive number"
    ) from None


def rotary(ropes, head_dim, positions_RT, dtype):
  """cos and sin of each position's angles, one table for each rope.

  Args:
    ropes: tuple of K of Rope, or None for one that turns nothing; those that
      turn do it with the same number of dims.
    head_dim: E.
    positions_RT: place of each token in its own sequence, from 0.
    dtype: of the tables, float32 or better.

  Returns:
    (cos, sin), both [K, R, T, 1, dims / 2].
  """
  check(positions_RT=positions_RT)
  (dims,) = {rope.dims or head_dim for rope in ropes if rope} or {2}
  length = jnp.max(positions_RT) + 1
  tables = [
    KINDS[rope.kind](rope.theta, dims, length, **dict(rope.settings))
    if rope
    else (np.zeros(dims // 2), 1.0)
    for rope in ropes
  ]
  place_1RT11 = positions_RT[None, :, :, None, None].astype(dtype)
  frequency_KE = jnp.stack([jnp.asarray(f, dtype) for f, _ in tables])
  scale_K = jnp.asarray([scale for _, scale in tables], dtype)
  angle = place_1RT11 * frequency_KE[:, None, None, None, :]
  scale = scale_K[:, None, None, None, None]
  return scale * jnp.cos(angle), scale * jnp.sin(angle)


def rotate(x_RTHE, cos_RT1E, sin_RT1E):
  """Turns the first dims of each head, in Hugging Face's halves-apart layout.

  The tables hold half as many dims as turn; the rest passes unchanged.
  """
  half = cos_RT1E.shape[-1]
  left, right, rest = jnp.split(x_RTHE, (half, 2 * half), axis=-1)
  left, right = widen(left), widen(right)
  turned = (
    left * cos_RT1E - right * sin_RT1E,
    right * cos_RT1E + left * sin_RT1E,
  )
  turned = [part.astype(x_RTHE.dtype) for part in turned]
  return jnp.concatenate([*turned, rest], axis=-1)


# Kinds: (theta, dims, length, **settings) -> (frequencies, scale of cos and
# sin).  Formulas of Hugging Face transformers, modeling_rope_utils.py.


def default(theta, dims, length):
  """theta^(-2i / dims)."""
  del length
  return theta ** -(np.arange(0, dims, 2) / dims), 1.0


def linear(theta, dims, length, *, factor):
  """Every position divided by the factor."""
  frequency, _ = default(theta, dims, length)
  return frequency / factor, 1.0


def dynamic(theta, dims, length, *, factor, max_position_embeddings):
  """A larger theta for a batch that goes past the training length."""
  numbers = _numbers(length)
  over = numbers.maximum(length / max_position_embeddings, 1.0)
  stretch = factor * over - (factor - 1)
  power = numbers.asarray(np.arange(0, dims, 2) / dims)
  return (theta * stretch ** (dims / (dims - 2))) ** -power, 1.0


def llama3(
  theta,
  dims,
  length,
  *,
  factor,
  low_freq_factor,
  high_freq_factor,
  original_max_position_embeddings,
):
  """Slow turns divided by the factor, fast ones kept, a ramp between."""
  frequency, _ = default(theta, dims, length)
  turns = original_max_position_embeddings * frequency / (2 * math.pi)
  kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
  kept = np.clip(kept, 0.0, 1.0)
  return (1 - kept) * frequency / factor + kept * frequency, 1.0


def yarn(
  theta,
  dims,
  length,
  *,
  factor,
  attention_factor,
  beta_fast,
  beta_slow,
  original_max_position_embeddings,
  truncate,
):
  """YaRN, arXiv:2309.00071: a ramp over dims and hotter attention."""
  frequency, _ = default(theta, dims, length)

  def dim_of(turns):
    span = original_max_position_embeddings / (turns * 2 * math.pi)
    return dims * math.log(span) / (2 * math.log(theta))

  low, high = dim_of(beta_fast), dim_of(beta_slow)
  if truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, dims - 1)
  high += 0.001 if low == high else 0.0
  ramp = np.clip((np.arange(dims // 2) - low) / (high - low), 0.0, 1.0)
  return frequency / factor * ramp + frequency * (1 - ramp), attention_factor


def longrope(
  theta,
  dims,
  length,
  *,
  short_factor,
  long_factor,
  attention_factor,
  original_max_position_embeddings,
):
  """LongRoPE, arXiv:2402.13753: a divisor for each dim, two sets of them."""
  is_long = length > original_max_position_embeddings
  frequency, _ = default(theta, dims, length)
  short, long = (np.asarray(f, float) for f in (short_factor, long_factor))
  where = _numbers(length).where
  return where(is_long, frequency / long, frequency / short), attention_factor


def _numbers(length):
  """The module that computes with a length: NumPy where it is a plain one."""
  return jnp if isinstance(length, jax.Array) else np


KINDS = {
  function.__name__: function
  for function in (default, linear, dynamic, llama3, yarn, longrope)
}
BOUNDS = {
  "dynamic": "max_position_embeddings",
  "longrope": "original_max_position_embeddings",
}
