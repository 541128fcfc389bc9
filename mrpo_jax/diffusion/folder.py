# SPDX-License-Identifier: Apache-2.0
"""Folder of a denoiser: config.json beside its weights in safetensors.

A tensor is named by its place in `denoiser.table`, with dots: blocks.query
holds that of all layers.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mrpo_jax import files
from mrpo_jax.diffusion.denoiser import DenoiserConfig, table
from mrpo_jax.errors import InputError, blames
from mrpo_jax.hub import folder as hub_folder
from mrpo_jax.hub.write import finite, write_tensors
from mrpo_jax.models import parameters

TYPE = "mrpo_denoiser"  # model_type of its config.json


def save(path, config, params, *, classes=()):
  """Writes a folder that `load` reads, or nothing at all.

  Args:
    path: the folder to make; it must not exist, or be empty.
    config: DenoiserConfig.
    params: tree in the shape of `denoiser.table(config)`.
    classes: the names of its classes, in order.

  Raises:
    InputError: the folder is taken, the classes or parameters do not fit the
      config, or a number is not finite.
  """
  _check_classes(path, config, [*classes])
  specs, arrays = named(table(config)), {}
  for name, leaf in named(params).items():
    array, shape = np.asarray(leaf), specs[name].shape
    if array.shape != shape or array.dtype != np.float32:
      raise InputError(
        f"{name} is {array.dtype}{array.shape}; want float32{shape}"
      )
    arrays[name] = finite(name, array)
  values = {"model_type": TYPE, **dataclasses.asdict(config)}
  with files.new_folder(path) as partial:
    about = partial / "config.json"
    files.write_json(about, {**values, "class_names": [*classes]})
    write_tensors(partial / hub_folder.WEIGHTS, arrays, about)


def read_config(path):
  """(DenoiserConfig, names of its classes) of a folder."""
  file = hub_folder.config_file(path)
  values = files.read_json(file)
  found = values.pop("model_type", None)
  if found != TYPE:
    raise InputError(
      f"{file}: model_type is {found!r}; a denoiser's is {TYPE!r}"
    )
  names = values.pop("class_names", None)
  fields = {field.name: field for field in dataclasses.fields(DenoiserConfig)}
  for key in {*values, *fields}:
    if key not in fields or key not in values:
      known = "is not known" if key not in fields else "is missing"
      raise InputError(f"{file}: {key} {known}")
    want = int if key == "image" else fields[key].type
    given = values[key] if key == "image" else [values[key]]
    if not isinstance(given, list) or not all(type(x) is want for x in given):
      kind = "a list of int" if key == "image" else want.__name__
      raise InputError(f"{file}: {key} is {values[key]!r}; want {kind}")
  values["image"] = tuple(values["image"])
  if len(values["image"]) != 3:
    raise InputError(f"{file}: image is no height, width and channels")
  with blames(file, InputError):
    config = DenoiserConfig(**values)
  _check_classes(file, config, names)
  return config, tuple(names)


def _check_classes(where, config, names):
  texts = isinstance(names, list) and all(isinstance(x, str) for x in names)
  if not texts or len({*names}) < len(names):
    raise InputError(f"{where}: class_names is no list of distinct texts")
  if len(names) != config.classes:
    raise InputError(
      f"{where}: {len(names)} class_names, but {config.classes} classes"
    )


def load(path):
  """(DenoiserConfig, names of its classes, params) of a folder.

  Raises:
    InputError: names the file or the tensor that is wrong.
  """
  config, names = read_config(path)
  infos = hub_folder.tensor_infos(path)
  specs = named(table(config))
  hub_folder.refuse_names(
    path,
    missing=[name for name in specs if name not in infos],
    unexpected=[name for name in infos if name not in specs],
  )
  arrays = {}
  for name, spec in specs.items():
    if infos[name].shape != spec.shape or infos[name].dtype != "F32":
      raise InputError(
        f"{infos[name].path}: {name} is {infos[name].dtype}"
        f"{list(infos[name].shape)}; want F32{list(spec.shape)}"
      )
    array = hub_folder.read_tensor(infos, name)
    if not np.isfinite(array).all():
      raise InputError(f"{infos[name].path}: {name} is not finite")
    arrays[name] = jnp.asarray(array)
  treedef = jax.tree.structure(table(config), is_leaf=parameters.is_spec)
  return config, names, jax.tree.unflatten(treedef, [*arrays.values()])


def named(tree):
  """{name: leaf}, in the order of the tree's leaves."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): leaf
    for path, leaf in jax.tree.leaves_with_path(
      tree, is_leaf=parameters.is_spec
    )
  }
