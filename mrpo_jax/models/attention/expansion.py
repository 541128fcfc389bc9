# SPDX-License-Identifier: Apache-2.0
"""A pair as two ordinary sequences, for kernels that know no branches."""

import functools

import jax
import jax.numpy as jnp

LANES = 128  # rows are multiples of them: Splash wants that, and heads too


def expansion(layout):
  """Rows in which each response follows a copy of its prompt.

  Args:
    layout: RowLayout of R rows of T; segments count from 1 within a row.

  Returns:
    source_RX: where each of X = 2 T places (up to a multiple of LANES) stands
      in the row; target_RT: the place of each token, of prompts the first;
    segments_RX: equal for one sequence, 0 for padding.
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

  is_prompt_T = (branches_T == 0) & (segments_T > 0)
  prompts_S = count(is_prompt_T)
  chosen_S = count(branches_T == 1)
  # Prompts of the segments before are there twice.
  before_S = jnp.cumsum(prompts_S) - prompts_S
  first_T = place_T + before_S[segments_T]
  second_T = first_T + jnp.where(
    is_prompt_T, (prompts_S + chosen_S)[segments_T], 0
  )
  is_rejected_T = branches_T == 2
  target_T = first_T + jnp.where(is_rejected_T, prompts_S[segments_T], 0)
  # Padding comes last in a row and after all that is real.
  target_T = jnp.where(
    segments_T > 0, target_T, place_T + before_S[-1] + prompts_S[-1]
  )
  source_X = jnp.zeros(X, jnp.int32)
  segments_X = jnp.zeros(X, jnp.int32)
  number_T = jnp.where(segments_T > 0, 2 * segments_T, 0)
  for to_T, of_T in (
    (target_T, number_T - ((segments_T > 0) & ~is_rejected_T)),
    (jnp.where(is_prompt_T, second_T, X), number_T),
  ):
    source_X = source_X.at[to_T].set(place_T, mode="drop")
    segments_X = segments_X.at[to_T].set(of_T, mode="drop")
  return source_X, target_T, segments_X
