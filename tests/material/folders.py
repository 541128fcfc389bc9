# SPDX-License-Identifier: Apache-2.0
"""Golden model folders, and copies of them that tests damage."""

import functools
import json
import pathlib

import jax
import numpy as np
import safetensors.numpy

from mrpo_jax import hub

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
QUERY = "model.layers.1.self_attn.q_proj.weight"


@functools.cache
def golden(name):
  """(config, params) in float32."""
  return hub.load(GOLDEN / name, dtype="float32")


def assert_identical(left, right):
  assert jax.tree.structure(left) == jax.tree.structure(right)
  for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
    assert a.dtype == b.dtype and a.shape == b.shape
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def edit(folder, change):
  """Applies `change` to the dict of stored tensors."""
  tensors = safetensors.numpy.load_file(folder / WEIGHTS)
  tensors = {name: np.array(tensor) for name, tensor in tensors.items()}
  tensors = change(tensors) or tensors
  safetensors.numpy.save_file(tensors, folder / WEIGHTS)


def configure(folder, **values):
  file = folder / "config.json"
  file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def shard(folder, change=lambda index: None):
  """Splits the weights over a.safetensors and b.safetensors, with an index."""
  tensors = safetensors.numpy.load_file(folder / WEIGHTS)
  (folder / WEIGHTS).unlink()
  weight_map = {}
  for number, name in enumerate(tensors):
    weight_map[name] = "ab"[number % 2] + ".safetensors"
  for file in ("a.safetensors", "b.safetensors"):
    part = {name: t for name, t in tensors.items() if weight_map[name] == file}
    safetensors.numpy.save_file(part, folder / file)
  index = {"weight_map": weight_map}
  index = change(index) or index
  (folder / INDEX).write_text(json.dumps(index))


def poison(folder, value):
  """Puts one other number into a matrix."""
  edit(folder, lambda tensors: tensors[QUERY].__setitem__((3, 2), value))


def name_twice(file, name):
  """Says of a tensor twice where it is, the second time in another shape."""
  content = file.read_bytes()
  end = 8 + int.from_bytes(content[:8], "little")
  header = json.loads(content[8:end])
  entry = header[name] | {"shape": [1, *header[name]["shape"]]}
  text = (
    json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(entry)}}}"
  )
  size = len(text).to_bytes(8, "little")
  file.write_bytes(size + text.encode() + content[end:])
