# SPDX-License-Identifier: Apache-2.0
"""Training is the same on every mesh; benchmarks/meshes.py has all of them.

And weights are born where they belong, whoever makes or reads them.
"""

import functools
import math

import jax
import numpy as np
import pytest

from benchmarks import meshes
from configs import quickstart
from mrpo_jax import hub, losses, parallel
from mrpo_jax.errors import InputError
from mrpo_jax.hub import read
from mrpo_jax.models import lora, parameters
from mrpo_jax.runs.config import load as load_config
from mrpo_jax.runs.config import read as read_config
from mrpo_jax.runs.data import Tokenizers
from mrpo_jax.runs.models import describe_models, load_models
from mrpo_jax.runs.program import Program
from mrpo_jax.runs.setup import Setup, mesh_of, set_up
from mrpo_jax.training.objective import Objective
from tests.material.runs import ROOT

SLOW = pytest.mark.slow
STEPS = 8  # of the 20


@functools.cache
def alone(adapter):
  return meshes.curve(meshes.ALONE, adapter, STEPS)[0]


@pytest.mark.parametrize(
  "name,adapter",
  [
    ("fsdp 4 x model 2", None),
    pytest.param("data 2 x context 2 x model 2", None, marks=SLOW),
    pytest.param("fsdp 2 x context 4", meshes.ADAPTER, marks=SLOW),
    pytest.param("whole policy, split references", meshes.ADAPTER, marks=SLOW),
  ],
)
def test_eight_devices_equal_one(name, adapter):
  case = meshes.CASES[name]
  found, state = meshes.curve(case, adapter, STEPS)
  assert found[0]["loss"] - found[-1]["loss"] > 1e-3
  for figure, value in meshes.apart(found, alone(adapter)).items():
    assert value < 1e-5, figure
  leaf = jax.tree.leaves(state.params)[0]
  assert len(leaf.sharding.device_set) == 8


class Tokenizer:
  """As much of one as a description of models asks for."""

  bos_token_id, eos_token_id = 1, 2

  def __len__(self):
    return 512

  def get_vocab(self):
    return {str(i): i for i in range(512)}


def described(sizes, *, kv_heads=2, **sections):
  """(config, mesh, {key: Described}) of the debug run on that mesh."""
  config = quickstart.get_config("mrpo,debug").to_dict()
  config["policy"]["new"]["kv_heads"] = kv_heads
  config["mesh"] = {"data": -1, **sizes}
  for name, values in sections.items():
    into = config if name in config else config["references"]
    into[name] = {**into[name], **values}
  config = read_config(config)
  mesh = mesh_of(config)
  view_of = {key: 0 for key in config.models()}
  tokenizers = Tokenizers([Tokenizer()], view_of, {}, {})
  return config, mesh, describe_models(config, tokenizers, mesh)


def local(tree):
  """{path: shape of what the last device has} of a tree of arrays."""
  return {
    jax.tree_util.keystr(path): array.addressable_shards[-1].data.shape
    for path, array in jax.tree.leaves_with_path(tree)
  }


@pytest.mark.parametrize("adapter", [None, dict(rank=4, alpha=8.0)])
def test_all_weights_are_born_split(tmp_path, adapter):
  config, mesh, models = described(
    dict(fsdp=2, model=2),
    mesh=dict(rules=dict(embed="")),
    policy=dict(adapter=adapter),
    second=dict(rules=dict(embed=("fsdp", "data"), kv_heads="")),
  )
  loaded = load_models(models, mesh)
  policy, base, second = (loaded[key].params for key in models)
  # V = 512 is in two; D is whole in the policy and its base, where it is 32,
  # and in four in the other, where it is 48.
  assert local(policy)["['embed']"] == (256, 32)
  assert local(base)["['embed']"] == (256, 32)
  assert local(second)["['embed']"] == (256, 12)
  assert local(second)["['blocks']['gate']"] == (2, 12, 32)
  method, own, *references = (
    losses.build("mrpo"),
    *(one.model for one in models.values()),
  )
  setup = Setup(
    config,
    tmp_path,
    method,
    mesh,
    packing=None,  # of data, which no weight needs
    tokenizers=None,
    tables={},
    described=models,
    objective=Objective(
      config.batch, own, tuple(references), ("base", "second"), method
    ),
    identity={},
    rewards={},
  )
  state, _ = Program(setup, loaded).start(None)
  if adapter is None:
    assert local(state.params)["['blocks']['gate']"] == (2, 32, 32)
  else:
    for trained in (lora.split(policy)[1], state.params):
      pair = local(trained["blocks"]["gate"])
      assert pair == {"['a']": (2, 32, 4), "['b']": (2, 4, 32)}
  shapes = sorted(local(state.params).values())
  moments = sorted(local(state.opt_state).values())
  assert [shape for shape in moments if shape] == sorted(2 * shapes)


