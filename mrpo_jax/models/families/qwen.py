# SPDX-License-Identifier: Apache-2.0
"""Qwen 2 and 2.5, Qwen 3 dense and with experts."""

from mrpo_jax.models.families import llama
from mrpo_jax.models.families.family import ACTIVATIONS, Family, named, windows

DEFAULTS = llama.DEFAULTS | dict(
  bos_token_id=None,
  eos_token_id=None,
  num_key_value_heads=32,
  max_position_embeddings=32768,
  use_sliding_window=False,
  sliding_window=4096,
)


def qwen2(values, fields):
  window = None
  if values.flag("use_sliding_window"):
    window = values.optional("size", "sliding_window")
  first = values.read("count", "max_window_layers", 28) if window else 0
  return dict(
    qkv_bias=True,
    layer_windows=windows(values, fields, window, lambda i: i >= first),
    activation=values.choice("hidden_act", ACTIVATIONS),
  )


def qwen3(values, fields):
  biases = llama.attention_biases(values)
  return qwen2(values, fields) | biases | dict(qk_norm="head")


def qwen3_moe(values, fields):
  window = None
  if values.flag("use_sliding_window"):
    window = values.optional("size", "sliding_window")
  return llama.attention_biases(values) | dict(
    qk_norm="head",
    layer_windows=(window,) * fields["layers"] if window else (),
    shares_sum_to_one=values.flag("norm_topk_prob"),
    activation=values.choice("hidden_act", ACTIVATIONS),
  )


QWEN2 = Family(
  architectures=named("Qwen2"),
  tensors=llama.TENSORS,
  traits=qwen2,
  defaults=DEFAULTS,
)
QWEN3 = Family(
  architectures=named("Qwen3"),
  tensors=llama.TENSORS,
  traits=qwen3,
  defaults=DEFAULTS | dict(head_dim=128),
)
QWEN3_MOE = Family(
  architectures=named("Qwen3Moe"),
  tensors=llama.TENSORS.but(
    router="mlp.gate",
    expert_gate="mlp.experts.{}.gate_proj",
    expert_up="mlp.experts.{}.up_proj",
    expert_down="mlp.experts.{}.down_proj",
  ),
  traits=qwen3_moe,
  defaults=DEFAULTS
  | dict(
    num_key_value_heads=4,
    moe_intermediate_size=768,
    num_local_experts=128,
    num_experts_per_tok=8,
    norm_topk_prob=False,
  ),
  # Layers of one model that differ are not computed.
  only=dict(decoder_sparse_step=(1,), mlp_only_layers=([], None)),
  keys=llama.EXPERTS | dict(mlp_width="moe_intermediate_size"),
  before=dict(num_local_experts="num_experts"),
)
