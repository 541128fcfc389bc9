# SPDX-License-Identifier: Apache-2.0
"""A small model with adapters whose `b` is away from zero."""

import functools

import jax
import jax.numpy as jnp

from mrpo_jax.models import lora, parameters, transformer
from mrpo_jax.models.config import ModelConfig

CONFIG = ModelConfig(
  vocab_size=64,
  width=32,
  layers=2,
  heads=4,
  kv_heads=2,
  head_dim=8,
  mlp_width=64,
)
TABLE = parameters.table(CONFIG)
ADAPTER = lora.Adapter(rank=4, alpha=8.0, targets=("query", "out", "down"))


def params_of(seed=0, dtype=jnp.float32):
  return parameters.init(CONFIG, jax.random.key(seed), dtype)


def adapters_of(adapter=ADAPTER, seed=1, trained=True):
  """Arrays of an adapter, `b` away from zero where it is `trained`."""
  table = lora.adapter_table(TABLE, adapter)
  arrays = lora.init_adapters(table, jax.random.key(seed))
  if trained:
    arrays = jax.tree.map(
      lambda array: (
        array + 0.1 * jax.random.normal(jax.random.key(7), array.shape)
      ),
      arrays,
    )
  return arrays


def adapted(trained=True, params=None, adapter=ADAPTER):
  params = params_of() if params is None else params
  return lora.attach(params, adapters_of(adapter, trained=trained), adapter)


TOKENS_BT = jnp.arange(24).reshape(2, 12) * 5 % 64
logits = jax.jit(functools.partial(transformer.apply, CONFIG))
