# SPDX-License-Identifier: Apache-2.0
"""OLMo 2: norms after each branch, and of queries and keys over all heads."""

from mrpo_jax.models.families import llama
from mrpo_jax.models.families.family import ACTIVATIONS, Family, named


def olmo2(values, fields):
  return llama.attention_biases(values) | dict(
    norms="after",
    qk_norm="all",
    activation=values.choice("hidden_act", ACTIVATIONS),
  )


OLMO2 = Family(
  architectures=named("Olmo2"),
  tensors=llama.TENSORS.but(
    attention_out_norm="post_attention_layernorm",
    mlp_out_norm="post_feedforward_layernorm",
  ),
  traits=olmo2,
  defaults=llama.DEFAULTS
  | dict(rms_norm_eps=1e-5, bos_token_id=None, eos_token_id=50279),
)
