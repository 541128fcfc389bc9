# SPDX-License-Identifier: Apache-2.0
"""Weights in and out: folders as Hugging Face lays them out.

A folder holds config.json and safetensors, in one file or in shards with an
index.  Pickled weights are never opened, and no code of a folder ever runs.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import math
import os
import pathlib
import re
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax.sharding import NamedSharding, PartitionSpec

from mrpo_jax.errors import InputError
from mrpo_jax.models import families
from mrpo_jax.models import spec as specs
from mrpo_jax.models.layouts import LAYOUTS

UnsupportedModel = families.UnsupportedModel
SHARD_BYTES = 5 * 10**9  # of one file that `save` writes
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors names them
BUFFERS = re.compile(
  r"(^|\.)(rotary_emb\.inv_freq|(attn|attention)\.bias|masked_bias)$"
)


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
    rules: changes to `parallel.RULES`; see `parallel.rules_of`.

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
  stored = _stored(pathlib.Path(path))
  names = _match(stored, config, path)
  embed = names[table["embed"].name]
  if config.tied:
    _check_tied(stored, LAYOUTS[config.family].names["head"], embed)
  if dtype is None:
    # Without jax_enable_x64, a stored float64 becomes float32.
    dtype = jax.dtypes.canonicalize_dtype(_tensor(stored, embed).dtype)
  dtype = _floating(dtype)
  params = jax.tree.map(
    lambda spec, to: _leaf(stored, names, spec, dtype, to),
    table,
    shardings,
    is_leaf=specs.is_spec,
  )
  return config, params


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
  with new_folder(path) as partial:
    values = families.config_to_hf(config, params["embed"].dtype.name)
    _write_json(partial / "config.json", values)
    ids = {key: values.get(key) for key in ("bos_token_id", "eos_token_id")}
    _write_json(partial / "generation_config.json", ids)
    _write_weights(partial, leaves)
    write_beside(partial, tokenizer, card)


@contextlib.contextmanager
def new_folder(path):
  """A folder to fill, which gets its name only when all has gone well.

  Raises:
    InputError: it exists and is not empty.
  """
  path = pathlib.Path(os.path.abspath(path))
  empty = path.is_dir() and not path.is_symlink() and not any(path.iterdir())
  if os.path.lexists(path) and not empty:
    raise InputError(f"{path} exists; remove it or name another folder")
  partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
  partial.mkdir(parents=True)
  try:
    yield partial
    partial.rename(path)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def write_beside(folder, tokenizer, card):
  """The tokenizer and the README.md of a folder, where they are given."""
  if tokenizer is not None:
    tokenizer.save_pretrained(folder)
  if card is not None:
    (folder / "README.md").write_text(card, encoding="utf-8")


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


class Stored(NamedTuple):
  """A tensor of a folder, before it is read."""

  path: pathlib.Path
  dtype: str  # as safetensors names it
  shape: tuple[int, ...]


def _stored(folder):
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


def _places(spec):
  """[(index of the leading axes, name of its tensor)] of one leaf."""
  counts = map(range, spec.shape[: spec.stacked])
  return [(i, spec.name.format(*i)) for i in itertools.product(*counts)]


def _stored_shape(spec):
  shape, n = specs.layer_shape(spec), spec.inputs
  if spec.shared:
    return spec.shared.whole
  if not n:  # heads are flat in a bias, a vocabulary is not
    return (math.prod(shape),) if spec.stacked else shape
  inputs, outputs = math.prod(shape[:n]), math.prod(shape[n:])
  return (inputs, outputs) if spec.inputs_first else (outputs, inputs)


def _view(tensor, spec):
  """What a stored tensor holds of a leaf: a view in the leaf's own axes.

  One place for reading, which copies from the view, and for writing, which
  copies into it.
  """
  shape, n = specs.layer_shape(spec), spec.inputs
  if spec.shared:
    tensor = tensor.reshape(spec.shared.split)[spec.shared.part]
  if not n or spec.inputs_first:
    return tensor.reshape(shape)
  tensor = tensor.reshape(*shape[n:], *shape[:n])
  outputs = len(shape) - n
  return tensor.transpose(*range(outputs, len(shape)), *range(outputs))


def _match(stored, config, folder):
  """Name of each tensor of the model -> its name in the folder.

  Every one is there, floating and of the right shape, and there is no other.
  """
  table = jax.tree.leaves(specs.table(config), is_leaf=specs.is_spec)
  shapes = {
    name: _stored_shape(spec) for spec in table for _, name in _places(spec)
  }
  layout = LAYOUTS[config.family]
  bare = not any(name.startswith(layout.prefix) for name in stored)
  names = {
    name: name.removeprefix(layout.prefix) if bare else name for name in shapes
  }
  tied = [layout.names["head"]] if config.tied else []
  known = {*names.values(), *tied}
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
  path, kind, found = stored[name]
  if kind not in FLOATS:
    raise InputError(f"{path}: {name} holds {kind}; want {', '.join(FLOATS)}")
  if found != shape:
    raise InputError(
      f"{path}: {name} has shape {found}; config.json asks for {shape}"
    )


def _check_tied(stored, head, embed):
  # transformers 5 computes with a stored head that differs.
  if head in stored and not np.array_equal(
    _tensor(stored, head), _tensor(stored, embed)
  ):
    raise InputError(
      f"{stored[head].path}: {head} is not the embedding, although config.json "
      "says tie_word_embeddings; set that to false"
    )


def _tensor(stored, name):
  # A file that stays open keeps what was read of it in memory.
  with safetensors.safe_open(stored[name].path, framework="np") as file:
    return file.get_tensor(name)


def _leaf(stored, names, spec, dtype, sharding):
  """One leaf where it belongs, tensor by tensor.

  The host holds one tensor at a time beside what its own devices hold.
  """

  def layer(name):
    tensor = _tensor(stored, names[name])
    with np.errstate(over="ignore"):  # refused below
      array = _view(tensor, spec).astype(dtype, copy=False)
    if not np.isfinite(array).all():
      path = stored[names[name]].path
      raise InputError(
        f"{path}: {names[name]} holds numbers that are not finite in {dtype}"
      )
    return array

  if not spec.stacked:
    return _put(layer(spec.name), sharding)
  layer_sharding = sharding
  if sharding is not None:
    rest = PartitionSpec(*sharding.spec[spec.stacked :])
    layer_sharding = NamedSharding(sharding.mesh, rest)
  leaf = _zeros(spec.shape, dtype, sharding)()
  for index, name in _places(spec):
    leaf = _write_layer(leaf, _put(layer(name), layer_sharding), index)
  return leaf


def _put(array, sharding):
  if sharding is None:
    return jnp.asarray(array)
  return jax.make_array_from_callback(
    array.shape, sharding, lambda index: array[index]
  )


@functools.cache
def _zeros(shape, dtype, sharding):
  return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


@functools.partial(jax.jit, donate_argnums=0)
def _write_layer(leaf, layer, index):
  ones = (1,) * len(index)
  start = (*index, *(0,) * layer.ndim)
  return jax.lax.dynamic_update_slice(
    leaf, layer.reshape(ones + layer.shape), start
  )


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


def _contents(leaves):
  """{name of a stored tensor: its [(ArraySpec, leaf, index of the layer)]}."""
  contents = {}
  for spec, leaf in leaves:
    for index, name in _places(spec):
      contents.setdefault(name, []).append((spec, leaf, index))
  return contents


def _stored_tensor(parts):
  """The array of one stored tensor; one layer of each leaf on the host."""
  spec, leaf, _ = parts[0]
  tensor = np.empty(_stored_shape(spec), leaf.dtype)
  for spec, leaf, index in parts:
    _view(tensor, spec)[...] = np.asarray(leaf[index])
  return tensor


def _shards(contents):
  """Names of the tensors of each file, at most SHARD_BYTES if one fits."""
  shards, filled = [[]], 0
  for name, ((spec, leaf, _), *_) in contents.items():
    size = math.prod(_stored_shape(spec)) * leaf.dtype.itemsize
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
