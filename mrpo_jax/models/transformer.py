# SPDX-License-Identifier: Apache-2.0
"""The decoder as functions of plain arrays: tokens in, hidden states out."""

import functools

import jax
import jax.numpy as jnp

from mrpo_jax.models import attention
from mrpo_jax.shapes import check, widen

REMAT = {
  "none": None,  # keep every activation
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}


def project(x, leaf, einsum):
  """The product of activations with a weight, in the activations' dtype."""
  return jnp.einsum(einsum, x, leaf.astype(x.dtype))


def rms_norm(x_RTD, scale_D, epsilon):
  wide_RTD = widen(x_RTD)
  square_RT1 = jnp.mean(jnp.square(wide_RTD), axis=-1, keepdims=True)
  normed_RTD = wide_RTD * jax.lax.rsqrt(square_RT1 + epsilon)
  return (normed_RTD * scale_D.astype(wide_RTD.dtype)[None, None]).astype(
    x_RTD.dtype
  )


def rotary(config, positions_RT, dtype):
  """cos and sin of each position's angles: [R, T, 1, E / 2]."""
  E = config.head_dim
  power_E = jnp.arange(0, E, 2, dtype=dtype) / E
  frequency_E = jnp.asarray(config.rope_theta, dtype) ** -power_E
  angle_RTE = positions_RT[:, :, None].astype(dtype) * frequency_E[None, None]
  return jnp.cos(angle_RTE)[:, :, None], jnp.sin(angle_RTE)[:, :, None]


def rotate(x_RTHE, cos_RT1E, sin_RT1E):
  """RoPE in the halves-apart layout of Hugging Face checkpoints."""
  left, right = jnp.split(widen(x_RTHE), 2, axis=-1)
  turned = (
    left * cos_RT1E - right * sin_RT1E,
    right * cos_RT1E + left * sin_RT1E,
  )
  return jnp.concatenate(turned, axis=-1).astype(x_RTHE.dtype)


def block(config, kernel, x_RTD, weights, cos_RT1E, sin_RT1E, mask_RTS):
  """One layer: attention and MLP, each on a normed residual branch."""
  with jax.named_scope("attention"):
    y_RTD = rms_norm(x_RTD, weights["attention_norm"], config.norm_epsilon)
    query_RTHE = project(y_RTD, weights["query"], "RTD,DHE->RTHE")
    key_RSGE = project(y_RTD, weights["key"], "RTD,DGE->RTGE")
    value_RSGE = project(y_RTD, weights["value"], "RTD,DGE->RTGE")
    query_RTHE = rotate(query_RTHE, cos_RT1E, sin_RT1E)
    key_RSGE = rotate(key_RSGE, cos_RT1E, sin_RT1E)
    seen_RTHE = kernel(query_RTHE, key_RSGE, value_RSGE, mask_RTS)
    x_RTD = x_RTD + project(seen_RTHE, weights["out"], "RTHE,HED->RTD")
  with jax.named_scope("mlp"):
    y_RTD = rms_norm(x_RTD, weights["mlp_norm"], config.norm_epsilon)
    gate_RTF = project(y_RTD, weights["gate"], "RTD,DF->RTF")
    up_RTF = project(y_RTD, weights["up"], "RTD,DF->RTF")
    y_RTF = jax.nn.silu(gate_RTF) * up_RTF
    return x_RTD + project(y_RTF, weights["down"], "RTF,FD->RTD")


def hidden(
  config,
  params,
  tokens_RT,
  positions_RT,
  mask_RTS,
  *,
  kernel="xla",
  remat="none",
  dtype=None,
):
  """Final hidden states, normed: what the head projects.

  Args:
    config: ModelConfig.
    params: tree of arrays in the shape of `spec.table(config)`.
    tokens_RT: token ids; padding may hold any valid id.
    positions_RT: place of each token in its own sequence, from 0.
    mask_RTS: see `attention.visible`.
    kernel: a key of `attention.KERNELS`.
    remat: a key of REMAT: what the backward pass keeps of each layer.
    dtype: of the activations; None means that of the parameters.

  Returns:
    hidden_RTD.
  """
  check("R T", tokens_RT, "R T", positions_RT, "R T T", mask_RTS)
  dtype = dtype or params["embed"].dtype
  wide = jnp.promote_types(dtype, jnp.float32)
  cos_RT1E, sin_RT1E = rotary(config, positions_RT, wide)
  step = functools.partial(block, config, attention.KERNELS[kernel])
  if remat != "none":
    # prevent_cse is needless under scan and would cost fusions.
    step = jax.checkpoint(step, policy=REMAT[remat], prevent_cse=False)
  x_RTD = jnp.take(params["embed"], tokens_RT, axis=0).astype(dtype)
  x_RTD, _ = jax.lax.scan(
    lambda x_RTD, weights: (
      step(x_RTD, weights, cos_RT1E, sin_RT1E, mask_RTS),
      None,
    ),
    x_RTD,
    params["blocks"],
  )
  return rms_norm(x_RTD, params["norm"], config.norm_epsilon)


def head(params):
  """head_VD: the vocabulary projection; the embedding where it is tied."""
  return params.get("head", params["embed"])


def apply(config, params, tokens_BT, positions_BT=None, segments_BT=None):
  """Logits of ordinary causal sequences: for checks and generation.

  Args:
    config: ModelConfig.
    params: tree of arrays in the shape of `spec.table(config)`.
    tokens_BT: token ids.
    positions_BT: places within each sequence; None counts from the start of
      each run of equal segments.
    segments_BT: equal numbers see each other, 0 is padding; None means that
      every row is one sequence.

  Returns:
    logits_BTV: float32 or better.
  """
  check("B T", tokens_BT)
  if segments_BT is None:
    segments_BT = jnp.ones_like(tokens_BT)
  if positions_BT is None:
    positions_BT = _positions(segments_BT)
  check("B T", tokens_BT, "B T", positions_BT, "B T", segments_BT)
  mask_BTS = attention.visible(segments_BT, jnp.zeros_like(segments_BT))
  hidden_BTD = hidden(
    config, params, tokens_BT, positions_BT, mask_BTS, kernel="dense"
  )
  return jnp.einsum(
    "BTD,VD->BTV",
    hidden_BTD,
    head(params).astype(hidden_BTD.dtype),
    preferred_element_type=jnp.promote_types(hidden_BTD.dtype, jnp.float32),
  )


def _positions(segments_BT):
  place_1T = jnp.arange(segments_BT.shape[1])[None]
  starts_BT = jnp.concatenate(
    [
      jnp.ones_like(segments_BT[:, :1], bool),
      segments_BT[:, 1:] != segments_BT[:, :-1],
    ],
    axis=1,
  )
  start_BT = jax.lax.cummax(jnp.where(starts_BT, place_1T, 0), axis=1)
  return place_1T - start_BT
