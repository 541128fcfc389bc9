# SPDX-License-Identifier: Apache-2.0
"""Loading a Hugging Face model folder, tensor by tensor into its sharding."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mrpo_jax.errors import InputError
from mrpo_jax.hub.folder import (
  config_file,
  leaf_view,
  read_object,
  read_tensor,
  stored_shape,
  stored_tensors,
  tensor_places,
)
from mrpo_jax.models import parameters
from mrpo_jax.models.families.read import config_from_hf
from mrpo_jax.models.families.tensor_names import LAYOUTS

FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors names them
BUFFERS = re.compile(
  r"(^|\.)(rotary_emb\.inv_freq|(attn|attention)\.bias|masked_bias)$"
)


def read_config(path):
  """The ModelConfig of a Hugging Face folder; reads no weights."""
  file = config_file(path)
  values = read_object(file)
  try:
    return config_from_hf(values)
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
    (config, params): ModelConfig and a tree in the shape of `parameters.table`.

  Raises:
    UnsupportedModel: the config asks for what is not computed here.
    InputError or OSError: names the file or the tensor that is wrong.
  """
  config = read_config(path)
  table = parameters.table(config)
  shardings = parameters.map_specs(lambda spec: None, table)
  if mesh is not None:
    from mrpo_jax import parallel

    shardings = parallel.param_shardings(config, mesh, rules)
  stored = stored_tensors(pathlib.Path(path))
  names = _match(stored, config, path)
  embed = names[table["embed"].name]
  if config.tied:
    _check_tied(stored, LAYOUTS[config.family].names["head"], embed)
  if dtype is None:
    # Without jax_enable_x64, a stored float64 becomes float32.
    dtype = jax.dtypes.canonicalize_dtype(read_tensor(stored, embed).dtype)
  dtype = _floating(dtype)
  params = jax.tree.map(
    lambda spec, to: _leaf(stored, names, spec, dtype, to),
    table,
    shardings,
    is_leaf=parameters.is_spec,
  )
  return config, params


def _match(stored, config, folder):
  """Name of each tensor of the model -> its name in the folder.

  Every one is there, floating and of the right shape, and there is no other.
  """
  table = jax.tree.leaves(parameters.table(config), is_leaf=parameters.is_spec)
  shapes = {
    name: stored_shape(spec)
    for spec in table
    for _, name in tensor_places(spec)
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
    read_tensor(stored, head), read_tensor(stored, embed)
  ):
    raise InputError(
      f"{stored[head].path}: {head} is not the embedding, although config.json "
      "says tie_word_embeddings; set that to false"
    )


def _leaf(stored, names, spec, dtype, sharding):
  """One leaf where it belongs, tensor by tensor.

  The host holds one tensor at a time beside what its own devices hold.
  """

  def layer(name):
    tensor = read_tensor(stored, names[name])
    with np.errstate(over="ignore"):  # refused below
      array = leaf_view(tensor, spec).astype(dtype, copy=False)
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
  for index, name in tensor_places(spec):
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
