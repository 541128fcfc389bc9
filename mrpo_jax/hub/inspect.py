# SPDX-License-Identifier: Apache-2.0
"""Inspection of a model folder: its arrays, and their bytes on each device."""

import json
import math

import jax
import jax.numpy as jnp

from mrpo_jax import parallel
from mrpo_jax.errors import InputError
from mrpo_jax.hub.read import read_config
from mrpo_jax.models import parameters
from mrpo_jax.text import aligned, counted


def lines(path, sizes, rules=None):
  """Lines of text about a Hugging Face folder; reads no weights.

  Args:
    path: folder with config.json and safetensors.
    sizes: {axis of `parallel.AXES`: its size}; the devices need not exist
      here.
    rules: changes to `parallel.RULES`.

  Returns:
    Iterator over lines: family, parameters, experts, the longest sequence
    that batching leaves alone, every array with its logical axes, bytes on
    each device.

  Raises:
    InputError: the folder cannot be read, or does not divide over the mesh.
  """
  config = read_config(path)
  values = json.loads(config.source)
  dtype = _dtype(values, path)
  table = parameters.table(config)
  mesh = jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))
  shardings = dict(_named(parallel.table_shardings(table, mesh, rules)))
  count = parameters.count_parameters(config)
  yield f"{path}: {config.family}, {count:,} parameters, {dtype.name}"
  if config.experts:
    yield (
      f"{config.experts} experts, {config.experts_per_token} for each token, "
      f"which so meets {parameters.count_active(config):,} of them"
    )
  if config.longest:
    yield f"sequences beyond {config.longest} tokens are refused in training"
  split = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
  yield f"on {counted(math.prod(sizes.values()), 'device')}, {split}:"
  rows = [("array", "axes", "shape", "one device", "bytes")]
  total = 0
  for name, spec in _named(table):
    local = shardings[name].shard_shape(spec.shape)
    size = math.prod(local) * dtype.itemsize
    total += size
    axes = " ".join(axis or "-" for axis in spec.axes)
    shapes = [" x ".join(map(str, shape)) for shape in (spec.shape, local)]
    rows.append((name, axes, *shapes, f"{size:,}"))
  width = max(len(size) for *_, size in rows)
  rows = [(*cells, size.rjust(width)) for *cells, size in rows]
  yield from aligned(rows).split("\n")
  yield f"{total:,} bytes on each device, {total / 2**30:.2f} GiB"


def _dtype(values, path):
  """The floating type that a config.json names."""
  given = values.get("dtype") or values.get("torch_dtype") or "float32"
  try:
    found = jnp.dtype(given)
  except (TypeError, ValueError):
    found = None
  if found is None or not jnp.issubdtype(found, jnp.floating):
    raise InputError(
      f"{path}: config.json says dtype {str(given)[:40]!r}; want a floating "
      "type such as 'bfloat16'"
    )
  return found


def _named(tree, prefix=""):
  """(path, leaf) of every leaf of nested dicts."""
  for key, node in tree.items():
    if isinstance(node, dict):
      yield from _named(node, f"{prefix}{key}.")
    else:
      yield prefix + key, node
