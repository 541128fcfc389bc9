# SPDX-License-Identifier: Apache-2.0
"""Loading a Hugging Face model folder, tensor by tensor into its sharding."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mrpo_jax import files, parallel, processes
from mrpo_jax.errors import InputError, blames
from mrpo_jax.hub.folder import (
  config_file,
  floating,
  read_tensor,
  refuse_names,
  stored,
  tensor_infos,
)
from mrpo_jax.hub.shares import Shares
from mrpo_jax.models import parameters
from mrpo_jax.models.config import VALUED
from mrpo_jax.models.families import FAMILIES
from mrpo_jax.models.families.read import (
  config_from_hf,
  with_scalar_head,
  with_value_head,
)

FLOATS = {  # as safetensors names them
  "F64": np.float64,
  "F32": np.float32,
  "F16": np.float16,
  "BF16": jnp.bfloat16,
}
BUFFERS = re.compile(
  r"(^|\.)(rotary_emb\.inv_freq|(attn|attention)\.bias|masked_bias)$"
)


def read_config(path):
  """The ModelConfig of a Hugging Face folder; reads no weights."""
  file = config_file(path)
  values = files.read_json(file)
  try:
    return config_from_hf(values)
  except InputError as error:
    raise type(error)(f"{file}: {error}") from None


def load(path, *, dtype=None, mesh=None, rules=None, head=None):
  """Reads a model from a Hugging Face folder.

  Args:
    path: folder with config.json and safetensors.
    dtype: floating type of all leaves; None keeps that of the embedding.
    mesh: jax.sharding.Mesh to place the leaves on; None means the default
      device.
    rules: changes to `parallel.RULES`; see `parallel.rules_of`.
    head: "scalar" gives a causal LM a scalar head of zeros in place of its
      own, and leaves a reward model as it is; "tokens+value" gives it a value
      head of zeros beside its own; None is what the folder holds.

  Returns:
    (config, params): ModelConfig and a tree in the shape of `parameters.table`.

  Raises:
    UnsupportedModel: the config asks for what is not computed here.
    InputError or OSError: names the file or the tensor that is wrong.
  """
  config = found = read_config(path)
  if head == "scalar":
    config = with_scalar_head(found)
  if head == VALUED:
    with blames(path, InputError):
      config = with_value_head(found)
  leaves = stored(config)
  shardings = jax.tree.map(lambda one: None, leaves)
  if mesh is not None:
    shardings = parallel.param_shardings(config, mesh, rules)
  infos = tensor_infos(path)
  shares = None
  if mesh is not None and processes.several():
    shares = Shares(infos, mesh)
  made = [*parameters.numbers(leaves)] if config.head != found.head else []
  names = _match(infos, found, made, leaves, path)
  embed = names[leaves["embed"].name]
  if config.tied:
    head = FAMILIES[config.family].tensors.of("head")
    _check_tied(infos, head, embed, shares)
  if dtype is None:
    # Without jax_enable_x64, a stored float64 becomes float32.
    dtype = jax.dtypes.canonicalize_dtype(FLOATS[infos[embed].dtype])
  dtype = floating(dtype)
  arrays = {
    name: _zeros(leaves[name].spec.shape, dtype, shardings[name])()
    for name in made
  }
  leaves = {name: one for name, one in leaves.items() if name not in arrays}
  flat, tree = jax.tree.flatten(leaves)
  to = tree.flatten_up_to({name: shardings[name] for name in leaves})
  found, sharing = [None] * len(flat), {}
  for place, one in enumerate(flat):
    sharing.setdefault(one.name, []).append(place)
  for places in sharing.values():
    members, there = [flat[i] for i in places], [to[i] for i in places]
    some = _together(infos, names, members, dtype, there, shares)
    for place, array in zip(places, some, strict=True):
      found[place] = array
  arrays |= jax.tree.unflatten(tree, found)
  if shares is not None:
    shares.check()
  return config, arrays


def _match(infos, config, made, leaves, folder):
  """Name of each tensor of the model -> its name in the folder.

  Every one is there, floating and of the right shape, and there is no other.

  Args:
    infos: see `tensor_infos`.
    config: ModelConfig of the folder.
    made: leaves that are not read.
    leaves: tree of Stored of the model.
    folder: for messages.
  """
  read = {name: one for name, one in leaves.items() if name not in made}
  shapes = {
    name: one.shape
    for one in jax.tree.leaves(read)
    for _, name in one.tensors()
  }
  family = FAMILIES[config.family].tensors
  bare = not any(name.startswith(family.prefix) for name in infos)
  names = {
    name: name.removeprefix(family.prefix) if bare else name for name in shapes
  }
  unread = [family.of("head")] if config.tied or "score" in made else []
  known = {*names.values(), *unread}
  refuse_names(
    folder,
    missing=[name for name in names.values() if name not in infos],
    unexpected=[
      name for name in infos if name not in known and not BUFFERS.search(name)
    ],
  )
  for name, shape in shapes.items():
    _check_tensor(infos, names[name], shape)
  return names


def _check_tensor(infos, name, shape):
  path, kind, found = infos[name]
  if kind not in FLOATS:
    raise InputError(f"{path}: {name} holds {kind}; want {', '.join(FLOATS)}")
  if found != shape:
    raise InputError(
      f"{path}: {name} has shape {found}; config.json asks for {shape}"
    )


def _check_tied(infos, head, embed, shares):
  # transformers 5 computes with a stored head that differs.
  if head not in infos:
    return
  if shares is not None:
    is_same = shares.equal(head, embed)
  else:
    is_same = np.array_equal(
      read_tensor(infos, head), read_tensor(infos, embed)
    )
  if not is_same:
    raise InputError(
      f"{infos[head].path}: {head} is not the embedding, although config.json "
      "says tie_word_embeddings; set that to false"
    )


def _together(infos, names, members, dtype, shardings, shares):
  """The leaves that share their tensors, each where it belongs.

  The host holds one tensor at a time beside what its own devices hold; where
  processes share the reading, a part of one.
  """
  first = members[0]
  places = [_of_layer(to, first.stacked) for to in shardings]

  def alone(name):
    tensor, arrays = read_tensor(infos, name), []
    for one, to in zip(members, places, strict=True):
      with np.errstate(over="ignore"):  # refused below
        array = one.view(tensor).astype(dtype, copy=False)
      if not np.isfinite(array).all():
        raise InputError(
          f"{infos[name].path}: {name} holds numbers that are not finite in "
          f"{dtype}"
        )
      arrays.append(_put(array, to))
    return arrays

  read = alone
  if shares is not None:
    views = [one.view for one in members]
    read = shares.reader(views, first.shape, dtype, places)
  if not first.stacked:
    return read(names[first.name])
  leaves = [
    _zeros(one.spec.shape, dtype, to)()
    for one, to in zip(members, shardings, strict=True)
  ]
  for index, name in first.tensors():
    arrays = read(names[name])
    leaves = [
      _write_layer(leaf, array, index)
      for leaf, array in zip(leaves, arrays, strict=True)
    ]
  return leaves


def _of_layer(sharding, stacked):
  """The sharding of one layer of a leaf whose first axes are the layers."""
  if sharding is None:
    return None
  rest = PartitionSpec(*sharding.spec[stacked:])
  return NamedSharding(sharding.mesh, rest)


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
