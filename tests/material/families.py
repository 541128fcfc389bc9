# SPDX-License-Identifier: Apache-2.0
"""Random models of other families, in folders as runs read them."""

import jax
import numpy as np

from mrpo_jax.models.families.read import config_from_hf
from tests.material.inputs import random_params, save

SMALL = dict(
  hidden_size=32,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=8,
  intermediate_size=48,
)
MIXTRAL = dict(
  SMALL, model_type="mixtral", num_local_experts=4, num_experts_per_tok=2
)
QWEN3_MOE = dict(
  SMALL,
  model_type="qwen3_moe",
  num_experts=8,
  num_experts_per_tok=3,
  moe_intermediate_size=16,
  norm_topk_prob=True,
)


def add_model(folder, name, values, tokenizer):
  """A random model of a family beside its tokenizer."""
  config = config_from_hf(values | {"vocab_size": len(tokenizer)})
  params = random_params(config, seed=3)
  leaves, treedef = jax.tree.flatten(jax.device_get(params))
  rng = np.random.default_rng(4)
  leaves = [
    leaf + np.float32(0.2) * rng.normal(size=leaf.shape).astype(leaf.dtype)
    for leaf in leaves
  ]
  save(folder / name, config, jax.tree.unflatten(treedef, leaves), tokenizer)
