# SPDX-License-Identifier: Apache-2.0
"""A family is one object: added to FAMILIES, everything knows it."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
import safetensors.numpy

from mrpo_jax import hub
from mrpo_jax.hub import inspect, peft
from mrpo_jax.hub.folder import stored
from mrpo_jax.models import lora, parameters, transformer
from mrpo_jax.models.families import FAMILIES
from mrpo_jax.models.families.family import Family, TensorNames, named
from mrpo_jax.models.families.read import config_from_hf
from tests.material.folders import assert_identical
from tests.material.pages import python_of

KINDS = ("weight", "bias")
TENSORS = TensorNames(
  layer="tower.floor.{}",
  in_layer=dict(
    attention_norm="first_norm",
    query="look.all",  # one after the other in one matrix
    key="look.all",
    value="look.all",
    out="look.back",
    mlp_norm="second_norm",
    up="think.up",
    down="think.down",
  ),
  around=dict(embed="tower.words", norm="tower.roof", head="say"),
)


def traits(values, fields):
  return dict(
    norm="layer",
    gated=False,
    qkv_bias=values.flag("with_bias"),
    activation="relu",
  )


TOWER = Family(
  architectures=named("Tower"),
  tensors=TENSORS,
  traits=traits,
  defaults=dict(
    with_bias=True, height=2, bos_token_id=None, eos_token_id=3, rope_theta=1e4
  ),
  only=dict(elevator=(False,)),
  keys=dict(
    layers="height",
    norm_epsilon="epsilon",
    tied="say_words",
    max_positions="length",
  ),
)
VALUES = dict(
  model_type="tower",
  vocab_size=40,
  hidden_size=16,
  num_attention_heads=4,
  num_key_value_heads=2,
  intermediate_size=24,
  epsilon=0.1,
  say_words=False,
  length=64,
)


@pytest.fixture
def config(monkeypatch):
  monkeypatch.setitem(FAMILIES, "tower", TOWER)
  return config_from_hf(VALUES)


def test_the_page_about_adding_a_family_is_true(monkeypatch):
  import transformers

  file, line, golden = python_of("docs/learn/add_a_family.md")
  starcoder = types.SimpleNamespace()
  exec(file, starcoder.__dict__)
  added = {"starcoder": starcoder}
  exec(line, added)
  monkeypatch.setitem(FAMILIES, *added["FAMILIES"].popitem())
  sizes = dict(
    vocab_size=96,
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=32,
    intermediate_size=48,
  )
  theirs = transformers.AutoConfig.for_model("starcoder2", **sizes).to_dict()
  config = config_from_hf(sizes | dict(model_type="starcoder2"))
  assert config == config_from_hf(theirs | dict(architectures=None))
  names = {one.name for one in jax.tree.leaves(stored(config))}
  assert "model.layers.{}.mlp.c_proj.bias" in names
  assert '"starcoder2"' in golden


def random_params(config):
  params = parameters.init(config, jax.random.key(0))
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  return treedef.unflatten(
    leaf + 0.3 * jax.random.normal(key, leaf.shape)
    for leaf, key in zip(leaves, keys, strict=True)
  )


def test_its_config_is_read_with_its_own_keys_and_refused_by_name(config):
  assert (config.family, config.layers, config.head_dim) == ("tower", 2, 4)
  assert config.norm == "layer" and config.qkv_bias and not config.gated
  with pytest.raises(hub.UnsupportedModel, match="elevator=True"):
    config_from_hf(VALUES | dict(elevator=True))
  with pytest.raises(hub.UnsupportedModel, match="supported: .*tower"):
    config_from_hf(VALUES | dict(model_type="bridge"))


def test_its_folder_has_its_names_and_loads_as_it_was(config, tmp_path):
  params = random_params(config)
  hub.save(tmp_path / "m", config, params)
  tensors = safetensors.numpy.load_file(tmp_path / "m/model.safetensors")
  of_layer = {k.removeprefix("tower.floor.1.") for k in tensors if ".1." in k}
  assert of_layer == {
    *(f"{norm}_norm.{of}" for norm in ("first", "second") for of in KINDS),
    *(f"look.all.{of}" for of in KINDS),
    *("look.back.weight", "think.up.weight", "think.down.weight"),
  }
  assert tensors["tower.floor.1.look.all.weight"].shape == (16 + 8 + 8, 16)
  assert {k for k in tensors if "floor" not in k} == {
    *("tower.words.weight", "tower.roof.weight", "tower.roof.bias"),
    "say.weight",
  }
  written = json.loads((tmp_path / "m/config.json").read_text())
  assert written["architectures"] == ["TowerForCausalLM"]
  assert written.items() >= VALUES.items()
  again, read = hub.load(tmp_path / "m")
  assert again == config
  assert_identical(read, params)
  first, *_ = inspect.lines(tmp_path / "m", dict(data=1))
  assert ": tower, " in first


def test_it_computes_what_its_traits_say(config, tmp_path):
  params = random_params(config)
  hub.save(tmp_path / "m", config, params)
  _, read = hub.load(tmp_path / "m")
  tokens = np.arange(12).reshape(2, 6)
  got = transformer.apply(config, read, tokens)
  # The same decoder under a family that names its tensors otherwise.
  same = dataclasses.replace(config, family="llama")
  np.testing.assert_array_equal(got, transformer.apply(same, params, tokens))
  other = dataclasses.replace(config, activation="silu")
  assert np.abs(got - transformer.apply(other, params, tokens)).max() > 1e-2


def test_its_adapters_go_through_a_folder_of_peft(config, tmp_path):
  adapter = lora.Adapter(2, 4.0, ("query", "key", "value", "down"))
  table = lora.adapter_table(parameters.table(config), adapter)
  arrays = jax.tree.map(
    lambda array: array + 0.5, lora.init_adapters(table, jax.random.key(2))
  )
  peft.save(tmp_path / "a", config, adapter, arrays)
  again, read = peft.load(tmp_path / "a", config)
  params, tokens = random_params(config), np.arange(6)[None]
  want, got = (
    transformer.apply(config, lora.attach(params, pair, one), tokens)
    for pair, one in ((arrays, adapter), (read, again))
  )
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
