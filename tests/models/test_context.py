# SPDX-License-Identifier: Apache-2.0
"""Tokens of a row over several devices: the same model, in less memory."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mrpo_jax import parallel
from mrpo_jax.data import pack
from mrpo_jax.data.encode import Encoded
from mrpo_jax.models import packed, parameters
from mrpo_jax.models.config import ModelConfig
from mrpo_jax.models.partition import WHOLE
from mrpo_jax.performance import hlo_work
from mrpo_jax.rows import micro_batch

CONFIG = ModelConfig(
  vocab_size=96,
  width=32,
  layers=2,
  heads=8,
  kv_heads=4,
  head_dim=4,
  mlp_width=48,
)
FEW_KEYS = dataclasses.replace(CONFIG, kv_heads=2)
WINDOWS = dataclasses.replace(
  CONFIG, layer_windows=(20, 0), qk_norm="head", attention_softcap=2.0
)
EXPERTS = dataclasses.replace(CONFIG, experts=4, experts_per_token=2)
PAIRS = 8
SLOW = pytest.mark.slow


@functools.cache
def rows_of(T, longest):
  """Rows [8, T] of eight pairs, several in a row where there is room."""
  rng = np.random.default_rng(0)

  def draw(n):
    return rng.integers(3, 90, rng.integers(n // 2, n)).tolist()

  pairs = [Encoded(*map(draw, longest)) for _ in range(PAIRS)]
  slots = 2 * np.arange(PAIRS)
  rows = pack.pack(pairs, length=T, rows=8, batches=1, slots=slots)
  return micro_batch(jax.tree.map(jnp.asarray, rows), 0)


def gradient(config, partition, rows, params, against):
  """((log p and KL of a pair, figures), gradient) as a training step has it."""
  how = packed.Computation(
    "blockwise", remat="full", partition=partition, chunk=32
  )

  def total(params):
    figures = packed.token_figures(
      config, params, rows, PAIRS, how, against=(config, against, how)
    )
    figures = {
      name: packed.per_response(value_RM, rows.slots_RM, PAIRS)
      for name, value_RM in figures.items()
    }
    return jnp.sum(figures["logp"] + figures["kl"]) / PAIRS, figures

  return jax.value_and_grad(total, has_aux=True)(params)


def compiled(config, sizes, rows, rules=None):
  """The compiled `gradient` on a mesh, its weights split, and its mesh."""
  count = int(np.prod(list(sizes.values())))
  mesh = parallel.make_mesh(**sizes, devices=jax.devices()[:count])
  to = parallel.param_shardings(config, mesh, rules)
  of_rows = NamedSharding(mesh, PartitionSpec(parallel.ROWS))
  partition = parallel.partition_of(mesh, rules)
  run = jax.jit(
    functools.partial(gradient, config, partition),
    in_shardings=(of_rows, to, to),
    out_shardings=(None, to),
  )
  params = parameters.abstract(config)
  return run.lower(rows, params, params).compile(), mesh


@functools.cache
def alone(config):
  params = [parameters.init(config, jax.random.key(seed)) for seed in (0, 1)]
  run = jax.jit(functools.partial(gradient, config, WHOLE))
  return params, run(rows_of(128, (40, 24, 24)), *params)


@pytest.mark.parametrize(
  "config,sizes,rules",
  [
    (FEW_KEYS, dict(data=1, fsdp=2, context=4), None),
    pytest.param(*(CONFIG, dict(data=2, fsdp=2, context=2), None), marks=SLOW),
    pytest.param(
      *(EXPERTS, dict(data=2, context=2, model=2), None), marks=SLOW
    ),
    pytest.param(
      *(WINDOWS, dict(data=1, context=4, model=2), dict(kv_heads="")),
      marks=SLOW,
    ),
  ],
)
def test_a_model_is_the_same(config, sizes, rules):
  params, want = alone(config)
  rows = rows_of(128, (40, 24, 24))
  assert int(rows.segments_RT.max()) > 1  # several pairs in a row
  run, mesh = compiled(config, sizes, rows, rules)
  of_rows = NamedSharding(mesh, PartitionSpec(parallel.ROWS))
  to = parallel.param_shardings(config, mesh, rules)
  given = (jax.device_put(one, to) for one in params)
  found = run(jax.device_put(rows, of_rows), *given)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


T = 1024


@functools.cache
def long(context):
  rows = rows_of(T, (400, 200, 200))
  return compiled(CONFIG, dict(data=1, context=context), rows)


def test_no_array_is_as_large_as_a_row_squared():
  text = long(4)[0].as_text()
  assert "ulysses" in text and "blockwise_gradient" in text
  shapes = {
    tuple(map(int, sizes.split(",")))
    for sizes in re.findall(r"\w\d+\[([0-9,]+)\]", text)
  }
  assert max(map(np.prod, shapes)) < T * T
  assert not [sizes for sizes in shapes if sizes.count(T) > 1]


def test_what_devices_exchange_around_attention():
  run, mesh = long(4)
  found = [
    one
    for one in hlo_work.work(run.as_text(), dict(mesh.shape)).collectives
    if "ulysses" in one.scope
  ]
  assert {(one.kind, one.axes) for one in found} == {
    ("all-to-all", ("context",))
  }
  # Queries, keys, values and what comes out: forward, computed again and
  # backward; the reference forward alone.
  assert sum(one.times for one in found) == 4 * 4 * CONFIG.layers
  tokens, share = 8 * T // 4, 3 / 4  # R rows; a quarter stays where it is
  values = 2 * (CONFIG.heads + CONFIG.kv_heads) * CONFIG.head_dim
  want = 4 * CONFIG.layers * 4 * tokens * share * values
  assert sum(one.times * one.bytes for one in found) == want


def test_a_device_of_a_shared_row_takes_less():
  one, four = (long(context)[0].memory_analysis() for context in (1, 4))
  # A quarter of the weights, whose gradients come out, but for some norms.
  assert four.output_size_in_bytes < 0.26 * one.output_size_in_bytes
  # Of activations too; what the head takes by place is whole on every device.
  assert four.temp_size_in_bytes < 0.3 * one.temp_size_in_bytes
