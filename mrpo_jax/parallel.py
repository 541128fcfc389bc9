# SPDX-License-Identifier: Apache-2.0
"""The mesh, and one page of rules: what each axis of an array is split over."""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mrpo_jax.errors import InputError
from mrpo_jax.models import spec as specs

AXES = ("data", "fsdp", "model")
RULES = {  # logical axis -> mesh axis
  "vocab": "model",
  "embed": "fsdp",
  "heads": "model",
  "kv_heads": "model",
  "mlp": "model",
  "layers": None,
}
ROWS = ("data", "fsdp")  # packed rows are split over both


def make_mesh(*, data=-1, fsdp=1, model=1, devices=None):
  """A mesh of all devices; -1 takes what the other axes leave."""
  devices = jax.devices() if devices is None else devices
  sizes = dict(data=data, fsdp=fsdp, model=model)
  free = [axis for axis, size in sizes.items() if size == -1]
  if len(free) > 1 or any(n < 1 and n != -1 for n in sizes.values()):
    raise InputError(f"mesh {sizes}: sizes are positive, at most one is -1")
  fixed = int(np.prod([size for size in sizes.values() if size != -1]))
  if free:
    sizes[free[0]] = len(devices) // fixed
  if int(np.prod(list(sizes.values()))) != len(devices):
    raise InputError(
      f"mesh {sizes} does not fit {len(devices)} devices; "
      "change mesh.data, mesh.fsdp or mesh.model"
    )
  # Auto: the partitioner places what the code does not; Explicit axes, the
  # default of make_mesh, would refuse indexing a sharded embedding.
  return jax.make_mesh(
    tuple(sizes.values()),
    AXES,
    axis_types=(AxisType.Auto,) * len(AXES),
    devices=devices,
  )


def partition(axes, rules):
  """Logical axes -> PartitionSpec; a mesh axis may serve one axis only."""
  entries = tuple(rules[axis] if axis else None for axis in axes)
  used = [entry for entry in entries if entry]
  if len(used) != len(set(used)):
    raise InputError(f"rules use a mesh axis twice for {axes}: {entries}")
  return PartitionSpec(*entries)


def param_shardings(config, mesh, rules=None):
  """The tree of NamedSharding of a model's parameters."""
  return table_shardings(specs.table(config), mesh, rules)


def table_shardings(table, mesh, rules=None):
  """The tree of NamedSharding of a tree of ArraySpec."""
  rules = {**RULES, **(rules or {})}

  def sharding(array):
    entries = partition(array.axes, rules)
    for size, axis in zip(array.shape, entries, strict=True):
      if axis and size % mesh.shape[axis]:
        raise InputError(
          f"{array.name}: {size} does not divide over mesh.{axis}="
          f"{mesh.shape[axis]}"
        )
    return NamedSharding(mesh, entries)

  return specs.map_specs(sharding, table)


def replicated(mesh):
  return NamedSharding(mesh, PartitionSpec())


def row_shards(mesh):
  """Over how many shards the rows of a micro-batch are split."""
  return int(np.prod([mesh.shape[axis] for axis in ROWS]))


def rows_sharding(mesh):
  return NamedSharding(mesh, PartitionSpec(None, ROWS, None))


def global_rows(view, mesh):
  """This process's Rows [A, R, T] as its share of the global arrays."""
  sharding = rows_sharding(mesh)
  return jax.tree.map(
    lambda array: jax.make_array_from_process_local_data(sharding, array), view
  )


def global_figures(given, mesh):
  """Figures of all pairs, the same on every process, as global arrays.

  Those of tokens are split as their rows are.
  """

  def place(path, array):
    is_of_tokens = path[0].key.endswith("_ARMK")
    sharding = rows_sharding(mesh) if is_of_tokens else replicated(mesh)
    return jax.make_array_from_process_local_data(sharding, array)

  return jax.tree.map_with_path(place, given)
