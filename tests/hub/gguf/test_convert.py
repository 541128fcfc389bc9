# SPDX-License-Identifier: Apache-2.0
"""Folders made of GGUF files: what is in them, and what is refused."""

import builtins
import hashlib
import importlib.util
import json
import os
import resource

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from mrpo_jax import cli, hub
from mrpo_jax.errors import InputError
from mrpo_jax.hub import write
from mrpo_jax.hub.gguf import convert, import_gguf
from mrpo_jax.models.families.family import UnsupportedModel
from tests.material import gguf_files
from tests.material.gguf_files import byte_level, read_json, write_model


@pytest.fixture
def imported(tmp_path):
  """imported(**others): the folder of such a file."""

  def make(name="llama", dtype="float32", **others):
    write_model(tmp_path / "m.gguf", name, **others)
    import_gguf(tmp_path / "m.gguf", tmp_path / "model", dtype=dtype)
    return tmp_path / "model"

  return make


def test_a_folder_says_where_it_comes_from(imported, tmp_path):
  general = dict(general__name='A "model"', general__license="apache-2.0")
  folder = imported(dtype="bfloat16", **general)
  content = (tmp_path / "m.gguf").read_bytes()
  digest = hashlib.sha256(content).hexdigest()
  found = read_json(folder, "gguf.json")
  assert found["files"] == {"m.gguf": digest}
  assert found["bytes"] == len(content)
  assert found["architecture"] == "llama" and found["dtype"] == "bfloat16"
  assert found["tensors"] == {"F32": 2 * 9 + 3}
  card = (folder / "README.md").read_text()
  assert digest in card and "license: apache-2.0" in card and "21 x F32" in card
  names = {path.name for path in folder.iterdir()}
  assert names == {
    *("README.md", "config.json", "generation_config.json", "gguf.json"),
    *("model.safetensors", "tokenizer.json", "tokenizer_config.json"),
  }


def test_both_ends_of_a_chat_are_in_the_generation_config(imported):
  folder = imported(tokenizer=byte_level() | {"padding_token_id": 0})
  assert read_json(folder, "generation_config.json") == {
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "pad_token_id": 0,
  }
  assert read_json(folder, "config.json")["eos_token_id"] == 2


