# SPDX-License-Identifier: Apache-2.0
"""GPT-2: learned positions, LayerNorm, matrices stored [in, out]."""

from mrpo_jax.models.families.family import ACTIVATIONS, Family, TensorNames

TENSORS = TensorNames(
  layer="transformer.h.{}",
  in_layer=dict(
    attention_norm="ln_1",
    query="attn.c_attn",
    key="attn.c_attn",
    value="attn.c_attn",
    out="attn.c_proj",
    mlp_norm="ln_2",
    up="mlp.c_fc",
    down="mlp.c_proj",
  ),
  around=dict(
    embed="transformer.wte",
    positions="transformer.wpe",
    norm="transformer.ln_f",
    head="lm_head",
  ),
  inputs_first=True,
)


def gpt2(values, fields):
  return dict(
    norm="layer",
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    gated=False,
    learned_positions=True,
    ropes=(None,),
    activation=values.choice("activation_function", ACTIVATIONS),
  )


GPT2 = Family(
  architectures=("GPT2LMHeadModel", "GPT2Model"),
  tensors=TENSORS,
  traits=gpt2,
  defaults=dict(
    n_positions=1024,
    activation_function="gelu_new",
    layer_norm_epsilon=1e-5,
    bos_token_id=50256,
    eos_token_id=50256,
    tie_word_embeddings=True,
  ),
  only=dict(
    scale_attn_weights=(True,),
    scale_attn_by_inverse_layer_idx=(False,),
    head_dim=(None,),
    num_key_value_heads=(None,),
  ),
  keys=dict(
    width="n_embd",
    layers="n_layer",
    heads="n_head",
    mlp_width="n_inner",
    max_positions="n_positions",
    norm_epsilon="layer_norm_epsilon",
  ),
  ropes=(),
  mlp_factor=4,
)
