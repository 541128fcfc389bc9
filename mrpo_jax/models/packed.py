# SPDX-License-Identifier: Apache-2.0
"""Packed rows of pairs, and the log-probability of each response in them."""

import dataclasses

import jax
import jax.numpy as jnp

from mrpo_jax.models import head, transformer
from mrpo_jax.models.attention.layout import RowLayout
from mrpo_jax.models.partition import WHOLE, Partition
from mrpo_jax.rows import micro_batch, micro_batches, scope
from mrpo_jax.shapes import CHOSEN, check


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
NONE = jnp.iinfo(jnp.int32).max  # no response


def token_figures(
  config,
  params,
  rows,
  pairs,
  computation=DEFAULT,
  *,
  also=(),
  against=None,
  prompts=False,
):
  """Figures of every scored token of the rows, under a model.

  Args:
    config: ModelConfig.
    params: its parameters.
    rows: Rows without the axis A.
    pairs: B, static.
    computation: Computation.
    also: further figures; see `head.token_figures`; and "value", of a value
      head, the number before each token: of the state that predicts it.
      Gradients flow to the head and to the decoder under it.
    against: (config, params, Computation) of a reference with the same
      vocabulary, run on the same rows; see `head.token_figures`.
    prompts: also `prompt_BD`, see `prompt_states`.

  Returns:
    dict of value_RM, `logp` among them.
  """
  check(tokens_RT=rows.tokens_RT, slots_RM=rows.slots_RM)

  def scored(config, params, how):
    hidden_RTD = _hidden(config, params, rows, how)
    hidden_RMD = jnp.take_along_axis(
      hidden_RTD, rows.places_RM[:, :, None], axis=1
    )
    return hidden_RMD, transformer.head(params)

  used = jnp.max(jnp.sum(rows.slots_RM < 2 * pairs, axis=1))
  ref_config, _, ref_computation = against or (config, None, computation)
  hidden_RMD, head_VD = scored(config, params, computation)
  figures = head.token_figures(
    hidden_RMD,
    head_VD,
    rows.targets_RM,
    used,
    also=tuple(name for name in also if name != "value"),
    against=None if against is None else scored(*against),
    softcaps=(config.logits_softcap, ref_config.logits_softcap),
    chunk=computation.chunk,
    vocabulary=computation.vocabulary,
    partitions=(computation.partition, ref_computation.partition),
  )
  if "value" in also:
    figures["value"] = _numbers(hidden_RMD, params["value_head"])
  if prompts:
    figures["prompt_BD"] = prompt_states(hidden_RMD, rows, pairs)
  return figures


def prompt_states(hidden_RMD, rows, pairs):
  """prompt_BD: the state of every prompt's last token, without a gradient.

  It is the one that predicts the first token of the chosen response; 0 for a
  pair that does not stand in the rows.
  """
  is_first_RM = _starts(rows.slots_RM) & (rows.slots_RM < 2 * pairs)
  first_RMD = jnp.where(is_first_RM[:, :, None], hidden_RMD, 0.0)
  first_BCD = per_response(first_RMD, rows.slots_RM, pairs)
  return jax.lax.stop_gradient(first_BCD[:, CHOSEN])


def _starts(slots_RM):
  """Is this the first token of a response?"""
  return jnp.concatenate(
    [
      jnp.ones_like(slots_RM[:, :1], bool),
      slots_RM[:, 1:] != slots_RM[:, :-1],
    ],
    axis=1,
  )


def _numbers(hidden_RTD, head_1D):
  """number_RT: a head of one number at every state, float32 or better."""
  wide = jnp.promote_types(hidden_RTD.dtype, jnp.float32)
  return jnp.einsum(
    "RTD,D->RT",
    hidden_RTD.astype(wide),
    head_1D[0].astype(wide),
    precision="highest",
  )


def _hidden(config, params, rows, how):
  """hidden_RTD of the rows, computed as that Computation says."""
  return transformer.hidden(
    config,
    params,
    rows.tokens_RT,
    RowLayout(rows.positions_RT, rows.segments_RT, rows.branches_RT),
    kernel=how.kernel,
    remat=how.remat,
    dtype=how.dtype,
    partition=how.partition,
  )


def rewards(config, params, rows, pairs, computation=DEFAULT):
  """reward_BC: the scalar head at the last token of every response.

  Args:
    config: ModelConfig with `head="scalar"`.
    params: its parameters.
    rows: Rows without the axis A.
    pairs: B, static.
    computation: Computation.

  Returns:
    float32 or better; 0 for a response that does not stand in the rows.
  """
  hidden_RTD = _hidden(config, params, rows, computation)
  value_RT = _numbers(hidden_RTD, params["score"])
  slot_RT = _response_slots(rows)
  next_RT = jnp.roll(slot_RT, -1, axis=1).at[:, -1].set(NONE)
  is_last_RT = slot_RT != next_RT
  return per_response(jnp.where(is_last_RT, value_RT, 0.0), slot_RT, pairs)


def _response_slots(rows):
  """slot_RT: the response that each token is part of, NONE for the others.

  Tokens of responses are scored in the order in which they stand.
  """
  is_response_RT = (rows.segments_RT > 0) & (rows.branches_RT > 0)
  scored_RT = jnp.cumsum(is_response_RT, axis=1) - 1
  slot_RT = jnp.take_along_axis(
    rows.slots_RM, jnp.maximum(scored_RT, 0), axis=1
  )
  return jnp.where(is_response_RT, slot_RT, NONE)


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
    value: [..., M], [..., M, K] or [..., M, D], of every scored token.
    slots: [..., M], see Rows.
    pairs: B, static.

  Returns:
    sum_BC, sum_BCK or sum_BCD.
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
  starts_RM = _starts(rows.slots_RM)
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
