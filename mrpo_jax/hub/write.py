# SPDX-License-Identifier: Apache-2.0
"""Saving a model as a Hugging Face folder: whole, or nothing at all."""

import math
import shutil

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from mrpo_jax import files
from mrpo_jax.errors import InputError
from mrpo_jax.hub.folder import INDEX, stored
from mrpo_jax.models.families.read import config_to_hf

SHARD_BYTES = 5 * 10**9  # of one file that `save` writes


def save(path, config, params, *, tokenizer=None, card=None):
  """Writes a folder that `load` and transformers read, or nothing at all.

  Args:
    path: the folder to make; it must not exist, or be empty.
    config: ModelConfig.
    params: tree of arrays in the shape of `parameters.table(config)`; their
      dtype is that of the file.
    tokenizer: a transformers tokenizer to put beside the weights.
    card: text of the folder's README.md.

  Raises:
    InputError: the folder is taken, or the parameters do not fit the config.
    OSError: the disk refuses.
  """
  values = config_to_hf(config, params["embed"].dtype.name)
  contents = _contents(config, params)
  with files.new_folder(path) as partial:
    files.write_json(partial / "config.json", values, sort_keys=False)
    ids = {key: values.get(key) for key in ("bos_token_id", "eos_token_id")}
    files.write_json(partial / "generation_config.json", ids, sort_keys=False)
    _write_shards(partial, contents)
    write_beside(partial, tokenizer, card)


def write_beside(folder, tokenizer, card):
  """The tokenizer and the README.md of a folder, where they are given."""
  if tokenizer is not None:
    tokenizer.save_pretrained(folder)
  if card is not None:
    (folder / "README.md").write_text(card, encoding="utf-8")


def write_tensors(file, arrays, like):
  """A safetensors file that whoever may read the file `like` may read."""
  try:
    safetensors.numpy.save_file(arrays, file, {"format": "pt"})
  except safetensors.SafetensorError as error:
    raise OSError(f"{file}: {error}") from None
  shutil.copymode(like, file)  # safetensors lets the owner alone read


def _contents(config, params):
  """{name of a tensor: its [(Stored, leaf, index of the layer)]}, checked."""
  leaves, treedef = jax.tree.flatten(stored(config))
  contents = {}
  for one, leaf in zip(leaves, treedef.flatten_up_to(params), strict=True):
    shape = one.spec.shape
    if leaf.shape != shape or not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise InputError(
        f"{one.name} is {leaf.dtype}{leaf.shape}; want floats{shape}"
      )
    for index, name in one.tensors():
      contents.setdefault(name, []).append((one, leaf, index))
  return contents


def _write_shards(folder, contents):
  """The weights, one file of them on the host at a time, and their index."""
  plan = huggingface_hub.split_state_dict_into_shards_factory(
    contents,
    get_storage_size=_bytes,
    filename_pattern="model{suffix}.safetensors",
    max_shard_size=SHARD_BYTES,
  )
  for shard, names in plan.filename_to_tensors.items():
    arrays = {name: _tensor(contents[name]) for name in names}
    write_tensors(folder / shard, arrays, like=folder / "config.json")
  if plan.is_sharded:
    index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
    files.write_json(folder / INDEX, index, sort_keys=False)


def _bytes(parts):
  """Size of one stored tensor."""
  one, leaf, _ = parts[0]
  return math.prod(one.shape) * leaf.dtype.itemsize


def _tensor(parts):
  """The array of one stored tensor; one layer of each leaf on the host."""
  one, leaf, _ = parts[0]
  tensor = np.empty(one.shape, leaf.dtype)
  for one, leaf, index in parts:
    one.view(tensor)[...] = np.asarray(leaf[index])
  return tensor
