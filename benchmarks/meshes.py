# SPDX-License-Identifier: Apache-2.0
"""Is training the same on every mesh?  Losses and gradient norms of 20 steps.

  python -m benchmarks.meshes [mesh ...]

A tiny model against two references, once with all of its weights trained and
once with an adapter, on one CPU device and on eight forced ones.
"""

import dataclasses
import functools
import itertools
import os
import sys

if "jax" not in sys.modules:  # the number is read when it is imported
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  forced = "--xla_force_host_platform_device_count=8"
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {forced}"

import jax
import numpy as np

from mrpo_jax import losses, parallel
from mrpo_jax.data.batches import Packing, training_batches
from mrpo_jax.data.encode import Encoded
from mrpo_jax.models import lora, parameters
from mrpo_jax.models.config import ModelConfig
from mrpo_jax.models.packed import Computation
from mrpo_jax.training import optimizer, train_state
from mrpo_jax.training.objective import Model, Objective
from mrpo_jax.training.stacked import stack
from mrpo_jax.training.step import compile_step

CONFIG = ModelConfig(
  vocab_size=64,
  width=32,
  layers=2,
  heads=8,
  kv_heads=8,
  head_dim=8,
  mlp_width=64,
)
ADAPTER = lora.Adapter(4, 8.0, ("query", "out", "up"), dropout=0.1)
BATCH, LENGTH = 8, 48  # pairs of a step, tokens of a row
STEPS, LR = 20, 3e-3


@dataclasses.dataclass(frozen=True)
class Case:
  """A mesh, and what differs on it from the defaults."""

  sizes: dict
  rules: dict | None = None
  reference_rules: dict | None = None  # beyond those
  kernel: str = "blockwise"


ALONE = Case(dict(data=1))
CASES = {
  "data 8": Case(dict(data=8)),
  "fsdp 8": Case(dict(data=1, fsdp=8)),
  "model 8": Case(dict(data=1, model=8)),
  "fsdp 4 x model 2": Case(dict(data=1, fsdp=4, model=2)),
  "data 2 x fsdp 2 x model 2": Case(dict(data=2, fsdp=2, model=2)),
  "data 2 x context 2 x model 2": Case(dict(data=2, context=2, model=2)),
  "fsdp 2 x context 4": Case(dict(data=1, fsdp=2, context=4)),
  "context 2, the oracle": Case(dict(data=2, context=2, model=2), kernel="xla"),
  "whole policy, split references": Case(
    dict(data=2, fsdp=2, model=2),
    rules=dict(embed="", kv_heads=""),
    reference_rules=dict(embed="fsdp,data"),
  ),
}


def mesh_of(case):
  """Of as many devices as the sizes ask for."""
  count = int(np.prod(list(case.sizes.values())))
  return parallel.make_mesh(**case.sizes, devices=jax.devices()[:count])


def curve(case, adapter=None, steps=STEPS):
  """(metrics of each step, TrainState) on that mesh."""
  mesh = mesh_of(case)
  rules = parallel.rules_of(case.rules)
  ref_rules = parallel.rules_of({**rules, **(case.reference_rules or {})})

  def model(rules, remat):
    partition = parallel.partition_of(mesh, rules)
    how = Computation(kernel=case.kernel, remat=remat, partition=partition)
    return Model(CONFIG, computation=how)

  def params(seed, rules):
    make = functools.partial(parameters.init, CONFIG)
    to = parallel.param_shardings(CONFIG, mesh, rules)
    return jax.jit(make, out_shardings=to)(jax.random.key(seed))

  reference = model(ref_rules, "none")
  objective = Objective(
    pairs=BATCH,
    policy=model(rules, "dots"),
    references=(reference, reference),
    names=("base", "second"),
    method=losses.build("mrpo", weights="uniform"),
  )
  table, policy = parameters.table(CONFIG), params(0, rules)
  if adapter is not None:
    table = lora.adapter_table(table, adapter)
    to = parallel.table_shardings(table, mesh, rules)
    make = functools.partial(lora.init_adapters, table)
    arrays = jax.jit(make, out_shardings=to)(jax.random.key(1))
    policy = lora.attach(policy, arrays, adapter)
  base, trained = lora.split(policy)
  transformation, _ = optimizer.make(peak_lr=LR, steps=steps)
  memory = objective.method.init(2)
  shardings = train_state.shardings(
    table, transformation, mesh, memory, rules=rules
  )
  create = functools.partial(
    train_state.create, transformation=transformation, method_state=memory
  )
  state = jax.jit(create, out_shardings=shardings)(trained)
  step = compile_step(
    objective, transformation, shardings, parallel.rows_sharding(mesh)
  )
  references = stack(
    objective.references, (params(0, ref_rules), params(2, ref_rules))
  )
  packing = Packing(batch=BATCH, length=LENGTH, rows=8)
  found = []
  batches = training_batches([_pairs()], packing, seed=0)
  for _, (views, given) in itertools.islice(batches, steps):
    views = tuple(parallel.global_rows(view, mesh) for view in views)
    state, metrics = step(state, base, references, views, given)
    found.append({name: float(value) for name, value in metrics.items()})
  return found, state


def _pairs():
  rng = np.random.default_rng(0)

  def draw():
    return rng.integers(3, CONFIG.vocab_size, rng.integers(1, 14)).tolist()

  return [Encoded(draw(), draw(), draw()) for _ in range(5 * BATCH)]


def apart(found, want):
  """{name: greatest difference}, of norms as a share where they exceed 1."""
  return {
    name: max(
      abs(a[name] - b[name]) / max(1.0, abs(b[name]))
      for a, b in zip(found, want, strict=True)
    )
    for name in ("loss", "grad_norm")
  }


def main(names):
  print("mesh | trained | first loss | last | apart: losses | gradient norms")
  for trained, adapter in (("all", None), ("adapter", ADAPTER)):
    want, _ = curve(ALONE, adapter)
    for name in names or CASES:
      found, _ = curve(CASES[name], adapter)
      ends = [f"{found[n]['loss']:.5f}" for n in (0, -1)]
      far = [f"{value:.1e}" for value in apart(found, want).values()]
      print(" | ".join((name, trained, *ends, *far)), flush=True)


if __name__ == "__main__":
  main(sys.argv[1:])
