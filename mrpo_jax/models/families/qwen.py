# SPDX-License-Identifier: Apache-2.0
"""Qwen 2 and 2.5, and the dense Qwen 3."""

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
  first = values.read("size", "max_window_layers", 28) if window else 0
  return dict(
    qkv_bias=True,
    layer_windows=windows(values, fields, window, lambda i: i >= first),
    activation=values.choice("hidden_act", ACTIVATIONS),
  )


def qwen3(values, fields):
  biases = llama.attention_biases(values)
  return qwen2(values, fields) | biases | dict(qk_norm="head")


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
