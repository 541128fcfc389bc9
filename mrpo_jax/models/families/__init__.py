# SPDX-License-Identifier: Apache-2.0
"""Model families of Hugging Face: one name a line, each from its own file."""

from mrpo_jax.models.families import (
  gemma,
  gpt2,
  gpt_neox,
  llama,
  olmo,
  phi,
  qwen,
  smollm,
  stablelm,
)

FAMILIES = {  # model_type of a config.json -> Family
  "llama": llama.LLAMA,
  "mistral": llama.MISTRAL,
  "mixtral": llama.MIXTRAL,
  "qwen2": qwen.QWEN2,
  "qwen3": qwen.QWEN3,
  "qwen3_moe": qwen.QWEN3_MOE,
  "gemma": gemma.GEMMA,
  "gemma2": gemma.GEMMA2,
  "gemma3_text": gemma.GEMMA3_TEXT,
  "phi3": phi.PHI3,
  "olmo2": olmo.OLMO2,
  "smollm3": smollm.SMOLLM3,
  "granite": llama.GRANITE,
  "stablelm": stablelm.STABLELM,
  "gpt_neox": gpt_neox.GPT_NEOX,
  "gpt2": gpt2.GPT2,
}
