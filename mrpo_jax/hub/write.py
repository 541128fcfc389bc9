# SPDX-License-Identifier: Apache-2.0
"""Saving a model as a Hugging Face folder: whole, or nothing at all."""

import logging
import math
import shutil
from typing import NamedTuple

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from mrpo_jax import files
from mrpo_jax.errors import InputError
from mrpo_jax.hub.folder import (
  GENERATION,
  INDEX,
  Stored,
  floating,
  stored,
)
from mrpo_jax.models.families.read import config_to_hf

logger = logging.getLogger(__name__)

SHARD_BYTES = 5 * 10**9  # of one file of weights


def save(
  path,
  config,
  params,
  *,
  tokenizer=None,
  card=None,
  dtype=None,
  generation=None,
):
  """Writes a folder that `load` and transformers read, or nothing at all.

  Args:
    path: the folder to make; it must not exist, or be empty.
    config: ModelConfig.
    params: tree of arrays in the shape of `parameters.table(config)`.
    tokenizer: a transformers tokenizer to put beside the weights.
    card: text of the folder's README.md.
    dtype: floating type of the file; None keeps that of each leaf.
    generation: the content of generation_config.json, {} for no such file;
      None for the model's first and end tokens.

  Raises:
    InputError: the folder is taken, the parameters do not fit the config, one
      is not finite in that dtype, or there is a value head, which is neither
      written nor lost: `parameters.language_model` leaves it out.
    OSError: the disk refuses.
  """
  dtype = None if dtype is None else floating(dtype)
  contents = _contents(config, params, dtype)
  values = config_to_hf(config, (dtype or params["embed"].dtype).name)
  if config.head == "scalar":
    generation = {}
    values["pad_token_id"] = _padding(tokenizer, values)
  if generation is None:
    ids = dict(bos_token_id=config.bos_id, eos_token_id=config.eos_id)
    generation = {key: values.get(key, own) for key, own in ids.items()}
  with files.new_folder(path) as partial:
    files.write_json(partial / "config.json", values, sort_keys=False)
    if generation:
      files.write_json(partial / GENERATION, generation, sort_keys=False)
    write_shards(
      partial,
      {name: _bytes(parts) for name, parts in contents.items()},
      lambda name: _tensor(name, contents[name]),
    )
    write_beside(partial, tokenizer, card)


def _padding(tokenizer, values):
  """The id of padding that a reward model's config.json names, or None.

  transformers reads the reward at the last token that is no padding: one that
  also ends texts would move it to the token before.  Without any it takes one
  text at a time.
  """
  pad = values.get("pad_token_id")
  if tokenizer is not None:
    pad = tokenizer.pad_token_id
  if pad is not None and pad >= values["vocab_size"]:
    logger.info(
      f"the padding token {pad} has no embedding: config.json names none, so "
      "that transformers takes a text at a time"
    )
    return None
  ends = values.get("eos_token_id")
  ends = ends if isinstance(ends, list) else [ends]
  if tokenizer is not None:
    ends = [*ends, tokenizer.eos_token_id]
  if pad is None or pad not in ends:
    return pad
  logger.info(
    f"the padding token {pad} also ends texts: config.json names none, so that "
    "transformers reads the reward where it was trained, a text at a time"
  )
  return None


def write_beside(folder, tokenizer, card):
  """The tokenizer and the README.md of a folder, where they are given."""
  if tokenizer is not None:
    with files.of_rust(folder):
      tokenizer.save_pretrained(folder)
  if card is not None:
    (folder / "README.md").write_text(card, encoding="utf-8")


def write_tensors(file, arrays, like):
  """A safetensors file that whoever may read the file `like` may read."""
  # safetensors writes an array's memory as it lies, whatever the strides are.
  arrays = {name: np.ascontiguousarray(one) for name, one in arrays.items()}
  try:
    with files.of_rust(file):
      safetensors.numpy.save_file(arrays, file, {"format": "pt"})
  except safetensors.SafetensorError as error:
    raise OSError(f"{file}: {error}") from None
  shutil.copymode(like, file)  # safetensors lets the owner alone read


class Part(NamedTuple):
  """What one leaf gives to one stored tensor."""

  stored: Stored
  leaf: jax.Array
  index: tuple[int, ...]  # of the layer
  dtype: np.dtype  # of the file


def _contents(config, params, dtype):
  """{name of a tensor: its Parts}, checked."""
  leaves, treedef = jax.tree.flatten(stored(config))
  contents = {}
  for one, leaf in zip(leaves, treedef.flatten_up_to(params), strict=True):
    shape = one.spec.shape
    if leaf.shape != shape or not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise InputError(
        f"{one.name} is {leaf.dtype}{leaf.shape}; want floats{shape}"
      )
    for index, name in one.tensors():
      part = Part(one, leaf, index, dtype or leaf.dtype)
      contents.setdefault(name, []).append(part)
  return contents


def write_shards(folder, sizes, tensor_of):
  """The weights, one file of them on the host at a time, and their index.

  Args:
    folder: with a config.json, whose readers may read the weights, too.
    sizes: {name: bytes} of the tensors.
    tensor_of: name -> array.
  """
  plan = huggingface_hub.split_state_dict_into_shards_factory(
    sizes,
    get_storage_size=lambda size: size,
    filename_pattern="model{suffix}.safetensors",
    max_shard_size=SHARD_BYTES,
  )
  for shard, names in plan.filename_to_tensors.items():
    arrays = {name: tensor_of(name) for name in names}
    write_tensors(folder / shard, arrays, like=folder / "config.json")
  if plan.is_sharded:
    index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
    files.write_json(folder / INDEX, index, sort_keys=False)


def _bytes(parts):
  """Size of one stored tensor."""
  return math.prod(parts[0].stored.shape) * parts[0].dtype.itemsize


def _tensor(name, parts):
  """The array of one stored tensor; one layer of each leaf on the host."""
  tensor = np.empty(parts[0].stored.shape, parts[0].dtype)
  for one, leaf, index, _ in parts:
    with np.errstate(over="ignore"):  # refused by `finite`
      one.view(tensor)[...] = np.asarray(leaf[index])
  return finite(name, tensor)


def finite(name, tensor):
  """The tensor; InputError where a number of it is not finite."""
  if not np.isfinite(tensor).all():
    raise InputError(
      f"{name} holds numbers that are not finite in {tensor.dtype}; nothing is "
      "written"
    )
  return tensor
