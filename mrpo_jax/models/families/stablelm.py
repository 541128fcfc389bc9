# SPDX-License-Identifier: Apache-2.0
"""StableLM 2: LayerNorm, RoPE of a part of the head, a norm for each head."""

from mrpo_jax.models.families import llama
from mrpo_jax.models.families.family import ACTIVATIONS, Family, named


def stablelm(values, fields):
  return dict(
    norm="layer",
    qkv_bias=values.flag("use_qkv_bias"),
    parallel="one" if values.flag("use_parallel_residual") else None,
    qk_norm="heads" if values.flag("qk_layernorm") else None,
    activation=values.choice("hidden_act", ACTIVATIONS),
  )


STABLELM = Family(
  architectures=named("StableLm"),
  tensors=llama.TENSORS.but(
    query_norm="self_attn.q_layernorm.norms.{}",
    key_norm="self_attn.k_layernorm.norms.{}",
  ),
  traits=stablelm,
  defaults=llama.DEFAULTS
  | dict(
    layer_norm_eps=1e-5,
    partial_rotary_factor=0.25,
    num_key_value_heads=32,
    max_position_embeddings=4096,
    bos_token_id=0,
    eos_token_id=0,
    use_qkv_bias=False,
    qk_layernorm=False,
    use_parallel_residual=False,
  ),
  only=dict(head_dim=(None,)),
  keys=dict(norm_epsilon="layer_norm_eps"),
)
