# SPDX-License-Identifier: Apache-2.0
"""Folders as they are found: read as they are meant, or refused by name."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from mrpo_jax import hub, parallel
from mrpo_jax.errors import InputError
from tests.material.folders import (
  GOLDEN,
  INDEX,
  QUERY,
  WEIGHTS,
  assert_identical,
  configure,
  edit,
  golden,
  name_twice,
  poison,
  shard,
)

EMBED, NORM = "model.embed_tokens.weight", "model.norm.weight"


def test_without_a_dtype_the_stored_one_stays():
  _, params = hub.load(GOLDEN / "llama_bf16")
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}


def test_a_mesh_places_the_leaves():
  config, params = golden("llama_gqa_tied")
  mesh = parallel.make_mesh(data=2, fsdp=2, model=2)
  _, placed = hub.load(GOLDEN / "llama_gqa_tied", mesh=mesh)
  want = parallel.param_shardings(config, mesh)
  assert jax.tree.map(lambda leaf: leaf.sharding, placed) == want
  assert_identical(placed, params)


def assert_loads_as_before(folder):
  assert_identical(hub.load(folder)[1], golden("llama_theta")[1])


def test_an_index_without_metadata_is_enough(folder):
  shard(folder)
  assert_loads_as_before(folder)


def test_a_tensor_that_the_index_forgets_is_found(folder):
  shard(folder, lambda index: index["weight_map"].pop(NORM) and None)
  assert_loads_as_before(folder)


def test_a_symlinked_cache_loads(folder, tmp_path):
  shard(folder)
  for file in ("a.safetensors", "b.safetensors"):
    (folder / file).rename(tmp_path / file)
    (folder / file).symlink_to(tmp_path / file)
  assert_loads_as_before(folder)


def test_buffers_are_ignored(folder):
  def change(tensors):
    layer = "model.layers.0.self_attn"
    tensors[f"{layer}.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    tensors["h.0.attn.bias"] = np.ones((1, 1, 4, 4), bool)
    tensors["h.0.attn.masked_bias"] = np.array(-1e9, np.float32)

  edit(folder, change)
  assert_loads_as_before(folder)


def test_names_may_all_be_bare(folder):
  edit(folder, lambda t: {k.removeprefix("model."): v for k, v in t.items()})
  assert_loads_as_before(folder)


def test_a_stored_copy_of_a_tied_head_is_ignored(folder):
  configure(folder, tie_word_embeddings=True)
  edit(folder, lambda t: t.update({"lm_head.weight": t[EMBED].copy()}))
  config, params = hub.load(folder)
  assert config.tied and "head" not in params


def test_a_config_of_transformers_4_loads(folder):
  values = json.loads((folder / "config.json").read_text())
  theta = values.pop("rope_parameters")["rope_theta"]
  values.pop("dtype")
  old = dict(rope_theta=theta, rope_scaling=None, torch_dtype="float32")
  (folder / "config.json").write_text(json.dumps({**values, **old}))
  assert hub.load(folder)[0] == golden("llama_theta")[0]
  assert_loads_as_before(folder)


def test_leaves_have_one_dtype_even_if_the_file_has_several(folder):
  def change(tensors):
    tensors[NORM] = tensors[NORM].astype(np.float16)
    tensors[QUERY] = tensors[QUERY].astype(ml_dtypes.bfloat16)

  edit(folder, change)
  _, params = hub.load(folder)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}


def test_stored_float64_becomes_float32_without_x64(folder):
  edit(folder, lambda t: {k: v.astype(np.float64) for k, v in t.items()})
  assert_loads_as_before(folder)


# Refusals.


def set_tensor(name, value):
  return lambda folder: edit(folder, lambda t: t.update({name: value}))


def without(name):
  return lambda folder: edit(
    folder, lambda t: {k: v for k, v in t.items() if k != name}
  )


def rename(old, new):
  return lambda folder: edit(folder, lambda t: t.update({new: t.pop(old)}))


def write(name, text):
  return lambda folder: (folder / name).write_text(text)


def cut(name, size):
  def damage(folder):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:size])

  return damage


def index_says(file):
  return lambda folder: shard(
    folder, lambda index: index["weight_map"].update({NORM: file})
  )


def index_lists_too_much(folder):
  shard(
    folder, lambda index: index["weight_map"].update({"extra": "a.safetensors"})
  )


def index_swaps(folder):
  def swap(index):
    other = dict(a="b.safetensors", b="a.safetensors")
    index["weight_map"][NORM] = other[index["weight_map"][NORM][0]]

  shard(folder, swap)


def twice(folder):
  shard(folder)
  for file in ("a.safetensors", "b.safetensors"):
    tensors = safetensors.numpy.load_file(folder / file)
    tensors["both"] = np.ones(3, np.float32)
    safetensors.numpy.save_file(tensors, folder / file)


def pickled(folder):
  (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def adapter(folder):
  (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")
  (folder / "adapter_config.json").write_text("{}")


def adapter_alone(folder):
  adapter(folder)
  (folder / "config.json").unlink()


def no_weights(folder):
  (folder / WEIGHTS).unlink()


def another_tied_head(folder):
  configure(folder, tie_word_embeddings=True)


def unreadable_dtype(folder):
  edit(folder, lambda t: t.update({NORM: t[NORM].astype("float8_e4m3fn")}))


def key_twice(folder, file="config.json"):
  text = (folder / file).read_text()
  key = next(iter(json.loads(text)))
  (folder / file).write_text(text.replace("{", f'{{"{key}": 5, ', 1))


def index_key_twice(folder):
  shard(folder)
  text = (folder / INDEX).read_text()
  more = text.replace(f'"{NORM}":', f'"{NORM}": "b.safetensors", "{NORM}":')
  (folder / INDEX).write_text(more)


def tensor_twice(folder):
  name_twice(folder / WEIGHTS, NORM)


REFUSALS = {
  "key twice": (key_twice, r"config\.json: the key '\w+' stands there twice"),
  "listed twice": (index_key_twice, rf"index\.json: the key '{NORM}' stands t"),
  "named twice": (tensor_twice, rf"its header: the key '{NORM}' stands there"),
  "no tensor": (without(NORM), r"missing tensors: model\.norm\.weight$"),
  "many missing": (
    lambda f: configure(f, num_hidden_layers=4),
    r"missing.*layers\.2.* more",
  ),
  "unexpected": (set_tensor("model.extra", np.ones(3, np.float32)), "extra"),
  "fewer layers": (
    lambda f: configure(f, num_hidden_layers=1),
    r"unexpected.*layers\.1",
  ),
  "bias": (
    set_tensor("model.layers.0.self_attn.q_proj.bias", np.ones(32, "f4")),
    r"unexpected.*q_proj\.bias",
  ),
  "some bare": (rename(EMBED, "embed_tokens.weight"), "embed_tokens"),
  "misshapen": (
    set_tensor(NORM, np.ones(31, np.float32)),
    r"model\.norm.*31.*32",
  ),
  "transposed": (
    lambda f: configure(f, num_key_value_heads=2),
    r"k_proj.*\(8, 32\).*\(16, 32\)",
  ),
  "nan": (lambda f: poison(f, np.nan), r"layers\.1\.self_attn\.q_proj.*finite"),
  "inf": (
    lambda f: poison(f, -np.inf),
    r"layers\.1\.self_attn\.q_proj.*finite",
  ),
  "integers": (set_tensor(NORM, np.ones(32, np.int32)), "norm.*I32"),
  "bytes": (set_tensor(NORM, np.ones(32, np.uint8)), "norm.*U8"),
  "float8": (unreadable_dtype, "norm.*F8_E4M3"),
  "other tied head": (another_tied_head, "lm_head.*tie_word_embeddings"),
  "absent shard": (index_says("c.safetensors"), r"c\.safetensors.*absent"),
  "up and out": (index_says("../a.safetensors"), r"\.\./a.*leaves the folder"),
  "absolute": (index_says("/etc/passwd"), "/etc/passwd.*leaves the folder"),
  "shard no string": (index_says(3), "3 is no file name"),
  "wrong shard": (index_swaps, r"model\.norm\.weight is not in [ab]\.safe"),
  "listed, not stored": (index_lists_too_much, "extra is not in a.safetens"),
  "stored twice": (twice, "both stands in .*a.safetensors"),
  "empty index": (
    lambda f: shard(f, lambda i: {"weight_map": {}}),
    "weight_map is missing or empty",
  ),
  "index a list": (lambda f: shard(f, lambda i: [1]), "holds a list"),
  "pickle": (pickled, "pickled weights only.*safe_serialization"),
  "adapter": (adapter, "adapter alone; merge it"),
  "adapter without config": (adapter_alone, "adapter alone; merge it"),
  "no weights": (no_weights, r"no model\.safetensors and no"),
  "no config": (lambda f: (f / "config.json").unlink(), r"no config\.json"),
  "no folder": (shutil.rmtree, "no such folder, and no name on the Hugging"),
  "broken config": (cut("config.json", 40), r"config\.json is not JSON"),
  "empty config": (cut("config.json", 0), r"config\.json is not JSON"),
  "not UTF-8": (
    lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"),
    r"config\.json is not UTF-8",
  ),
  "a list": (write("config.json", "[]"), r"config\.json holds a list"),
  "cut weights": (cut(WEIGHTS, 4000), r"model\.safetensors: not a whole"),
  "cut header": (cut(WEIGHTS, 100), r"model\.safetensors: not a whole"),
  "empty weights": (cut(WEIGHTS, 0), r"model\.safetensors: not a whole"),
  "git lfs pointer": (
    write(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid x\n"),
    r"model\.safetensors: not a whole",
  ),
  "bad number": (
    lambda f: configure(f, hidden_size=-1),
    r"config\.json: hidden_size=-1",
  ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_bad_folder_is_refused_by_name(case, folder):
  damage, words = REFUSALS[case]
  assert_loads_as_before(folder)
  damage(folder)
  with pytest.raises(InputError, match=words):
    hub.load(folder)


def test_an_unsupported_model_is_refused_with_its_file(folder):
  configure(folder, model_type="bert")
  with pytest.raises(hub.UnsupportedModel, match=r"config\.json: .*'bert'"):
    hub.load(folder)


@pytest.mark.parametrize(
  "dtype, words",
  [("int8", "no floating type"), ("float64", "jax_enable_x64")],
)
def test_a_dtype_that_leaves_cannot_have_is_refused(dtype, words):
  with pytest.raises(InputError, match=words):
    hub.load(GOLDEN / "llama_theta", dtype=dtype)


def test_a_weight_too_large_for_the_dtype_is_refused(folder):
  poison(folder, 1e30)
  assert np.isfinite(np.asarray(hub.load(folder)[1]["blocks"]["query"])).all()
  with pytest.raises(InputError, match="q_proj.*not finite in float16"):
    hub.load(folder, dtype="float16")