def test_numbers_are_the_decimals_that_were_meant(imported):
  keys = {"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 100000.0}
  values = read_json(imported(keys=keys), "config.json")
  assert float(np.float32(1e-5)) != 1e-5 and values["rms_norm_eps"] == 1e-5
  assert values["rope_parameters"] == {
    "rope_type": "default",
    "rope_theta": 100000.0,
  }


@pytest.mark.parametrize("name", ["llama3", "gemma3_text", "phi3_long", "gpt2"])
def test_transformers_reads_the_config_as_we_do(imported, name):
  folder = imported(name)
  theirs = transformers.AutoConfig.from_pretrained(folder).to_dict()
  (folder / "config.json").write_text(json.dumps(theirs))
  again = hub.read_config(folder)
  assert again == hub.load(folder.with_name("model"))[0]


def test_quantised_weights_are_rounded_once(imported, tmp_path):
  def quantise(name, array):
    if array.ndim < 2:
      return array
    kind = gguf.GGMLQuantizationType.Q4_1
    return gguf.quants.quantize(array, kind), kind

  _, params = write_model(tmp_path / "m.gguf", quantise=quantise)
  folder = imported(quantise=quantise, dtype="bfloat16")
  _, found = hub.load(folder)
  assert found["embed"].dtype == jnp.bfloat16
  want = gguf.quants.dequantize(
    gguf.quants.quantize(
      params["embed"], kind := gguf.GGMLQuantizationType.Q4_1
    ),
    kind,
  )
  np.testing.assert_array_equal(found["embed"], want.astype(jnp.bfloat16))
  assert np.abs(want - params["embed"]).max() < 0.05


def test_a_copied_head_is_a_tied_one(imported):
  same = np.zeros((300, 32), np.float32)
  tensors = {"output.weight": same, "token_embd.weight": same}
  values = read_json(imported(tensors=tensors), "config.json")
  assert values["tie_word_embeddings"] is True


def test_progress_is_said_with_its_speed(imported, caplog, monkeypatch):
  monkeypatch.setattr("mrpo_jax.progress.SECONDS", 0.0)
  caplog.set_level("INFO")
  imported()
  assert "import 1/1 MB" in caplog.text and "MB/s" in caplog.text
  assert "for their SHA-256 took" in caplog.text
  assert "21 tensors in float32, 269 tokens; from m.gguf" in caplog.text


# Refusals; nothing is left.


@pytest.mark.parametrize(
  "others,error,match",
  [
    (
      {"general__architecture": "rwkv7"},
      UnsupportedModel,
      "architecture='rwkv7' is not computed here; known: gemma, gemma2",
    ),
    ({"general__type": "adapter"}, UnsupportedModel, "type='adapter': no wh"),
    (
      {"keys": {"expert_count": 8}},
      UnsupportedModel,
      "llama.expert_count=8 is not computed here",
    ),
    (
      {"keys": {"attention.temperature_scale": 0.5}},
      UnsupportedModel,
      "llama.attention.temperature_scale=0.5 is not computed",
    ),
    (
      {"keys": {"rope.scaling.type": "su"}},
      UnsupportedModel,
      "rope.scaling.type='su' is not computed here",
    ),
    (
      {"keys": {"rope.scaling.type": "longrope"}},
      UnsupportedModel,
      "longrope without the tensor rope_factors_short.weight",
    ),
    (
      {"keys": {"rope.scaling.factor": 2.0}},
      UnsupportedModel,
      "llama.rope.scaling.factor=2.0 is not computed here",
    ),
    (
      {"tensors": {"rope_freqs.weight": np.float32([1, 1, 3, 8])}},
      UnsupportedModel,
      "rope_freqs.weight holds other quotients than a Llama 3 of factor 8",
    ),
    (
      {"keys": {"feed_forward_length": [64, 32]}},
      UnsupportedModel,
      "feed_forward_length: layers that differ in it",
    ),
    (
      {"keys": {"rope.dimension_count": 4, "attention.key_length": 8}},
      UnsupportedModel,
      "rope.dimension_count=4 of heads of 8 is not computed",
    ),
    (
      {"keys": {"attention.value_length": 4}},
      UnsupportedModel,
      "heads of other lengths for keys and values",
    ),
    (
      {"keys": {"attention.head_count": [4, 4, 4]}},  # of two layers
      UnsupportedModel,
      "llama.attention.head_count: layers that differ in it",
    ),
    (
      {"keys": {"vocab_size": 7}},
      InputError,
      "llama.vocab_size=7, but token_embd.weight has 300 rows",
    ),
    ({"general__name": 5}, InputError, "general.name=5; want a text"),
    ({"general__license": ["mit"]}, InputError, "license=.'mit'.; want a text"),
    (
      {"keys": {"rope.dimension_count": "8"}},
      InputError,
      "llama.rope.dimension_count='8'; want a positive integer",
    ),
    ({"keys": {"block_count": 0}}, InputError, "block_count=0; want a positi"),
    ({"keys": {"block_count": 3}}, InputError, "missing tensors: blk.2.attn"),
    ({"keys": {"block_count": 1}}, InputError, "unexpected tensors: blk.1."),
    (
      {"keys": {"block_count": 99_999}},
      InputError,
      "99999 layers, but only 21",
    ),
    ({"keys": {"block_count": 10**9}}, InputError, "10+; want a positive int"),
    (
      {"keys": {"embedding_length": 64, "attention.key_length": 8}},
      InputError,
      "attn_norm.weight has shape .32,.; its metadata asks for .64,.",
    ),
    (
      {"tensors": {"../../x": np.ones(1, np.float32)}},
      InputError,
      "unexpected tensors: ../../x",
    ),
    (
      {"tensors": {"output_norm.weight": np.float32([np.nan] * 32)}},
      InputError,
      "output_norm.weight holds numbers that are not finite in float32",
    ),
    ({"tokenizer": {"model": "gpt2"}}, InputError, "ggml.tokens is missing"),
  ],
  ids=str,
)
def test_what_cannot_be_told_is_refused_by_name(
  imported, tmp_path, others, error, match
):
  with pytest.raises(error, match=f"m.gguf: .*{match}"):
    imported(**others)
  assert not [path for path in tmp_path.iterdir() if "gguf" not in path.name]


FACTORS = {
  f"rope_factors_{kind}.weight": np.float32([1.5] * 4)
  for kind in ("short", "long")
}
LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}


@pytest.mark.parametrize(
  "name,keys,tensors,match",
  [
    ("llama", LINEAR, FACTORS, "several ways, linear, longrope: that is not"),
    ("llama3", {}, FACTORS, "in several ways, llama3, longrope"),
    ("llama3", {"rope.scale_linear": 4.0}, {}, "several ways, linear, llama3"),
    ("llama3", LINEAR, {}, "in several ways, linear, llama3"),
    (
      "llama_yarn",
      {"rope.scale_linear": 4.0},
      {},
      "llama.rope.scale_linear=4.0 is not computed here",
    ),
    (
      "llama",
      LINEAR | {"rope.scale_linear": 4.0},
      {},
      "llama.rope.scale_linear=4.0 is not computed here",
    ),
    (  # which switches it off in llama.cpp
      "llama",
      {"rope.scaling.type": "none", "rope.scale_linear": 4.0},
      {},
      "llama.rope.scale_linear=4.0 is not computed here",
    ),
    ("llama", {"rope.scaling.type": "llama3"}, {}, "type='llama3' is not comp"),
    ("gpt2", LINEAR, {}, "a RoPE of gpt2, which learns its positions"),
    ("gpt2", {}, FACTORS, "a RoPE of gpt2, which learns its positions"),
  ],
)
def test_no_scaling_of_rope_is_left_out(
  imported, tmp_path, name, keys, tensors, match
):
  with pytest.raises(UnsupportedModel, match=f"m.gguf: .*{match}"):
    imported(name, keys=keys, tensors=tensors)
  assert not (tmp_path / "model").exists()


