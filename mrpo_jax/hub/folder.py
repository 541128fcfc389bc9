# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face model folder: its files, index and stored tensors."""

import hashlib
import itertools
import json
import math
import pathlib
from typing import NamedTuple

import safetensors
import safetensors.numpy

from mrpo_jax.errors import InputError
from mrpo_jax.models import parameters
from mrpo_jax.models.families import read

UnsupportedModel = read.UnsupportedModel
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def fingerprint(path):
  """SHA-256, in hex, over the contents of config.json and the weights.

  The same for a copy elsewhere; another for any changed byte or file name.
  """
  whole = hashlib.sha256()
  for file in (config_file(path), *_files(pathlib.Path(path))):
    with open(file, "rb") as stream:
      digest = hashlib.file_digest(stream, "sha256").hexdigest()
    whole.update(f"{file.name} {digest}\n".encode())
  return whole.hexdigest()


# Reading.


def config_file(path):
  file = pathlib.Path(path) / "config.json"
  if file.is_file():
    return file
  if not file.parent.is_dir():
    raise InputError(
      f"{path}: no such folder; a model of the Hugging Face hub is fetched "
      "with `hf download NAME --local-dir FOLDER`"
    )
  _refuse_adapter(file.parent)
  raise InputError(f"{path}: there is no config.json")


def _refuse_adapter(folder):
  if (folder / "adapter_config.json").is_file():
    raise InputError(
      f"{folder}: holds an adapter alone; merge it into its base model first"
    )


def read_object(file):
  try:
    return json.loads(file.read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as error:
    raise InputError(f"{file}: not JSON ({error})") from None


def _weight_map(folder):
  """Name of each tensor that the index lists -> name of its file."""
  file = folder / INDEX
  index = read_object(file)
  listed = index.get("weight_map") if isinstance(index, dict) else None
  if not isinstance(listed, dict) or not listed:
    raise InputError(f"{file}: weight_map is missing or empty")
  for shard in listed.values():
    if not isinstance(shard, str):
      raise InputError(f"{file}: {shard!r} is no file name")
    place = pathlib.PurePath(shard)
    if place.is_absolute() or ".." in place.parts:
      raise InputError(f"{file}: {shard!r} leaves the folder")
    if not (folder / place).is_file():
      raise InputError(f"{file}: its shard {shard!r} is absent")
  return listed


def _files(folder):
  """The files that hold the weights, in order of name."""
  if (folder / WEIGHTS).is_file():
    return [folder / WEIGHTS]
  if (folder / INDEX).is_file():
    shards = set(_weight_map(folder).values())
    return [folder / shard for shard in sorted(shards)]
  if any(folder.glob("pytorch_model*")) or any(folder.glob("*.pth")):
    raise InputError(
      f"{folder}: holds pickled weights only, which can run code when read; "
      "convert them with save_pretrained(..., safe_serialization=True)"
    )
  _refuse_adapter(folder)
  raise InputError(f"{folder}: there is no {WEIGHTS} and no {INDEX}")


class Stored(NamedTuple):
  """A tensor of a folder, before it is read."""

  path: pathlib.Path
  dtype: str  # as safetensors names it
  shape: tuple[int, ...]


def stored_tensors(folder):
  """{name: Stored} of a folder."""
  stored = {}
  for path in _files(folder):
    try:
      with safetensors.safe_open(path, framework="np") as file:
        for name in file.keys():
          if name in stored:
            raise InputError(
              f"{path}: {name} stands in {stored[name].path} too"
            )
          tensor = file.get_slice(name)
          shape = tuple(tensor.get_shape())
          stored[name] = Stored(path, tensor.get_dtype(), shape)
    except safetensors.SafetensorError as error:
      raise InputError(
        f"{path}: not a whole safetensors file ({error}); fetch it again"
      ) from None
  if not (folder / WEIGHTS).is_file():
    for name, shard in _weight_map(folder).items():
      if name not in stored or stored[name].path != folder / shard:
        raise InputError(f"{folder / INDEX}: {name} is not in {shard}")
  return stored


def tensor_places(spec):
  """[(index of the leading axes, name of its tensor)] of one leaf."""
  counts = map(range, spec.shape[: spec.stacked])
  return [(i, spec.name.format(*i)) for i in itertools.product(*counts)]


def stored_shape(spec):
  shape, n = parameters.layer_shape(spec), spec.inputs
  if spec.shared:
    return spec.shared.whole
  if not n:  # heads are flat in a bias, a vocabulary is not
    return (math.prod(shape),) if spec.stacked else shape
  inputs, outputs = math.prod(shape[:n]), math.prod(shape[n:])
  return (inputs, outputs) if spec.inputs_first else (outputs, inputs)


def leaf_view(tensor, spec):
  """What a stored tensor holds of a leaf: a view in the leaf's own axes.

  One place for reading, which copies from the view, and for writing, which
  copies into it.
  """
  shape, n = parameters.layer_shape(spec), spec.inputs
  if spec.shared:
    tensor = tensor.reshape(spec.shared.split)[spec.shared.part]
  if not n or spec.inputs_first:
    return tensor.reshape(shape)
  tensor = tensor.reshape(*shape[n:], *shape[:n])
  outputs = len(shape) - n
  return tensor.transpose(*range(outputs, len(shape)), *range(outputs))


def read_tensor(stored, name):
  # A file that stays open keeps what was read of it in memory.
  with safetensors.safe_open(stored[name].path, framework="np") as file:
    return file.get_tensor(name)
