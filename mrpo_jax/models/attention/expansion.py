# SPDX-License-Identifier: Apache-2.0
"""A pair as two ordinary sequences, for kernels that know no branches."""

import functools

import flax.struct
import jax
import jax.numpy as jnp

LANES = 128  # rows are multiples of them: Splash wants that, and heads too


@flax.struct.dataclass
class Expansion:
  """Rows of X places in which each response follows a copy of its prompt.

  Where there is none, a field holds the length of what it points into, which
  `expanded` and `folded` read as 0.
  """

  source_RX: jax.Array  # the token at each place; none in padding
  first_RX: jax.Array  # the same, but none at the second copy of a prompt
  target_RT: jax.Array  # the place of each token, of prompts the first
  second_RT: jax.Array  # the second place of a prompt's token; none of others
  segments_RX: jax.Array  # equal for one sequence, 0 for padding, which is last


def expansion(layout):
  """The Expansion of a RowLayout of R rows of T; X is 2 T and up to LANES more.

  Segments count from 1 within a row.
  """
  T = layout.segments.shape[1]
  X = 2 * T + -2 * T % LANES
  return jax.vmap(functools.partial(_expansion, X))(
    layout.segments, layout.branches
  )


def _expansion(X, segments_T, branches_T):
  T = segments_T.size
  place_T = jnp.arange(T)

  def count(of_T):
    """Tokens of each of S = T + 1 segments; no row holds more."""
    return jax.ops.segment_sum(of_T.astype(jnp.int32), segments_T, T + 1)

  is_real_T = segments_T > 0
  is_prompt_T = (branches_T == 0) & is_real_T
  is_rejected_T = branches_T == 2
  prompts_S = count(is_prompt_T)
  chosen_S = count(branches_T == 1)
  # Prompts of the segments before are there twice.
  before_S = jnp.cumsum(prompts_S) - prompts_S
  first_T = place_T + before_S[segments_T]
  target_T = first_T + jnp.where(is_rejected_T, prompts_S[segments_T], 0)
  target_T = jnp.where(is_real_T, target_T, X)
  second_T = first_T + (prompts_S + chosen_S)[segments_T]
  second_T = jnp.where(is_prompt_T, second_T, X)
  number_T = 2 * segments_T
  own_T = number_T - ~is_rejected_T  # a pair's second sequence is the even one

  def put(into_X, to_T, of_T):
    return into_X.at[to_T].set(of_T, mode="drop")

  first_X = put(jnp.full(X, T, jnp.int32), target_T, place_T)
  source_X = put(first_X, second_T, place_T)
  segments_X = put(jnp.zeros_like(source_X), target_T, own_T)
  segments_X = put(segments_X, second_T, number_T)
  return Expansion(source_X, first_X, target_T, second_T, segments_X)


# Written out, as gradients by themselves would be scattered: slowly, and on
# GPUs in an order that no two runs share.


@jax.custom_vjp
def expanded(array_RTHE, made):
  """The tokens' values at the places of an Expansion: array_RXHE."""
  return _at(array_RTHE, made.source_RX)


expanded.defvjp(
  lambda array_RTHE, made: (expanded(array_RTHE, made), made),
  lambda made, grad_RXHE: (
    _at(grad_RXHE, made.target_RT) + _at(grad_RXHE, made.second_RT),
    None,
  ),
)


@jax.custom_vjp
def folded(array_RXHE, made):
  """What stands at the tokens' own places of an Expansion: array_RTHE."""
  return _at(array_RXHE, made.target_RT)


folded.defvjp(
  lambda array_RXHE, made: (folded(array_RXHE, made), made),
  lambda made, grad_RTHE: (_at(grad_RTHE, made.first_RX), None),
)


def _at(array_RTHE, place_RX):
  return jnp.take_along_axis(
    array_RTHE, place_RX[:, :, None, None], axis=1, mode="fill", fill_value=0
  )
