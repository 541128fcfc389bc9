# SPDX-License-Identifier: Apache-2.0
"""Folders are written whole or not at all, and read back bit by bit."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from mrpo_jax import hub, parallel
from mrpo_jax.errors import InputError
from mrpo_jax.hub import write as writing
from mrpo_jax.models import parameters
from tests.material.folders import (
  GOLDEN,
  INDEX,
  WEIGHTS,
  assert_identical,
  golden,
)

NAMES = ("gqa_tied", "mha_odd", "theta", "bf16")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", NAMES)
def test_load_after_save_is_bit_identical(name, dtype, tmp_path):
  config, params = hub.load(GOLDEN / f"llama_{name}", dtype=dtype)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
  hub.save(tmp_path / "new/model", config, params)
  again = hub.load(tmp_path / "new/model")
  assert again[0] == config == hub.read_config(tmp_path / "new/model")
  assert_identical(again[1], params)
  written = json.loads((tmp_path / "new/model/config.json").read_text())
  assert written["dtype"] == dtype


def test_saved_tensors_are_those_of_the_golden_file(tmp_path):
  hub.save(tmp_path / "m", *hub.load(GOLDEN / "llama_mha_odd"))
  ours = safetensors.numpy.load_file(tmp_path / "m" / WEIGHTS)
  theirs = safetensors.numpy.load_file(GOLDEN / "llama_mha_odd" / WEIGHTS)
  assert ours.keys() == theirs.keys()
  for key in theirs:
    np.testing.assert_array_equal(ours[key], theirs[key])
  with safetensors.safe_open(tmp_path / "m" / WEIGHTS, framework="np") as file:
    assert file.metadata() == {"format": "pt"}


def test_arrays_are_written_as_they_read_whatever_their_memory(tmp_path):
  rows = np.arange(24, dtype=np.float32).reshape(4, 6)
  arrays = {
    "transposed": rows.T,
    "every second": rows[:, ::2],
    "backwards": rows[::-1],
    "repeated": np.broadcast_to(rows[0], (3, 6)),
  }
  like = tmp_path / "config.json"
  like.touch()
  writing.write_tensors(tmp_path / WEIGHTS, arrays, like=like)
  back = safetensors.numpy.load_file(tmp_path / WEIGHTS)
  for name, array in arrays.items():
    np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_shards_and_their_index_round_trip(tmp_path, monkeypatch):
  config, params = golden("llama_theta")
  monkeypatch.setattr(writing, "SHARD_BYTES", 20_000)
  hub.save(tmp_path / "m", config, params)
  files = sorted(path.name for path in (tmp_path / "m").glob("*.safetensors"))
  assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
  assert len(files) > 2
  for file in files:
    tensors = safetensors.numpy.load_file(tmp_path / "m" / file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert size <= 20_000
  index = json.loads((tmp_path / "m" / INDEX).read_text())
  assert index["metadata"]["total_size"] == 4 * parameters.count_parameters(
    config
  )
  assert_identical(hub.load(tmp_path / "m")[1], params)


def test_a_tensor_larger_than_a_shard_has_a_file_of_its_own(
  tmp_path, monkeypatch
):
  config, params = golden("llama_theta")
  monkeypatch.setattr(writing, "SHARD_BYTES", 3000)
  hub.save(tmp_path / "m", config, params)
  sizes = []
  for file in (tmp_path / "m").glob("*.safetensors"):
    tensors = safetensors.numpy.load_file(file)
    sizes.append(sum(tensor.nbytes for tensor in tensors.values()))
    assert sizes[-1] <= 3000 or len(tensors) == 1
  # Embedding, head, five matrices of either layer.  Keys, values and norms,
  # 4 x 1024 + 5 x 128 bytes, go on where the large ones come between.
  large = [size for size in sizes if size > 3000]
  assert (len(large), len(sizes)) == (2 + 2 * 5, 12 + 2)
  assert_identical(hub.load(tmp_path / "m")[1], params)


def test_sharded_parameters_are_saved_whole(tmp_path):
  config, params = golden("llama_gqa_tied")
  mesh = parallel.make_mesh(data=1, fsdp=4, model=2)
  _, placed = hub.load(GOLDEN / "llama_gqa_tied", mesh=mesh)
  hub.save(tmp_path / "m", config, placed)
  assert_identical(hub.load(tmp_path / "m")[1], params)


def test_generation_config_and_tokenizer_stand_beside(tmp_path):
  class Tokenizer:
    def save_pretrained(self, folder):
      (pathlib.Path(folder) / "tokenizer.json").write_text("{}")

  config, params = golden("llama_gqa_tied")
  hub.save(tmp_path / "m", config, params, tokenizer=Tokenizer())
  assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
    "config.json",
    "generation_config.json",
    WEIGHTS,
    "tokenizer.json",
  ]
  ids = json.loads((tmp_path / "m/generation_config.json").read_text())
  assert ids == {"bos_token_id": 1, "eos_token_id": 2}


def test_whoever_may_read_the_config_may_read_the_weights(tmp_path):
  config, params = golden("llama_gqa_tied")
  hub.save(tmp_path / "m", config, params)
  modes = {path.stat().st_mode for path in (tmp_path / "m").iterdir()}
  assert len(modes) == 1


# Nothing half-written.


def test_a_failing_save_leaves_nothing(tmp_path, monkeypatch):
  config, params = golden("llama_theta")
  monkeypatch.setattr(writing, "SHARD_BYTES", 20_000)
  write, calls = safetensors.numpy.save_file, []

  def fail_at_the_second(*arguments):
    calls.append(arguments)
    if len(calls) == 2:
      raise safetensors.SafetensorError("no space left on device")
    write(*arguments)

  monkeypatch.setattr(safetensors.numpy, "save_file", fail_at_the_second)
  with pytest.raises(OSError, match="model-00002.*no space left"):
    hub.save(tmp_path / "m", config, params)
  assert len(calls) == 2
  assert list(tmp_path.iterdir()) == []


def make_folder(path):
  path.mkdir()
  (path / "notes.txt").write_text("mine")


@pytest.mark.parametrize(
  "make, left",
  [
    (make_folder, ["m", "notes.txt"]),
    (lambda path: path.write_text("mine"), ["m"]),
    (lambda path: path.symlink_to("elsewhere"), ["m"]),
  ],
  ids=["folder", "file", "link"],
)
def test_what_is_there_is_not_overwritten(make, left, tmp_path):
  config, params = golden("llama_gqa_tied")
  make(tmp_path / "m")
  with pytest.raises(InputError, match="m exists"):
    hub.save(tmp_path / "m", config, params)
  assert [path.name for path in tmp_path.rglob("*")] == left


def test_an_empty_folder_is_filled(tmp_path):
  config, params = golden("llama_gqa_tied")
  (tmp_path / "m").mkdir()
  hub.save(tmp_path / "m", config, params)
  assert_identical(hub.load(tmp_path / "m")[1], params)


@pytest.mark.parametrize(
  "norm, words",
  [
    (jnp.ones(31), r"model\.norm\.weight.*31.*32"),
    (jnp.ones(32, jnp.int8), r"model\.norm\.weight.*int8"),
  ],
  ids=["shape", "integers"],
)
def test_parameters_that_do_not_fit_are_not_saved(norm, words, tmp_path):
  config, params = golden("llama_gqa_tied")
  with pytest.raises(InputError, match=words):
    hub.save(tmp_path / "m", config, {**params, "norm": norm})
  assert list(tmp_path.iterdir()) == []
