# SPDX-License-Identifier: Apache-2.0
"""Mesh, rules, and the rows that each process reads."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mrpo_jax import losses, parallel
from mrpo_jax.errors import InputError
from mrpo_jax.models import parameters
from mrpo_jax.models.config import ModelConfig
from mrpo_jax.training import optimizer, train_state

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


def test_parameters_and_their_moments_are_split_alike():
  mesh = parallel.make_mesh(data=2, fsdp=2, model=2)
  transformation, _ = optimizer.make(peak_lr=1e-3, steps=4)
  memory = losses.build("mrpo", weights="sliding_window").init(2)
  table = parameters.table(CONFIG)
  shardings = train_state.shardings(table, transformation, mesh, memory)
  state = jax.jit(
    lambda key: train_state.create(
      parameters.init(CONFIG, key), transformation, memory
    ),
    out_shardings=shardings,
  )(jax.random.key(0))
  gate = state.params["blocks"]["gate"]
  assert gate.addressable_shards[0].data.shape == (2, 8, 16)
  moments = optax.tree.get(state.opt_state, "mu")["blocks"]["gate"]
  assert moments.sharding == gate.sharding
  assert state.method_state["weights"].sharding.is_fully_replicated


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
  with pytest.raises(InputError, match=r"k_proj.*2 does not divide.*model=4"):
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
    InputError, match="_proj.*mesh.model twice, for its axes [a-z]+ and [a-z]+"
  ):
    rules = {"embed": "fsdp, model", "vocab": ""}
    parallel.param_shardings(CONFIG, mesh, rules)


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
  split = parallel.split_of(mesh, rules)
  assert (split.vocab, split.embed) == (("model",), ("fsdp",))
  assert (split.heads, split.kv_heads) == (("model",), ())
  one = parallel.make_mesh(devices=jax.devices()[:1])
  assert parallel.split_of(one).mesh is None


def test_decay_leaves_norms_and_biases_alone():
  config = dataclasses.replace(CONFIG, norm="layer", qkv_bias=True)
  mask = optimizer.decays(parameters.abstract(config))
  assert not mask["norm"] and not mask["norm_bias"]
  decayed = {name for name, decays in mask["blocks"].items() if decays}
  assert decayed == {"query", "key", "value", "out", "gate", "up", "down"}
  assert mask["embed"] and mask["head"]


def test_the_schedule_rises_and_falls():
  _, schedule = optimizer.make(peak_lr=1.0, steps=100, warmup=0.1, end_lr=0.1)
  rates = [float(schedule(step)) for step in range(100)]
  assert 0 < rates[0] < rates[5] < rates[10] == pytest.approx(1.0)
  assert rates[99] == pytest.approx(0.1, abs=0.01)
  assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_clipping_bounds_the_gradient():
  transformation, _ = optimizer.make(peak_lr=1.0, steps=2, clip_norm=0.5)
  huge = {"weight": np.full((4, 4), 1e9, np.float32)}
  zero = {"weight": np.zeros((4, 4), np.float32)}
  state = transformation.init(zero)
  _, state = transformation.update(huge, state, zero)
  first = optax.tree.get(state, "mu")["weight"]
  # One step of Adam's first moment: (1 - b1) times the clipped gradient.
  assert np.linalg.norm(first) == pytest.approx(0.05, rel=1e-4)


@pytest.mark.parametrize("norm", [1.0, 4.9, 5.1, np.inf])
def test_clipping_is_the_one_of_optax(norm):
  grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[-4.0]], jnp.bfloat16)}
  want, _ = optax.clip_by_global_norm(norm).update(grads, optax.EmptyState())
  got, _ = optimizer.clip(norm).update(grads, optax.EmptyState())
  assert jax.tree.map(jnp.dtype, got) == jax.tree.map(jnp.dtype, want)
  for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
    rtol = 1e-6 if a.dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(*(x.astype("float32") for x in (a, b)), rtol)


def test_clipping_leaves_a_gradient_of_zero():
  zero = {"weight": jnp.zeros(3)}
  got, _ = optimizer.clip(1.0).update(zero, optax.EmptyState())
  np.testing.assert_array_equal(got["weight"], zero["weight"])


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
