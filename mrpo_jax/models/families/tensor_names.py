# SPDX-License-Identifier: Apache-2.0
"""How each family's Hugging Face files name and lay out the weights."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class TensorNames:
  """Names of the stored tensors; leaves of one name share that tensor."""

  names: dict[
    str, str
  ]  # leaf of `parameters.table` -> name, "{}" for the layer
  inputs_first: bool = False  # matrices are [in, out], not torch's [out, in]
  interleaved: bool = False  # leaves that share a tensor alternate by head
  prefix: str = "model."  # bare decoders leave it out


def _names(layer, modules, around):
  """Weight and bias of every module of a layer, and what is around them."""
  names = dict(around)
  for leaf, module in modules.items():
    names[leaf] = f"{layer}.{module}.weight"
    names[f"{leaf}_bias"] = f"{layer}.{module}.bias"
  return names


def _llama(**changes):
  modules = dict(
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
  )
  around = dict(
    embed="model.embed_tokens.weight",
    norm="model.norm.weight",
    norm_bias="model.norm.bias",
    head="lm_head.weight",
  )
  return TensorNames(_names("model.layers.{}", {**modules, **changes}, around))


SANDWICH = dict(
  attention_out_norm="post_attention_layernorm",
  mlp_norm="pre_feedforward_layernorm",
  mlp_out_norm="post_feedforward_layernorm",
)
QKV = dict.fromkeys(("query", "key", "value"), "self_attn.qkv_proj")
GPT_NEOX = TensorNames(
  _names(
    "gpt_neox.layers.{}",
    dict.fromkeys(("query", "key", "value"), "attention.query_key_value")
    | dict(
      attention_norm="input_layernorm",
      out="attention.dense",
      mlp_norm="post_attention_layernorm",
      up="mlp.dense_h_to_4h",
      down="mlp.dense_4h_to_h",
    ),
    dict(
      embed="gpt_neox.embed_in.weight",
      norm="gpt_neox.final_layer_norm.weight",
      norm_bias="gpt_neox.final_layer_norm.bias",
      head="embed_out.weight",
    ),
  ),
  interleaved=True,
  prefix="gpt_neox.",
)
GPT2 = TensorNames(
  _names(
    "transformer.h.{}",
    dict.fromkeys(("query", "key", "value"), "attn.c_attn")
    | dict(
      attention_norm="ln_1",
      out="attn.c_proj",
      mlp_norm="ln_2",
      up="mlp.c_fc",
      down="mlp.c_proj",
    ),
    dict(
      embed="transformer.wte.weight",
      positions="transformer.wpe.weight",
      norm="transformer.ln_f.weight",
      norm_bias="transformer.ln_f.bias",
      head="lm_head.weight",
    ),
  ),
  inputs_first=True,
  prefix="transformer.",
)
LAYOUTS = {
  **dict.fromkeys(
    ("llama", "mistral", "qwen2", "qwen3", "gemma", "smollm3", "granite"),
    _llama(),
  ),
  **dict.fromkeys(("gemma2", "gemma3_text"), _llama(**SANDWICH)),
  "olmo2": _llama(**SANDWICH),
  "phi3": _llama(**QKV, **dict.fromkeys(("gate", "up"), "mlp.gate_up_proj")),
  "stablelm": _llama(
    query_norm="self_attn.q_layernorm.norms.{}",
    key_norm="self_attn.k_layernorm.norms.{}",
  ),
  "gpt_neox": GPT_NEOX,
  "gpt2": GPT2,
}
