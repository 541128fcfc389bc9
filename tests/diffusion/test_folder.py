# SPDX-License-Identifier: Apache-2.0
"""Folders of denoisers: what is written is read, and nothing else."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from mrpo_jax.diffusion import folder
from mrpo_jax.errors import InputError

NAMES = ("zero", "one", "two")


@pytest.fixture
def saved(golden, tmp_path):
  folder.save(tmp_path / "m", golden.config, golden.params(), classes=NAMES)
  return tmp_path / "m"


def test_round_trip(golden, saved):
  config, names, params = folder.load(saved)
  assert (config, names) == (golden.config, NAMES)
  for a, b in zip(
    *map(jax.tree.leaves, (params, golden.params())), strict=True
  ):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  "change,message",
  [
    (dict(model_type="llama"), "model_type is 'llama'; a denoiser's is"),
    (dict(depth=3), "config.json: depth is not known"),
    (dict(layers=None), "config.json: layers is missing"),
    (dict(layers="2"), "config.json: layers is '2'; want int"),
    (dict(layers=True), "config.json: layers is True"),
    (dict(image=[4, 8, 3.0]), r"image is .*; want a list of int"),
    (dict(image=[4, 8]), "image is no height, width and channels"),
    (dict(patch=3), "config.json: patch=3 does not divide"),
    (dict(class_names=["zero"]), "1 class_names, but 3 classes"),
    (dict(class_names=3), "class_names is no list of distinct texts"),
    (dict(class_names="abc"), "class_names is no list of distinct texts"),
    (dict(class_names=[1, 2, 3]), "class_names is no list of distinct texts"),
    (dict(class_names=["a", "a", "b"]), "class_names is no list of distinct"),
    (dict(image=[0, 8, 3]), "config.json: images of 0 x 8 with 3 channels"),
    (dict(width=32), "want F32"),
  ],
)
def test_other_configs_are_refused(saved, change, message):
  file = saved / "config.json"
  values = json.loads(file.read_text()) | change
  values = {k: v for k, v in values.items() if v is not None}
  file.write_text(json.dumps(values))
  with pytest.raises(InputError, match=message):
    folder.load(saved)


def broken(saved, change):
  file = saved / "model.safetensors"
  arrays = safetensors.numpy.load_file(file)
  change(arrays)
  safetensors.numpy.save_file(arrays, file)
  return pytest.raises(InputError)


def test_other_tensors_are_refused(saved):
  def rename(arrays):
    arrays["blocks.query2"] = arrays.pop("blocks.query")

  with broken(saved, rename) as found:
    folder.load(saved)
  assert "missing tensors: blocks.query" in str(found.value)


def test_what_is_not_finite_is_refused(golden, saved, tmp_path):
  def spoil(arrays):
    arrays["pixels"][0, 0] = np.nan

  with broken(saved, spoil) as found:
    folder.load(saved)
  assert "pixels is not finite" in str(found.value)
  params = golden.params()
  params["pixels"] = params["pixels"].at[0, 0].set(np.inf)
  with pytest.raises(InputError, match="pixels holds numbers that are not"):
    folder.save(tmp_path / "n", golden.config, params, classes=NAMES)
  assert not (tmp_path / "n").exists()


def test_a_taken_folder_is_refused(golden, saved):
  with pytest.raises(InputError, match="exists"):
    folder.save(saved, golden.config, golden.params(), classes=NAMES)


def test_what_would_not_be_read_is_not_written(golden, tmp_path):
  params = golden.params()
  half = {**params, "pixels": params["pixels"].astype(np.float16)}
  other = {**params, "pixels": params["pixels"][:, :-1]}
  for given, classes, message in (
    (params, (), "0 class_names, but 3 classes"),
    (params, ("a", "a", "b"), "class_names is no list of distinct texts"),
    (half, NAMES, r"pixels is float16\(.*; want float32"),
    (other, NAMES, r"pixels is float32\(.*; want float32"),
  ):
    with pytest.raises(InputError, match=message):
      folder.save(tmp_path / "n", golden.config, given, classes=classes)
    assert not (tmp_path / "n").exists()
