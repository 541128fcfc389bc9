# SPDX-License-Identifier: Apache-2.0
"""Llama, Mistral, Mixtral, Granite; most families change Llama in places."""

from mrpo_jax.models.families.family import (
  ACTIVATIONS,
  Family,
  TensorNames,
  named,
)

TENSORS = TensorNames(
  layer="model.layers.{}",
  in_layer=dict(
    attention_norm="input_layernorm",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    out="self_attn.o_proj",
    query_norm="self_attn.q_norm",
    key_norm="self_attn.k_norm",
    mlp_norm="post_attention_layernorm",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
  ),
  around=dict(embed="model.embed_tokens", norm="model.norm", head="lm_head"),
)
EXPERTS = dict(
  experts="num_local_experts", experts_per_token="num_experts_per_tok"
)
DEFAULTS = dict(
  hidden_act="silu",
  rms_norm_eps=1e-6,
  tie_word_embeddings=False,
  max_position_embeddings=2048,
  bos_token_id=1,
  eos_token_id=2,
  rope_theta=10000.0,
  attention_bias=False,
  mlp_bias=False,
)


def attention_biases(values):
  """Fields of a family whose config has one flag for all four."""
  bias = values.flag("attention_bias")
  return dict(qkv_bias=bias, out_bias=bias)


def llama(values, fields):
  return attention_biases(values) | dict(
    mlp_bias=values.flag("mlp_bias"),
    activation=values.choice("hidden_act", ACTIVATIONS),
  )


def mistral(values, fields):
  window = values.optional("size", "sliding_window")
  return dict(
    layer_windows=(window or 0,) * fields["layers"] if window else (),
    activation=values.choice("hidden_act", ACTIVATIONS),
  )


def granite(values, fields):
  return llama(values, fields) | dict(
    embedding_scale=values.number("embedding_multiplier"),
    attention_scale=values.number("attention_multiplier"),
    residual_scale=values.number("residual_multiplier"),
    logits_scale=1.0 / values.number("logits_scaling"),
  )


LLAMA = Family(
  architectures=named("Llama"),
  tensors=TENSORS,
  traits=llama,
  defaults=DEFAULTS,
  only=dict(sliding_window=(None,)),
  whole_heads=True,
)
MISTRAL = Family(
  architectures=named("Mistral"),
  tensors=TENSORS,
  traits=mistral,
  defaults=DEFAULTS
  | dict(
    num_key_value_heads=8,
    sliding_window=4096,
    max_position_embeddings=131072,
  ),
)
MIXTRAL = Family(
  architectures=named("Mixtral"),
  tensors=TENSORS.but(
    router="block_sparse_moe.gate",
    expert_gate="block_sparse_moe.experts.{}.w1",
    expert_up="block_sparse_moe.experts.{}.w3",
    expert_down="block_sparse_moe.experts.{}.w2",
  ),
  traits=mistral,
  defaults=MISTRAL.defaults
  | dict(
    rms_norm_eps=1e-5,
    sliding_window=None,
    num_local_experts=8,
    num_experts_per_tok=2,
    rope_theta=1e6,
  ),
  only=dict(router_jitter_noise=(0.0,)),  # in training, which is off by default
  keys=EXPERTS,
)
GRANITE = Family(
  architectures=named("Granite"),
  tensors=TENSORS,
  traits=granite,
  defaults=DEFAULTS
  | dict(
    embedding_multiplier=1.0,
    attention_multiplier=1.0,
    residual_multiplier=1.0,
    logits_scaling=1.0,
  ),
)
