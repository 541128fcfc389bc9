# SPDX-License-Identifier: Apache-2.0
"""Packed rows of pairs, and the log-probability of each response in them."""

import dataclasses

import jax
import jax.numpy as jnp

from mrpo_jax.models import head, transformer
from mrpo_jax.models.attention.layout import RowLayout
from mrpo_jax.models.partition import WHOLE, Partition
from mrpo_jax.rows import micro_batch, micro_batches, scope
from mrpo_jax.shapes import check


@dataclasses.dataclass(frozen=True)
class Computation:
  """How a forward pass is computed, which changes numbers by rounding alone.

  See `transformer.hidden` for the first four, `head.token_figures` for the
  others.
  """

  kernel: str = "auto"  # of the attention
  remat: str = "none"
  dtype: str | None = None  # of the activations; None: of the weights
  partition: Partition = WHOLE
  chunk: int | None = None  # scored positions of a row at once
  vocabulary: int | None = None  # tokens of the vocabulary at once


DEFAULT = Computation()


def token_figures(
  config,
  params,
  rows,
  pairs,
  computation=DEFAULT,
  *,
  also=(),
  against=None,
):
  """Figures of every scored token of the rows, under a model.

  Args:
    config: ModelConfig.
    params: its parameters.
    rows: Rows without the axis A.
    pairs: B, static.
    computation: Computation.
    also: further figures; see `head.token_figures`.
    against: (config, params, Computation) of a reference with the same
      vocabulary, run on the same rows; see `head.token_figures`.

  Returns:
    dict of value_RM, `logp` among them.
  """
  check(tokens_RT=rows.tokens_RT, slots_RM=rows.slots_RM)
  layout = RowLayout(rows.positions_RT, rows.segments_RT, rows.branches_RT)

  def scored(config, params, how):
    hidden_RTD = transformer.hidden(
      config,
      params,
      rows.tokens_RT,
      layout,
      kernel=how.kernel,
      remat=how.remat,
      dtype=how.dtype,
      partition=how.partition,
    )
    hidden_RMD = jnp.take_along_axis(
      hidden_RTD, rows.places_RM[:, :, None], axis=1
    )
    return hidden_RMD, transformer.head(params)

  used = jnp.max(jnp.sum(rows.slots_RM < 2 * pairs, axis=1))
  ref_config, _, ref_computation = against or (config, None, computation)
  return head.token_figures(
    *scored(config, params, computation),
    rows.targets_RM,
    used,
    also=also,
    against=None if against is None else scored(*against),
    softcaps=(config.logits_softcap, ref_config.logits_softcap),
    chunk=computation.chunk,
    vocabulary=computation.vocabulary,
    partitions=(computation.partition, ref_computation.partition),
  )


def all_token_figures(
  config, params, rows, pairs, computation=DEFAULT, *, also=()
):
  """`token_figures` of rows [A, R, T], one micro-batch in memory at a time."""

  def body(a, figures):
    found = token_figures(
      config, params, micro_batch(rows, a), pairs, computation, also=also
    )
    return {
      name: jax.lax.dynamic_update_index_in_dim(
        value_ARM, found[name].astype(value_ARM.dtype), a, axis=0
      )
      for name, value_ARM in figures.items()
    }

  zero_ARM = jnp.zeros(rows.slots_RM.shape, jnp.float32)
  start = dict.fromkeys(("logp", *also), zero_ARM)
  with jax.named_scope(scope(rows)):
    return jax.lax.fori_loop(0, micro_batches(rows), body, start)


def response_lengths(rows, pairs):
  """length_BC: scored tokens of every response, float32; any leading axes."""
  ones = jnp.ones(rows.slots_RM.shape, jnp.float32)
  return per_response(ones, rows.slots_RM, pairs)


def per_response(value, slots, pairs):
  """Sums over responses, 0 for one that does not stand in the rows.

  Args:
    value: [..., M] or [..., M, K], one value per scored token.
    slots: [..., M], see Rows.
    pairs: B, static.

  Returns:
    sum_BC or sum_BCK.
  """
  rest = value.shape[slots.ndim :]
  return jax.ops.segment_sum(  # drops slots past the last
    value.reshape(-1, *rest), slots.reshape(-1), num_segments=2 * pairs
  ).reshape(pairs, 2, *rest)


def token_places(rows, pairs):
  """Places and lengths of scored tokens, of which token weights are made.

  Args:
    rows: Rows without the axis A.
    pairs: B, static.

  Returns:
    dict of arrays [R, M]: `index` in its response, from 0; `length` of the
    response and `shorter_length` of the pair's two, in tokens (0 at places
    without a token); `prompt_length`; `differs`, where the rows have it.
  """
  is_real_RM = rows.slots_RM < 2 * pairs
  place_1M = jnp.arange(rows.slots_RM.shape[1])[None]
  starts_RM = jnp.concatenate(
    [
      jnp.ones_like(is_real_RM[:, :1]),
      rows.slots_RM[:, 1:] != rows.slots_RM[:, :-1],
    ],
    axis=1,
  )
  start_RM = jax.lax.cummax(jnp.where(starts_RM, place_1M, 0), axis=1)
  index_RM = jnp.where(is_real_RM, place_1M - start_RM, 0)
  length_BC = response_lengths(rows, pairs).astype(jnp.int32)
  shorter_BC = jnp.broadcast_to(
    jnp.min(length_BC, axis=1, keepdims=True), length_BC.shape
  )

  def of_response(value_BC):
    return value_BC.reshape(-1).at[rows.slots_RM].get(mode="fill", fill_value=0)

  # The place that predicts a token has its position less one.
  position_RM = jnp.take_along_axis(rows.positions_RT, rows.places_RM, axis=1)
  return {
    "index": index_RM,
    "length": of_response(length_BC),
    "shorter_length": of_response(shorter_BC),
    "prompt_length": jnp.where(is_real_RM, position_RM + 1 - index_RM, 0),
    "differs": rows.differs_RM,
  }
