# SPDX-License-Identifier: Apache-2.0
"""The mesh, and one page of rules: what each axis of an array is split over."""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mrpo_jax.errors import InputError
from mrpo_jax.models import parameters
from mrpo_jax.models.partition import WHOLE, Partition
from mrpo_jax.text import counted

AXES = ("data", "fsdp", "context", "model")
# Logical axis of a weight -> mesh axes.  `context` serves the first axis of an
# array that names it: vocabulary of embedding and head, else the width.
RULES = {
  "vocab": ("model", "context"),
  "embed": ("fsdp", "context"),
  "heads": ("model",),
  "kv_heads": ("model",),
  "mlp": ("model",),
  "experts": ("model",),
  "expert_mlp": (),
  "layers": (),
}
ROWS = ("data", "fsdp")  # packed rows are split over both


def make_mesh(*, data=-1, fsdp=1, context=1, model=1, devices=None):
  """A mesh of all devices; -1 takes what the other axes leave."""
  devices = jax.devices() if devices is None else devices
  sizes = dict(data=data, fsdp=fsdp, context=context, model=model)
  free = [axis for axis, size in sizes.items() if size == -1]
  if len(free) > 1 or any(n < 1 and n != -1 for n in sizes.values()):
    raise InputError(f"mesh {sizes}: sizes are positive, at most one is -1")
  fixed = int(np.prod([size for size in sizes.values() if size != -1]))
  if free:
    sizes[free[0]] = len(devices) // fixed
  if int(np.prod(list(sizes.values()))) != len(devices):
    raise InputError(
      f"mesh {sizes} does not fit {counted(len(devices), 'device')}; "
      "change mesh.data, mesh.fsdp, mesh.context or mesh.model"
    )
  # Auto: the partitioner places what the code does not; Explicit axes, the
  # default of make_mesh, would refuse indexing a sharded embedding.
  return jax.make_mesh(
    tuple(sizes.values()),
    AXES,
    axis_types=(AxisType.Auto,) * len(AXES),
    devices=devices,
  )


def rules_of(changes=None, where="rules"):
  """RULES with changes.

  Args:
    changes: {logical axis: mesh axes}; these are a tuple, or text with commas,
      the outermost first; empty (or None) keeps the axis whole.
    where: what to call the changes in an error.

  Raises:
    InputError: an axis that is not known, or one mesh axis twice in a rule.
  """
  rules = dict(RULES)
  for axis, given in (changes or {}).items():
    if axis not in RULES:
      raise InputError(
        f"{where}.{axis} is not known; known here: {', '.join(RULES)}"
      )
    if isinstance(given, str):
      given = [name.strip() for name in given.split(",") if name.strip()]
    rules[axis] = tuple(given or ())
    for name in rules[axis]:
      if name not in AXES:
        raise InputError(
          f"{where}.{axis}: the mesh has no axis {name!r}; it has "
          f"{', '.join(AXES)}"
        )
    if len(set(rules[axis])) < len(rules[axis]):
      raise InputError(f"{where}.{axis} uses an axis twice: {rules[axis]}")
  return rules


def _split_over(leaf, array, rules):
  """Mesh axes of each axis of an ArraySpec; each may serve one axis only."""
  entries = [rules[axis] if axis else () for axis in array.axes]
  of_context = [i for i, entry in enumerate(entries) if "context" in entry]
  for i in of_context[1:]:
    entries[i] = tuple(name for name in entries[i] if name != "context")
  used = [name for entry in entries for name in entry]
  for name in used:
    if used.count(name) > 1:
      split = [axis for axis in array.axes if axis and name in rules[axis]]
      raise InputError(
        f"{leaf}: rules use mesh.{name} twice, for its axes "
        f"{' and '.join(split)}"
      )
  return entries


def param_shardings(config, mesh, rules=None):
  """The tree of NamedSharding of a model's parameters."""
  return table_shardings(parameters.table(config), mesh, rules)


