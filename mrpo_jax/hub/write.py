# SPDX-License-Identifier: Apache-2.0
"""Weights in and out: folders as Hugging Face lays them out.

A folder holds config.json and safetensors, in one file or in shards with an
index.  Pickled weights are never opened, and no code of a folder ever runs.
"""

import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from mrpo_jax import files
from mrpo_jax.errors import InputError
from mrpo_jax.hub.folder import (
  INDEX,
  WEIGHTS,
  leaf_view,
  stored_shape,
  tensor_places,
)
from mrpo_jax.models import parameters
from mrpo_jax.models.families.read import config_to_hf

SHARD_BYTES = 5 * 10**9  # of one file that `save` writes


def save(path, config, params, *, tokenizer=None, card=None):
  """Writes a folder that `load` and transformers read, or nothing at all.

  Args:
    path: the folder to make; it must not exist, or be empty.
    config: ModelConfig.
    params: tree of arrays in the shape of `spec.table(config)`; their dtype
      is that of the file.
    tokenizer: a transformers tokenizer to put beside the weights.
    card: text of the folder's README.md.

  Raises:
    InputError: the folder is taken, or the parameters do not fit the config.
    OSError: the disk refuses.
  """
  leaves = _leaves(config, params)
  with files.new_folder(path) as partial:
    values = config_to_hf(config, params["embed"].dtype.name)
    _write_json(partial / "config.json", values)
    ids = {key: values.get(key) for key in ("bos_token_id", "eos_token_id")}
    _write_json(partial / "generation_config.json", ids)
    _write_weights(partial, leaves)
    write_beside(partial, tokenizer, card)


def write_beside(folder, tokenizer, card):
  """The tokenizer and the README.md of a folder, where they are given."""
  if tokenizer is not None:
    tokenizer.save_pretrained(folder)
  if card is not None:
    (folder / "README.md").write_text(card, encoding="utf-8")


# Writing.


def _leaves(config, params):
  """[(ArraySpec, leaf)] in the order of the table, shapes checked."""
  table, treedef = jax.tree.flatten(
    parameters.table(config), is_leaf=parameters.is_spec
  )
  leaves = list(zip(table, treedef.flatten_up_to(params), strict=True))
  for spec, leaf in leaves:
    if leaf.shape != spec.shape or not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise InputError(
        f"{spec.name} is {leaf.dtype}{leaf.shape}; want floats{spec.shape}"
      )
  return leaves


def _contents(leaves):
  """{name of a stored tensor: its [(ArraySpec, leaf, index of the layer)]}."""
  contents = {}
  for spec, leaf in leaves:
    for index, name in tensor_places(spec):
      contents.setdefault(name, []).append((spec, leaf, index))
  return contents


def _stored_tensor(parts):
  """The array of one stored tensor; one layer of each leaf on the host."""
  spec, leaf, _ = parts[0]
  tensor = np.empty(stored_shape(spec), leaf.dtype)
  for spec, leaf, index in parts:
    leaf_view(tensor, spec)[...] = np.asarray(leaf[index])
  return tensor


def _shards(contents):
  """Names of the tensors of each file, at most SHARD_BYTES if one fits."""
  shards, filled = [[]], 0
  for name, ((spec, leaf, _), *_) in contents.items():
    size = math.prod(stored_shape(spec)) * leaf.dtype.itemsize
    if shards[-1] and filled + size > SHARD_BYTES:
      shards.append([])
      filled = 0
    shards[-1].append(name)
    filled += size
  return shards


def _write_weights(folder, leaves):
  contents = _contents(leaves)
  shards = _shards(contents)
  weight_map = {}
  for number, names in enumerate(shards, start=1):
    shard = f"model-{number:05}-of-{len(shards):05}.safetensors"
    shard = shard if len(shards) > 1 else WEIGHTS
    arrays = {name: _stored_tensor(contents[name]) for name in names}
    try:
      safetensors.numpy.save_file(arrays, folder / shard, {"format": "pt"})
    except safetensors.SafetensorError as error:
      raise OSError(f"{folder / shard}: {error}") from None
    # safetensors makes files that only their owner may read.
    shutil.copymode(folder / "config.json", folder / shard)
    weight_map.update(dict.fromkeys(names, shard))
  if len(shards) > 1:
    total = sum(leaf.nbytes for _, leaf in leaves)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / INDEX, index)


def _write_json(file, values):
  file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