def test_no_device_makes_what_others_keep():
  mesh = parallel.make_mesh(data=1, fsdp=4, model=2)
  config = meshes.CONFIG
  to = parallel.param_shardings(config, mesh)
  make = jax.jit(functools.partial(parameters.init, config), out_shardings=to)
  memory = make.lower(jax.random.key(0)).compile().memory_analysis()
  whole = 4 * parameters.count_parameters(config)
  # An eighth to keep, norms in two or four; the rest is bits to draw from.
  assert memory.output_size_in_bytes < whole / 7
  assert memory.temp_size_in_bytes < whole / 2


def test_a_folder_is_read_into_its_parts(tmp_path, monkeypatch):
  params = parameters.init(meshes.CONFIG, jax.random.key(0))
  hub.save(tmp_path / "m", meshes.CONFIG, params)
  put, sizes = read._put, []

  def watched(array, sharding):
    placed = put(array, sharding)
    shard = placed.addressable_shards[0].data
    sizes.append((array.size, shard.size))
    return placed

  monkeypatch.setattr(read, "_put", watched)
  mesh = parallel.make_mesh(data=2, fsdp=2, model=2)
  rules = dict(embed="fsdp,data")
  _, found = hub.load(tmp_path / "m", mesh=mesh, rules=rules)
  assert local(found)["['embed']"] == (32, 8)
  # The host has one layer of one matrix at a time, a device a part of it.
  most = max(meshes.CONFIG.vocab_size, meshes.CONFIG.mlp_width)
  assert max(size for size, _ in sizes) == most * meshes.CONFIG.width
  assert all(part <= size / 4 for size, part in sizes)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  "sizes,kernel,message",
  [
    (dict(model=2), "auto", r"config.policy: .*blocks.key: 1 does not divide"),
    (dict(context=4), "auto", "config.policy.kernel: .* 2 heads .*=4 does"),
  ],
)
def test_what_a_mesh_cannot_do_is_said_before_weights_are_read(
  sizes, kernel, message
):
  with pytest.raises(InputError, match=message):
    described(sizes, kv_heads=1, policy=dict(kernel=kernel))


def test_keys_stay_whole_where_the_rules_say_so():
  whole = dict(rules=dict(kv_heads=""))
  _, mesh, models = described(
    dict(model=2), kv_heads=1, mesh=dict(model=2, **whole)
  )
  partition = models["policy"].model.computation.partition
  assert partition.heads == ("model",) and partition.kv_heads == ()
  assert math.prod(mesh.shape.values()) == 8


def discriminated(tmp_path, mesh, **policy):
  """The Setup of a run with a discriminator on that mesh."""
  values = load_config(f"{ROOT}/configs/d2po.py:debug").to_dict()
  values["mesh"] = {"data": -1, **mesh}
  values["policy"] |= policy
  return set_up(read_config(values), tmp_path / "w")


def test_a_discriminator_is_split_by_the_rules_of_its_run(tmp_path):
  mesh = dict(model=4, rules=dict(kv_heads="", heads=""))
  state = discriminated(tmp_path, mesh).labels.create()
  key = state["discriminator"].params["blocks"]["key"]
  assert key.sharding.is_fully_replicated


def test_a_discriminator_whose_heads_cannot_be_shared_is_refused(tmp_path):
  match = "the policy with a scalar head: .* heads .* mesh.context=8 does not"
  with pytest.raises(InputError, match=match):
    discriminated(tmp_path, dict(context=8), kernel="xla")
