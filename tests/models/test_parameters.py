# SPDX-License-Identifier: Apache-2.0
"""The table of weights: its leaves, their order, and how they start."""

import dataclasses

import jax
import numpy as np
import pytest

from mrpo_jax.models import parameters
from mrpo_jax.models.config import ModelConfig

CONFIG = ModelConfig(
  vocab_size=64,
  width=256,
  layers=3,
  heads=4,
  kv_heads=2,
  head_dim=80,
  mlp_width=512,
)


def leaves_of(**changes):
  table = parameters.table(dataclasses.replace(CONFIG, **changes))
  return " ".join(table), " ".join(table["blocks"])


@pytest.mark.parametrize(
  "changes,around,blocks",
  [
    (
      {},
      "embed blocks norm head",
      "attention_norm query key value out mlp_norm gate up down",
    ),
    (
      dict(
        tied=True, norms="both", qk_norm="head", norm="layer", qkv_bias=True
      ),
      "embed blocks norm norm_bias",
      "attention_norm attention_norm_bias query query_bias key key_bias value "
      "value_bias query_norm key_norm out attention_out_norm "
      "attention_out_norm_bias mlp_norm mlp_norm_bias gate up down "
      "mlp_out_norm mlp_out_norm_bias",
    ),
    (
      dict(
        learned_positions=True,
        norms="after",
        gated=False,
        out_bias=True,
        mlp_bias=True,
      ),
      "embed positions blocks norm head",
      "query key value out out_bias attention_out_norm up up_bias down "
      "down_bias mlp_out_norm",
    ),
    (
      dict(parallel="one"),
      "embed blocks norm head",
      "attention_norm query key value out gate up down",
    ),
  ],
)
def test_leaves_stand_in_the_order_of_the_decoder(changes, around, blocks):
  # Of those that share a stored tensor it says which comes first.
  assert leaves_of(**changes) == (around, blocks)


@pytest.mark.parametrize(
  "qk_norm,query,key",
  [
    ("head", (3, 80), (3, 80)),
    ("heads", (3, 4, 80), (3, 2, 80)),
    ("all", (3, 4, 80), (3, 2, 80)),
  ],
)
def test_norms_of_queries_and_keys(qk_norm, query, key):
  config = dataclasses.replace(CONFIG, qk_norm=qk_norm)
  blocks = parameters.table(config)["blocks"]
  assert blocks["query_norm"].shape == query
  assert blocks["key_norm"].shape == key


def test_every_leaf_starts_as_it_says():
  config = dataclasses.replace(
    CONFIG, norm="layer", norm_shift=1.0, qkv_bias=True, learned_positions=True
  )
  params = parameters.init(config, jax.random.key(0))
  blocks = params["blocks"]
  spread = {
    # 1 / sqrt(inputs); what ends a branch, over sqrt(2 x 3 layers) too.
    "query": 256**-0.5,
    "up": 256**-0.5,
    "out": (320 * 6) ** -0.5,
    "down": (512 * 6) ** -0.5,
  }
  for name, std in spread.items():
    assert np.std(blocks[name]) == pytest.approx(std, rel=0.02), name
  for name in ("embed", "positions", "head"):
    assert np.std(params[name]) == pytest.approx(0.02, rel=0.02), name
  # A norm is a factor of shift + weight.
  assert not np.any(params["norm"]) and not np.any(blocks["mlp_norm"])
  assert not np.any(params["norm_bias"]) and not np.any(blocks["key_bias"])
  plain = parameters.init(CONFIG, jax.random.key(0), "bfloat16")
  assert np.all(np.asarray(plain["norm"], np.float32) == 1.0)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(plain)} == {"bfloat16"}
  shapes = jax.tree.map(lambda leaf: leaf.shape, params)
  assert shapes == jax.tree.map(lambda x: x.shape, parameters.abstract(config))


def test_the_start_does_not_depend_on_jax_enable_x64():
  specs = {"embed": parameters.ArraySpec((3, 4), (None, None), scale=0.02)}
  one = parameters.init_table(specs, jax.random.key(0))
  with jax.enable_x64(True):
    two = parameters.init_table(specs, jax.random.key(0))
  np.testing.assert_array_equal(one["embed"], two["embed"])


def test_the_parameters_of_llama_2_are_counted():
  llama = ModelConfig(
    vocab_size=32000,
    width=4096,
    layers=32,
    heads=32,
    kv_heads=32,
    head_dim=128,
    mlp_width=11008,
  )
  assert parameters.count_parameters(llama) == 6_738_415_616
  tied = dataclasses.replace(llama, tied=True)
  assert parameters.count_parameters(tied) == 6_738_415_616 - 32000 * 4096
