# SPDX-License-Identifier: Apache-2.0
"""Gemma 1, Gemma 2, and the text model of Gemma 3."""

import math

from mrpo_jax.models.families import llama
from mrpo_jax.models.families.family import (
  ACTIVATIONS,
  FULL,
  ROPES,
  SLIDING,
  Family,
  layer_kinds,
  named,
  windows,
)
from mrpo_jax.models.families.rope import by_layer, read_rope

SANDWICH = llama.TENSORS.but(
  attention_out_norm="post_attention_layernorm",
  mlp_norm="pre_feedforward_layernorm",
  mlp_out_norm="post_feedforward_layernorm",
)
DEFAULTS = llama.DEFAULTS | dict(
  hidden_act="gelu_pytorch_tanh",
  hidden_activation="gelu_pytorch_tanh",
  tie_word_embeddings=True,
  head_dim=256,
  num_key_value_heads=16,
  max_position_embeddings=8192,
  bos_token_id=2,
  eos_token_id=1,
)
DEFAULTS_2 = DEFAULTS | dict(
  num_key_value_heads=4,
  query_pre_attn_scalar=256,
  sliding_window=4096,
  attn_logit_softcapping=50.0,
  final_logit_softcapping=30.0,
)


def gemma(values, fields):
  tanh = {**ACTIVATIONS, "gelu": "gelu_tanh"}
  return llama.attention_biases(values) | dict(
    activation=values.choice("hidden_act", tanh),
    norm_shift=1.0,
    embedding_scale=math.sqrt(fields["width"]),
  )


def gemma2(values, fields):
  window = values.optional("size", "sliding_window")
  return llama.attention_biases(values) | dict(
    activation=values.choice("hidden_activation", ACTIVATIONS),
    norm_shift=1.0,
    norms="both",
    embedding_scale=math.sqrt(fields["width"]),
    attention_scale=values.number("query_pre_attn_scalar") ** -0.5,
    attention_softcap=values.optional("number", "attn_logit_softcapping"),
    logits_softcap=values.optional("number", "final_logit_softcapping"),
    layer_windows=windows(values, fields, window, lambda i: i % 2 == 0),
  )


def gemma3(values, fields):
  pattern = values.read("size", "sliding_window_pattern", 6)
  window = values.optional("size", "sliding_window")
  kinds = layer_kinds(
    values, fields, lambda i: (i + 1) % pattern != 0 and window is not None
  )
  full, local = by_layer(values, FULL, SLIDING)
  local = {"rope_theta": values.number("rope_local_base_freq"), **local}
  return gemma2(values, fields) | dict(
    qk_norm="head",
    layer_windows=tuple(window if k == SLIDING else 0 for k in kinds),
    ropes=tuple(read_rope(values, fields, one, ROPES) for one in (full, local)),
    layer_ropes=tuple(int(k == SLIDING) for k in kinds),
  )


GEMMA = Family(
  architectures=named("Gemma"),
  tensors=llama.TENSORS,
  traits=gemma,
  defaults=DEFAULTS,
)
GEMMA2 = Family(
  architectures=named("Gemma2"),
  tensors=SANDWICH,
  traits=gemma2,
  defaults=DEFAULTS_2,
  whole_heads=True,
)
GEMMA3_TEXT = Family(
  architectures=("Gemma3ForCausalLM", "Gemma3TextModel"),
  tensors=SANDWICH,
  traits=gemma3,
  defaults=DEFAULTS_2
  | dict(
    max_position_embeddings=131072,
    attn_logit_softcapping=None,
    final_logit_softcapping=None,
    rope_theta=1e6,
    rope_local_base_freq=1e4,
  ),
  only=dict(attn_logit_softcapping=(None,)),  # stored and never computed with
  ropes=(),
)
