# SPDX-License-Identifier: Apache-2.0
"""Checkpoints by Orbax: asynchronous, atomic, the newest readable one wins."""

import pathlib
import warnings

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from mrpo_jax.errors import InputError
from mrpo_jax.models import families, leaves


def manager(workdir, *, keep=2):
  """The CheckpointManager of <workdir>/checkpoints/<step>/{state,meta}.

  Leaving its context waits for what is still being written.
  """
  return ocp.CheckpointManager(
    pathlib.Path(workdir).absolute() / "checkpoints",
    item_names=("state", "meta"),
    options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
  )


@jax.jit
def checksum(tree):
  """One uint32 per array, over its bits in order; the same on every mesh."""

  def of(array):
    width = jnp.uint8 if array.dtype == jnp.bool_ else f"uint{_bits(array)}"
    bits = jax.lax.bitcast_convert_type(array, width).astype(jnp.uint32)
    place = jnp.zeros(array.shape, jnp.uint32)
    for axis, size in enumerate(array.shape):
      along = jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
      place = place * jnp.uint32(size) + along
    # Knuth's multiplicative hash of the place, made odd: any one flipped bit
    # changes the sum, and so do nearly all exchanges of values.
    return jnp.sum(bits * (place * jnp.uint32(2654435761) | jnp.uint32(1)))

  return [of(array) for array in jax.tree.leaves(tree)]


def _sums(tree):
  return [int(value) for value in jax.device_get(checksum(tree))]


def _bits(array):
  return 8 * array.dtype.itemsize


def save(manager, step, state, meta):
  """Starts writing; the arrays are copied before this returns."""
  sums = {field: _sums(tree) for field, tree in vars(state).items()}
  meta = {**meta, "checksum": sums}
  manager.save(
    step,
    args=ocp.args.Composite(
      state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
    ),
  )


def steps(workdir):
  """Complete checkpoints on disk, newest first; makes nothing."""
  folder = pathlib.Path(workdir) / "checkpoints"
  names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
  return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def restore(workdir, abstract_state, *, say=print):
  """(step, state) of the newest readable checkpoint, or None if there is none.

  An unreadable one is set aside as `broken-<step>` and said; when none can be
  read, InputError names them and nothing is moved.

  Args:
    workdir: folder of the run.
    abstract_state: TrainState of jax.ShapeDtypeStruct with shardings.
    say: receives one line per checkpoint that is set aside.
  """
  folder = pathlib.Path(workdir).absolute() / "checkpoints"
  found, broken = steps(workdir), []
  for step in found:
    try:
      state = read(folder / str(step), abstract_state)
    except Exception as error:  # Orbax and TensorStore raise many kinds
      broken.append((folder / str(step), _first_line(error)))
      continue
    for path, reason in broken:
      path.rename(path.with_name(f"broken-{path.name}"))
      say(f"checkpoint {path} cannot be read ({reason}); using step {step}")
    return step, state
  if not found:
    return None
  path, reason = broken[0]
  raise InputError(
    f"{path}: checkpoint cannot be read ({reason}), and there is no older "
    "one; remove the workdir to start again"
  )


def read(path, abstract_state):
  """One state into its shardings; ValueError where it is not what was saved."""
  with ocp.StandardCheckpointer() as checkpointer:
    state = checkpointer.restore(path / "state", abstract_state)
  for field, tree in vars(state).items():
    _compare(field, tree, read_meta(path))
  return state


def _compare(field, tree, meta):
  if _sums(tree) != meta["checksum"][field]:
    raise ValueError(f"its {field} differs from the checksum")


def read_meta(path):
  """The JSON beside a state."""
  with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
    return checkpointer.restore(path / "meta")


def newest_policy(workdir):
  """(step, params, ModelConfig, Adapter) of the newest checkpoint.

  The parameters are on the host, those of an adapter where one was trained;
  otherwise that is None.

  Raises:
    InputError: there is none, or it cannot be read; names it.
  """
  found = steps(workdir)
  if not found:
    raise InputError(f"{workdir}: no checkpoint yet")
  path = pathlib.Path(workdir).absolute() / "checkpoints" / str(found[0])
  try:
    meta = read_meta(path)
    with (
      warnings.catch_warnings()
    ):  # Orbax asks for shardings: the host is meant
      warnings.simplefilter("ignore", UserWarning)
      with ocp.PyTreeCheckpointer() as checkpointer:
        params = checkpointer.restore(path / "state")["params"]
    _compare("params", params, meta)
  except Exception as error:  # Orbax and TensorStore raise many kinds
    reason = _first_line(error)
    raise InputError(f"{path}: checkpoint cannot be read ({reason})") from error
  model, adapter = families.config_from_hf(meta["model"]), meta.get("adapter")
  if adapter is not None:
    adapter["targets"] = tuple(adapter["targets"])
    adapter = leaves.Adapter(**adapter)
  return found[0], params, model, adapter


def _first_line(error):
  return str(error).strip().split("\n")[0] or type(error).__name__


def abstract(state_shapes, shardings):
  """ShapeDtypeStructs that say where each array shall go."""
  return jax.tree.map(
    lambda shape, sharding: jax.ShapeDtypeStruct(
      shape.shape, shape.dtype, sharding=sharding
    ),
    state_shapes,
    shardings,
  )