def table_shardings(table, mesh, rules=None):
  """The tree of NamedSharding of a tree of ArraySpec.

  Args:
    table: tree of ArraySpec.
    mesh: jax.sharding.Mesh, or an AbstractMesh; it may lack axes.
    rules: changes to RULES; see `rules_of`.

  Raises:
    InputError: names the leaf whose axis does not divide, or for which two
      rules use one mesh axis.
  """
  rules = {
    axis: tuple(name for name in names if name in mesh.shape)
    for axis, names in rules_of(rules).items()
  }

  def sharding(path, array):
    leaf = jax.tree_util.keystr(path, simple=True, separator=".")
    entries = _split_over(leaf, array, rules)
    for size, axis, of in zip(array.shape, array.axes, entries, strict=True):
      names = [name for name in of if mesh.shape[name] > 1]
      if size % int(np.prod([mesh.shape[name] for name in names])):
        over = " * ".join(f"mesh.{name}={mesh.shape[name]}" for name in names)
        raise InputError(
          f"{leaf}: {size} does not divide over {over}; in a "
          f"config, an empty mesh.rules.{axis} keeps it whole"
        )
    return NamedSharding(mesh, PartitionSpec(*(of or None for of in entries)))

  return jax.tree.map_with_path(sharding, table)


def partition_of(mesh, rules=None):
  """The models' Partition: how activations follow from the rules of weights.

  Rows take their axes first, then tokens: a rule that splits another axis over
  one of those holds for the weights alone, but for vocabulary over `context`.
  """
  if mesh.size == 1:
    return WHOLE
  rules = rules_of(rules)

  def beside(axis, taken=(*ROWS, "context")):
    return tuple(name for name in rules[axis] if name not in taken)

  return Partition(
    mesh,
    rows=ROWS,
    context=("context",),
    heads=beside("heads"),
    kv_heads=beside("kv_heads"),
    vocab=beside("vocab", ROWS),
    experts=beside("experts"),
    expert_mlp=beside("expert_mlp"),
    embed=tuple(name for name in rules["embed"] if name in ROWS),
  )


def replicated(mesh):
  return NamedSharding(mesh, PartitionSpec())


def row_shards(mesh):
  """Number of shards that the rows of a micro-batch are split over."""
  return int(np.prod([mesh.shape[axis] for axis in ROWS]))


def row_share(mesh):
  """(i, n): this process reads the i-th of n equal shares of the rows.

  Processes whose devices hold the same rows, as along `model`, share one.

  Raises:
    InputError: the devices of two processes hold some rows in common, not all.
  """
  shards = row_shards(mesh)
  places = rows_sharding(mesh).devices_indices_map((1, shards, 1))
  held = {}
  for device, (_, rows, _) in places.items():
    held.setdefault(device.process_index, set()).add(rows.start or 0)
  shares = sorted({tuple(sorted(rows)) for rows in held.values()})
  if len({len(share) for share in shares}) > 1 or shards != sum(
    map(len, shares)
  ):
    raise InputError(
      f"mesh {dict(mesh.shape)}: the rows do not divide over {len(held)} "
      "processes; change mesh.data, mesh.fsdp or mesh.model"
    )
  return shares.index(tuple(sorted(held[jax.process_index()]))), len(shares)


def examples_sharding(mesh):
  """Of arrays whose first axis is examples, an array element each."""
  return NamedSharding(mesh, PartitionSpec(ROWS))


def rows_sharding(mesh):
  return NamedSharding(mesh, PartitionSpec(None, ROWS, None))


def global_rows(view, mesh):
  """This process's Rows [A, R, T] as its share of the global arrays."""
  sharding = rows_sharding(mesh)
  return jax.tree.map(
    lambda array: jax.make_array_from_process_local_data(sharding, array), view
  )


def global_figures(given, mesh):
  """Figures of all pairs, the same on every process, as global arrays."""
  return jax.tree.map(
    jax.make_array_from_process_local_data,
    figure_shardings(given, mesh),
    given,
  )


def global_batch(views, given, mesh):
  """(views, given) of `step.train_step` on the mesh, from this process's."""
  rows = tuple(global_rows(view, mesh) for view in views)
  return rows, global_figures(given, mesh)


def abstract(tree, shardings):
  """The arrays of a tree as jax.ShapeDtypeStruct, each with its sharding.

  `shardings` is a tree of the same shape, or one for all.
  """
  if isinstance(shardings, NamedSharding):
    shardings = jax.tree.map(lambda _: shardings, tree)
  return jax.tree.map(
    lambda array, to: jax.ShapeDtypeStruct(
      array.shape, array.dtype, sharding=to
    ),
    tree,
    shardings,
  )


def figure_shardings(given, mesh):
  """The tree of NamedSharding of such figures.

  Those of tokens are split as their rows are.
  """

  def sharding(path, _):
    is_of_tokens = path[0].key.endswith(("_ARM", "_ARMK"))
    return rows_sharding(mesh) if is_of_tokens else replicated(mesh)

  return jax.tree.map_with_path(sharding, given)
