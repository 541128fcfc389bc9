# SPDX-License-Identifier: Apache-2.0
"""GPT-NeoX and Pythia: LayerNorm, biases, parallel branches, fused q, k, v."""

from mrpo_jax.models.families import llama
from mrpo_jax.models.families.family import (
  ACTIVATIONS,
  Family,
  TensorNames,
  named,
)

TENSORS = TensorNames(
  layer="gpt_neox.layers.{}",
  in_layer=dict(
    attention_norm="input_layernorm",
    query="attention.query_key_value",
    key="attention.query_key_value",
    value="attention.query_key_value",
    out="attention.dense",
    mlp_norm="post_attention_layernorm",
    up="mlp.dense_h_to_4h",
    down="mlp.dense_4h_to_h",
  ),
  around=dict(
    embed="gpt_neox.embed_in",
    norm="gpt_neox.final_layer_norm",
    head="embed_out",
  ),
  interleaved=True,
)


def gpt_neox(values, fields):
  return llama.attention_biases(values) | dict(
    norm="layer",
    mlp_bias=True,
    gated=False,
    parallel="two" if values.flag("use_parallel_residual") else None,
    activation=values.choice("hidden_act", ACTIVATIONS),
  )


GPT_NEOX = Family(
  architectures=named("GPTNeoX"),
  tensors=TENSORS,
  traits=gpt_neox,
  defaults=llama.DEFAULTS
  | dict(
    hidden_act="gelu",
    layer_norm_eps=1e-5,
    partial_rotary_factor=0.25,
    bos_token_id=0,
    attention_bias=True,
    use_parallel_residual=True,
  ),
  only=dict(head_dim=(None,), num_key_value_heads=(None,)),
  keys=dict(norm_epsilon="layer_norm_eps"),
)
