# SPDX-License-Identifier: Apache-2.0
"""Packed rows of pairs, and the log-probability of each response in them."""

import flax.struct
import jax
import jax.numpy as jnp

from mrpo_jax.models import attention, head, transformer
from mrpo_jax.shapes import check


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


def response_logps(config, params, rows, pairs, *, chunk=None, **forward):
  """Summed log-probability of every response that stands in the rows.

  Args:
    config: ModelConfig.
    params: its parameters.
    rows: Rows without the axis A.
    pairs: B, static.
    chunk: see `head.token_logps`.
    **forward: `kernel`, `remat`, `dtype` of `transformer.hidden`.

  Returns:
    logp_BC: nats, float32; 0 for responses that stand in other rows.
  """
  check("R T", rows.tokens_RT, "R M", rows.slots_RM)
  mask_RTS = attention.visible(rows.segments_RT, rows.branches_RT)
  hidden_RTD = transformer.hidden(
    config, params, rows.tokens_RT, rows.positions_RT, mask_RTS, **forward
  )
  hidden_RMD = jnp.take_along_axis(
    hidden_RTD, rows.places_RM[:, :, None], axis=1
  )
  used = jnp.max(jnp.sum(rows.slots_RM < 2 * pairs, axis=1))
  logp_RM = head.token_logps(
    hidden_RMD, transformer.head(params), rows.targets_RM, used, chunk=chunk
  )
  return _per_response(logp_RM, rows.slots_RM, pairs)


def micro_batches(rows):
  """How many leading micro-batches of [A, R, T] hold tokens."""
  return jnp.sum(jnp.any(rows.segments_RT > 0, axis=(1, 2)), dtype=jnp.int32)


def micro_batch(rows, a):
  """The a-th micro-batch, without the axis A."""
  return jax.tree.map(
    lambda array: jax.lax.dynamic_index_in_dim(array, a, keepdims=False), rows
  )


def all_response_logps(config, params, rows, pairs, **forward):
  """`response_logps` of rows [A, R, T], one micro-batch in memory at a time."""

  def body(a, logp_BC):
    one = micro_batch(rows, a)
    return logp_BC + response_logps(config, params, one, pairs, **forward)

  zero_BC = jnp.zeros((pairs, 2), jnp.float32)
  return jax.lax.fori_loop(0, micro_batches(rows), body, zero_BC)


def response_lengths(rows, pairs):
  """length_BC: scored tokens of every response, float32; any leading axes."""
  return _per_response(
    jnp.ones(rows.slots_RM.shape, jnp.float32), rows.slots_RM, pairs
  )


def _per_response(value, slots, pairs):
  return jax.ops.segment_sum(  # drops slots past the last
    value.reshape(-1), slots.reshape(-1), num_segments=2 * pairs
  ).reshape(pairs, 2)
