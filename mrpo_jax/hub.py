# SPDX-License-Identifier: Apache-2.0
"""Weights in and out: folders as Hugging Face lays them out.

A folder holds config.json and safetensors, in one file or in shards with an
index.  Pickled weights are never opened, and no code of a folder ever runs.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from mrpo_jax.errors import InputError
from mrpo_jax.models import families
from mrpo_jax.models import spec as specs

UnsupportedModel = families.UnsupportedModel
SHARD_BYTES = 5 * 10**9  # of one file that `save` writes
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD = "lm_head.weight"
FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors names them
BUFFERS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|attn\.bias|masked_bias)$")


def read_config(path):
  """The ModelConfig of a Hugging Face folder; reads no weights."""
  file = _config_file(path)
  values = _read_json(file)
  try:
    return families.config_from_hf(values)
  except InputError as error:
    raise type(error)(f"{file}: {error}") from None


def load(path, *, dtype=None, mesh=None, rules=None):
  """Reads a model from a Hugging Face folder.

  Args:
    path: folder with config.json and safetensors.
    dtype: floating type of all leaves; None keeps that of the embedding.
    mesh: jax.sharding.Mesh to place the leaves on; None means the default
      device.
    rules: changes to `parallel.RULES`.

  Returns:
    (config, params): ModelConfig and a tree in the shape of `spec.table`.

  Raises:
    UnsupportedModel: the config asks for what is not computed here.
    InputError or OSError: names the file or the tensor that is wrong.
  """
  config = read_config(path)
  table = specs.table(config)
  shardings = specs.map_specs(lambda spec: None, table)
  if mesh is not None:
    from mrpo_jax import parallel

    shardings = parallel.param_shardings(config, mesh, rules)
  with contextlib.ExitStack() as stack:
    stored = _open(pathlib.Path(path), stack)
    names = _match(stored, config, path)
    embed = names[table["embed"].name]
    if config.tied:
      _check_tied(stored, embed)
    if dtype is None:
      # Without jax_enable_x64, a stored float64 becomes float32.
      dtype = jax.dtypes.canonicalize_dtype(_tensor(stored, embed).dtype)
    dtype = _floating(dtype)
    params = jax.tree.map(
      lambda spec, to: jax.device_put(_leaf(stored, names, spec, dtype), to),
      table,
      shardings,
      is_leaf=specs.is_spec,
    )
  return config, params


def save(path, config, params, *, tokenizer=None):
  """Writes a folder that `load` and transformers read, or nothing at all.

  Args:
    path: the folder to make; it must not exist, or be empty.
    config: ModelConfig.
    params: tree of arrays in the shape of `spec.table(config)`; their dtype
      is that of the file.
    tokenizer: a transformers tokenizer to put beside the weights.

  Raises:
    InputError: the folder is taken, or the parameters do not fit the config.
    OSError: the disk refuses.
  """
  path = pathlib.Path(os.path.abspath(path))
  empty = path.is_dir() and not path.is_symlink() and not any(path.iterdir())
  if os.path.lexists(path) and not empty:
    raise InputError(f"{path} exists; remove it or name another folder")
  leaves = _leaves(config, params)
  partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
  partial.mkdir(parents=True)
  try:
    values = families.config_to_hf(config, params["embed"].dtype.name)
    _write_json(partial / "config.json", values)
    ids = {key: values[key] for key in ("bos_token_id", "eos_token_id")}
    _write_json(partial / "generation_config.json", ids)
    _write_weights(partial, leaves)
    if tokenizer is not None:
      tokenizer.save_pretrained(partial)
    partial.rename(path)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def fingerprint(path):
  """SHA-256, in hex, over the contents of config.json and the weights.

  The same for a copy elsewhere; another for any changed byte or file name.
  """
  whole = hashlib.sha256()
  for file in (_config_file(path), *_files(pathlib.Path(path))):
    with open(file, "rb") as stream:
      digest = hashlib.file_digest(stream, "sha256").hexdigest()
    whole.update(f"{file.name} {digest}\n".encode())
  return whole.hexdigest()


# Reading.


def _config_file(path):
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


def _read_json(file):
  try:
    return json.loads(file.read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as error:
    raise InputError(f"{file}: not JSON ({error})") from None


def _weight_map(folder):
  """Name of each tensor that the index lists -> name of its file."""
  file = folder / INDEX
  index = _read_json(file)
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


def _open(folder, stack):
  """Name of each stored tensor -> (open file, path); nothing is read yet."""
  stored = {}
  for path in _files(folder):
    try:
      file = stack.enter_context(safetensors.safe_open(path, framework="np"))
    except safetensors.SafetensorError as error:
      raise InputError(
        f"{path}: not a whole safetensors file ({error}); fetch it again"
      ) from None
    for name in file.keys():
      if name in stored:
        raise InputError(f"{path}: {name} stands in {stored[name][1]} too")
      stored[name] = (file, path)
  if not (folder / WEIGHTS).is_file():
    for name, shard in _weight_map(folder).items():
      if stored.get(name, (None, None))[1] != folder / shard:
        raise InputError(f"{folder / INDEX}: {name} is not in {shard}")
  return stored


def _tensor_names(spec):
  layers = spec.shape[0] if spec.stacked else 1
  return [spec.name.format(layer) for layer in range(layers)]


def _layer_shape(spec):
  return spec.shape[1:] if spec.stacked else spec.shape


def _stored_shape(spec):
  shape = _layer_shape(spec)
  if not spec.inputs:
    return shape
  return math.prod(shape[spec.inputs :]), math.prod(shape[: spec.inputs])


def _match(stored, config, folder):
  """Name of each tensor of the model -> its name in the folder.

  Every one is there, floating and of the right shape, and there is no other.
  """
  table = jax.tree.leaves(specs.table(config), is_leaf=specs.is_spec)
  shapes = {
    name: _stored_shape(spec) for spec in table for name in _tensor_names(spec)
  }
  bare = not any(name.startswith("model.") for name in stored)
  names = {
    name: name.removeprefix("model.") if bare else name for name in shapes
  }
  known = {*names.values(), *([HEAD] if config.tied else [])}
  others = [n for n in stored if n not in known and not BUFFERS.search(n)]
  absent = [name for name in names.values() if name not in stored]
  for problem, which in (("missing", absent), ("unexpected", others)):
    if which:
      more = f" and {len(which) - 3} more" if len(which) > 3 else ""
      raise InputError(
        f"{folder}: {problem} tensors: {', '.join(which[:3])}{more}"
      )
  for name, shape in shapes.items():
    _check_tensor(stored, names[name], shape)
  return names


def _check_tensor(stored, name, shape):
  file, path = stored[name]
  tensor = file.get_slice(name)
  kind, found = tensor.get_dtype(), tuple(tensor.get_shape())
  if kind not in FLOATS:
    raise InputError(f"{path}: {name} holds {kind}; want {', '.join(FLOATS)}")
  if found != shape:
    raise InputError(
      f"{path}: {name} has shape {found}; config.json asks for {shape}"
    )


def _check_tied(stored, embed):
  # transformers 5 computes with a stored head that differs.
  if HEAD in stored and not np.array_equal(
    _tensor(stored, HEAD), _tensor(stored, embed)
  ):
    raise InputError(
      f"{stored[HEAD][1]}: {HEAD} is not the embedding, although config.json "
      "says tie_word_embeddings; set that to false"
    )


def _tensor(stored, name):
  return stored[name][0].get_tensor(name)


def _leaf(stored, names, spec, dtype):
  """One leaf, layer by layer: never more than a tensor beside it."""
  leaf = np.empty(spec.shape, dtype)
  layers = leaf if spec.stacked else leaf[None]
  for layer, name in zip(layers, _tensor_names(spec), strict=True):
    tensor = _tensor(stored, names[name])
    with np.errstate(over="ignore"):  # refused below
      tensor = tensor.astype(dtype, copy=False)
    if not np.isfinite(tensor).all():
      path = stored[names[name]][1]
      raise InputError(
        f"{path}: {names[name]} holds numbers that are not finite in {dtype}"
      )
    layer[...] = (tensor.T if spec.inputs else tensor).reshape(layer.shape)
  return leaf


def _floating(dtype):
  dtype = jnp.dtype(dtype)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise InputError(f"dtype={dtype.name} is no floating type")
  if jax.dtypes.canonicalize_dtype(dtype) != dtype:
    raise InputError(f"dtype={dtype.name} needs jax_enable_x64")
  return dtype


# Writing.


def _leaves(config, params):
  """[(ArraySpec, leaf)] in the order of the table, shapes checked."""
  table, treedef = jax.tree.flatten(specs.table(config), is_leaf=specs.is_spec)
  leaves = list(zip(table, treedef.flatten_up_to(params), strict=True))
  for spec, leaf in leaves:
    if leaf.shape != spec.shape or not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise InputError(
        f"{spec.name} is {leaf.dtype}{leaf.shape}; want floats{spec.shape}"
      )
  return leaves


def _tensors(leaves):
  """(Hugging Face's name, array) one by one; one leaf at a time on the host."""
  for spec, leaf in leaves:
    layers = np.asarray(leaf) if spec.stacked else np.asarray(leaf)[None]
    stored = _stored_shape(spec)
    for name, layer in zip(_tensor_names(spec), layers, strict=True):
      if spec.inputs:
        layer = layer.reshape(stored[::-1]).T
      yield name, np.ascontiguousarray(layer)


def _shards(leaves):
  """Names of the tensors of each file, at most SHARD_BYTES if one fits."""
  shards, filled = [[]], 0
  for spec, leaf in leaves:
    size = math.prod(_layer_shape(spec)) * leaf.dtype.itemsize
    for name in _tensor_names(spec):
      if shards[-1] and filled + size > SHARD_BYTES:
        shards.append([])
        filled = 0
      shards[-1].append(name)
      filled += size
  return shards


def _write_weights(folder, leaves):
  shards, tensors = _shards(leaves), _tensors(leaves)
  weight_map = {}
  for number, names in enumerate(shards, start=1):
    shard = f"model-{number:05}-of-{len(shards):05}.safetensors"
    shard = shard if len(shards) > 1 else WEIGHTS
    # zip would draw one tensor too many.
    arrays = dict(next(tensors) for _ in names)
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
