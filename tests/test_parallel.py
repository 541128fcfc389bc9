# SPDX-License-Identifier: Apache-2.0
"""Mesh, rules, and the rows that each process reads."""

import collections
import dataclasses

import jax
import numpy as np
import pytest

from mrpo_jax import parallel
from mrpo_jax.errors import InputError
from mrpo_jax.models import parameters
from mrpo_jax.models.config import ModelConfig

CONFIG = ModelConfig(
  vocab_size=64,
  width=16,
  layers=2,
  heads=4,
  kv_heads=2,
  head_dim=4,
  mlp_width=32,
)


def test_minus_one_takes_what_is_left():
  mesh = parallel.make_mesh(fsdp=2, context=2)
  assert dict(mesh.shape) == dict(data=2, fsdp=2, context=2, model=1)
  assert parallel.row_shards(parallel.make_mesh(fsdp=2, model=2)) == 4


@pytest.mark.parametrize(
  "sizes", [dict(data=3), dict(data=0), dict(data=-1, fsdp=-1), dict(model=3)]
)
def test_a_mesh_that_does_not_fit_is_refused(sizes):
  with pytest.raises(InputError, match="mesh"):
    parallel.make_mesh(**sizes)


def test_the_same_seed_gives_the_same_parameters_on_every_mesh():
  one = parameters.init(CONFIG, jax.random.key(0))
  mesh = parallel.make_mesh(data=2, fsdp=2, model=2)
  shardings = parallel.param_shardings(CONFIG, mesh)
  many = jax.jit(
    lambda key: parameters.init(CONFIG, key), out_shardings=shardings
  )(jax.random.key(0))
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_dimension_that_does_not_divide_names_its_array():
  mesh = parallel.make_mesh(model=4, data=2)
  with pytest.raises(
    InputError, match=r"blocks.key: 2 does not divide.*model=4"
  ):
    parallel.param_shardings(CONFIG, mesh)
  parallel.param_shardings(CONFIG, mesh, {"kv_heads": ""})
  mesh = parallel.make_mesh(data=4, fsdp=2)
  rules = {"heads": "data", "mlp": ("fsdp", "data"), "embed": None}
  shardings = parallel.param_shardings(CONFIG, mesh, rules)
  assert shardings["blocks"]["gate"].shard_shape((2, 16, 32)) == (2, 16, 4)
  with pytest.raises(InputError, match=r"norm.*12 .*fsdp=2 \* mesh.data=4"):
    shape = dataclasses.replace(CONFIG, width=12)
    parallel.param_shardings(shape, mesh, {"embed": "fsdp,data"})


def test_a_mesh_axis_serves_one_axis_of_an_array():
  mesh = parallel.make_mesh()
  with pytest.raises(
    InputError,
    match=r"blocks\..*mesh.model twice, for its axes [a-z]+ and [a-z]+",
  ):
    rules = {"embed": "fsdp, model", "vocab": ""}
    parallel.param_shardings(CONFIG, mesh, rules)


def test_context_serves_the_first_axis_that_names_it():
  mesh = parallel.make_mesh(data=1, fsdp=2, context=2, model=2)
  split = parallel.param_shardings(CONFIG, mesh)
  assert split["embed"].shard_shape((64, 16)) == (16, 8)
  assert split["blocks"]["gate"].shard_shape((2, 16, 32)) == (2, 4, 16)
  assert split["blocks"]["out"].shard_shape((2, 4, 4, 16)) == (2, 2, 4, 4)
  split = parallel.param_shardings(CONFIG, mesh, dict(mlp="model,context"))
  assert split["blocks"]["gate"].shard_shape((2, 16, 32)) == (2, 4, 16)
  assert split["blocks"]["down"].shard_shape((2, 32, 16)) == (2, 8, 8)
  # Of activations it splits tokens, and vocabulary where they are whole.
  rules = dict(heads="model,context", kv_heads="context")
  partition = parallel.partition_of(mesh, rules)
  assert (partition.heads, partition.kv_heads) == (("model",), ())
  assert (partition.context, partition.embed) == (("context",), ("fsdp",))
  assert partition.vocab == ("model", "context")


@pytest.mark.parametrize(
  "changes,message",
  [
    ({"width": "fsdp"}, "rules.width is not known; known here: vocab, embed"),
    ({"embed": "rows"}, "rules.embed: the mesh has no axis 'rows'; .* context"),
    ({"embed": "fsdp,fsdp"}, "rules.embed uses an axis twice"),
  ],
)
def test_rules_know_their_axes(changes, message):
  with pytest.raises(InputError, match=message):
    parallel.rules_of(changes)


def test_rows_take_their_axes_first():
  mesh = parallel.make_mesh(data=2, fsdp=2, model=2)
  rules = dict(vocab="data,model", embed="fsdp,context", kv_heads="")
  partition = parallel.partition_of(mesh, rules)
  assert (partition.vocab, partition.embed) == (("model",), ("fsdp",))
  assert (partition.heads, partition.kv_heads) == (("model",), ())
  one = parallel.make_mesh(devices=jax.devices()[:1])
  assert parallel.partition_of(one).mesh is None


Device = collections.namedtuple("Device", "id process_index")


class Rows:
  """Stands for the sharding of rows over devices of several processes."""

  def __init__(self, owners):  # process of each shard's devices
    self.owners = owners

  def devices_indices_map(self, shape):
    of = {}
    for shard, owners in enumerate(self.owners):
      rows = slice(shard, shard + 1) if len(self.owners) > 1 else slice(None)
      for process in owners:
        of[Device(len(of), process)] = (None, rows, None)
    return of


@pytest.mark.parametrize(
  "owners,want",
  [
    ([[0], [0], [1], [1]], (0, 2)),
    ([[1], [0], [1], [0]], (1, 2)),  # a torus in another order
    ([[0, 1]], (0, 1)),  # `model` over both
    ([[0, 1], [2, 3]], (0, 2)),
    ([[2, 3], [0, 1]], (1, 2)),
  ],
)
def test_processes_read_equal_shares_of_the_rows(monkeypatch, owners, want):
  sharding = Rows(owners)
  monkeypatch.setattr(parallel, "rows_sharding", lambda mesh: sharding)
  monkeypatch.setattr(parallel, "row_shards", lambda mesh: len(owners))
  assert parallel.row_share(parallel.make_mesh()) == want


@pytest.mark.parametrize("owners", [[[0], [0], [1]], [[0, 1], [1, 2], [2, 0]]])
def test_rows_that_do_not_divide_are_refused(monkeypatch, owners):
  sharding = Rows(owners)
  monkeypatch.setattr(parallel, "rows_sharding", lambda mesh: sharding)
  monkeypatch.setattr(parallel, "row_shards", lambda mesh: len(owners))
  with pytest.raises(InputError, match="the rows do not divide over"):
    parallel.row_share(parallel.make_mesh())
