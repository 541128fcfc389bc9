# SPDX-License-Identifier: Apache-2.0
"""Phi 3, 3.5, 4 and 4 mini: fused matrices and RoPE of a part of the head."""

from mrpo_jax.models.families import llama
from mrpo_jax.models.families.family import Family, named

QKV, GATE_UP = "self_attn.qkv_proj", "mlp.gate_up_proj"

PHI3 = Family(
  architectures=named("Phi3"),
  tensors=llama.TENSORS.but(
    query=QKV, key=QKV, value=QKV, gate=GATE_UP, up=GATE_UP
  ),
  traits=llama.mistral,
  defaults=llama.DEFAULTS
  | dict(
    max_position_embeddings=4096,
    original_max_position_embeddings=4096,
    rms_norm_eps=1e-5,
    eos_token_id=32000,
    partial_rotary_factor=1.0,
  ),
  ropes=("default", "longrope"),
)