def test_the_factor_of_old_files_is_linear(imported):
  values = read_json(imported(keys={"rope.scale_linear": 4.0}), "config.json")
  scaling = {"rope_type": "linear", "factor": 4.0}
  assert values["rope_parameters"].items() >= scaling.items()


def test_a_gemma_whose_head_is_not_its_embedding_is_refused(imported):
  head = {"output.weight": np.ones((300, 32), np.float32)}
  with pytest.raises(
    UnsupportedModel, match="a gemma of llama.cpp has no lm_h"
  ):
    imported("gemma", tensors=head)


def test_heads_that_outnumber_the_width_are_refused(imported):
  with pytest.raises(
    InputError, match="phi3.attention.head_count=64 of a widt"
  ):
    imported("phi3", keys={"attention.head_count": 64})


def test_a_phi3_that_does_not_say_its_window_is_refused(imported, monkeypatch):
  given = gguf_files.keys_of

  def without(*args):
    keys = given(*args)
    del keys["attention.sliding_window"]
    return keys

  monkeypatch.setattr(gguf_files, "keys_of", without)
  with pytest.raises(InputError, match="phi3.attention.sliding_window is miss"):
    imported("phi3")


def test_a_file_that_names_nothing_is_refused_by_its_path(tmp_path):
  (tmp_path / "m.gguf").write_bytes(b"GGUF\3\0\0\0" + bytes(16))
  with pytest.raises(
    InputError, match="m.gguf: general.architecture is missin"
  ):
    import_gguf(tmp_path / "m.gguf", tmp_path / "model")


def test_a_file_that_changes_meanwhile_gives_no_folder(
  imported, tmp_path, monkeypatch
):
  def meanwhile(*args):
    write.write_shards(*args)
    os.utime(tmp_path / "m.gguf")

  monkeypatch.setattr(convert, "write_shards", meanwhile)
  with pytest.raises(InputError, match="m.gguf: changed while it was read"):
    imported()
  assert not (tmp_path / "model").exists()


def test_a_key_of_an_expert_that_is_not_there_is_no_matter(imported):
  assert imported(keys={"expert_count": 0}).is_dir()


def test_a_folder_that_holds_something_is_kept(imported, tmp_path):
  (tmp_path / "model").mkdir()
  (tmp_path / "model" / "mine").touch()
  with pytest.raises(InputError, match="model exists; remove it or name ano"):
    imported()
  assert [path.name for path in (tmp_path / "model").iterdir()] == ["mine"]


def test_a_full_disk_leaves_nothing(imported, tmp_path, monkeypatch):
  def full(*args):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(convert, "write_shards", full)
  with pytest.raises(OSError, match="No space left"):
    imported()
  assert not (tmp_path / "model").exists()
  assert not [*tmp_path.glob(".model*")]


@pytest.mark.parametrize("size", [2**13, 2**16])  # of tokens, of weights
def test_a_limit_of_files_is_said_as_the_system_does(tmp_path, size, capsys):
  write_model(tmp_path / "m.gguf")
  given = ["import-gguf", str(tmp_path / "m.gguf"), f"--to={tmp_path / 'to'}"]
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    code = cli.main(given)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  lines = capsys.readouterr().err.splitlines()
  assert code == 2 and len(lines) == 1 and lines[0].endswith(": File too large")
  assert {path.name for path in tmp_path.iterdir()} == {"m.gguf"}


@pytest.mark.parametrize("dtype", ["int8", "float64"])
def test_another_dtype_is_refused(imported, dtype):
  with pytest.raises(InputError, match=f"dtype={dtype}"):
    imported(dtype=dtype)


def test_without_the_package_a_line_says_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError, match="pip install 'mrpo-jax.gguf.'"):
    import_gguf("a.gguf", "b")


def test_help_and_refusals_need_no_package(capsys, monkeypatch):
  given = builtins.__import__

  def without(name, *args, **kwargs):
    assert name.split(".")[0] not in ("gguf", "jax")
    return given(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", without)
  assert cli.main(["import-gguf", "--help"]) == 0
  assert "SHA-256" in capsys.readouterr().out


def test_the_command_writes_a_folder(tmp_path, capsys):
  write_model(tmp_path / "m.gguf")
  given = ["import-gguf", str(tmp_path / "m.gguf"), f"--to={tmp_path / 'to'}"]
  assert cli.main(given) == 0
  config, params = hub.load(tmp_path / "to")
  assert config.family == "llama" and params["embed"].dtype == jnp.bfloat16
  assert cli.main(given) == 2
  assert "to exists; remove it" in capsys.readouterr().err


def test_a_model_larger_than_a_file_is_written_in_several(
  imported, tmp_path, monkeypatch
):
  whole = imported("gpt2")  # whose matrices are transposed
  monkeypatch.setattr(write, "SHARD_BYTES", 4096)
  import_gguf(tmp_path / "m.gguf", tmp_path / "parts", dtype="float32")
  assert len([*(tmp_path / "parts").glob("*.safetensors")]) > 1
  loaded = [hub.load(folder)[1] for folder in (whole, tmp_path / "parts")]
  jax.tree.map(np.testing.assert_array_equal, *loaded)
