# SPDX-License-Identifier: Apache-2.0
"""Packed rows of pairs: the contract between data and models."""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Rows:
  """R rows of T tokens that hold whole pairs: [prompt | chosen | rejected].

  A leading axis A may stand before R: micro-batches, filled from the first.
  Slot 2 * pair + choice names a response; a larger number than any marks a
  place without one.
  """

  tokens_RT: jax.Array
  positions_RT: jax.Array  # the rejected response restarts at the prompt's end
  segments_RT: jax.Array  # pair within the row from 1; 0 is padding
  branches_RT: jax.Array  # 0 prompt, 1 chosen, 2 rejected
  places_RM: jax.Array  # which position predicts the M-th scored token
  targets_RM: jax.Array  # the scored token
  slots_RM: jax.Array  # which response it belongs to
  # 1 where it is part of the difference of the pair; None where nobody asks.
  differs_RM: jax.Array | None = None


def most_pairs(length):
  """Pairs that a row of so many tokens holds at most, where that is bounded.

  Packed cuDNN keeps a sum of every token for each sequence that there may be:
  their number must not grow with long rows, which hold long pairs.  Pairs of 64
  tokens and more fill rows of 4,096, those of an eighth of a row any.
  """
  return max(8, min(length // 64, 64))


def scope(rows):
  """The name scope of a loop over the micro-batches of [A, R, T].

  How often it runs follows from the data; `mrpo plan` finds it by this name.
  """
  return f"micro_batches_of_{rows.tokens_RT.shape[-1]}"


def micro_batches(rows):
  """How many leading micro-batches of [A, R, T] hold tokens."""
  return jnp.sum(jnp.any(rows.segments_RT > 0, axis=(1, 2)), dtype=jnp.int32)


def micro_batch(rows, a):
  """The a-th micro-batch, without the axis A."""
  return jax.tree.map(
    lambda array: jax.lax.dynamic_index_in_dim(array, a, keepdims=False), rows
  )


def token_counts(view):
  """(real tokens, token slots computed) of a step's Rows, also under jit."""
  real = sum((rows.segments_RT > 0).sum() for rows in view)
  slots = sum(
    (rows.segments_RT > 0).any(axis=(1, 2)).sum() * rows.segments_RT[0].size
    for rows in view
  )
  return real, slots
