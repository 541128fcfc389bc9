# SPDX-License-Identifier: Apache-2.0
"""Checkpoints by Orbax: asynchronous, atomic, the newest readable one wins."""

import dataclasses
import hashlib
import json
import logging
import math
import pathlib
import re
import warnings

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from mrpo_jax import files, processes
from mrpo_jax.errors import (
  InputError,
  StoppedRun,
  first_line,
  says_nothing_of_content,
)
from mrpo_jax.models import lora
from mrpo_jax.models.config import VALUED
from mrpo_jax.models.families.read import config_from_hf, with_value_head
from mrpo_jax.training import uploaded

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Best:
  """A figure of the evaluations, by which one checkpoint is the best."""

  figure: str
  sign: int  # 1: more is better; -1: less is

  def step(self, evaluations):
    """The best step of {step: figures}, of equal ones the first, or None."""
    values = {
      step: self.sign * figures[self.figure]
      for step, figures in sorted(evaluations.items())
      if math.isfinite(figures.get(self.figure, math.nan))
    }
    return max(values, key=values.get, default=None)


@dataclasses.dataclass(frozen=True)
class Kept:
  """Orbax's preservation policy: the newest checkpoints and the best stay."""

  folder: pathlib.Path
  newest: int
  best: Best | None

  def should_preserve(self, checkpoints, *, context):
    steps = [one.step for one in checkpoints]
    kept = set(steps[-self.newest :])
    if self.best is not None:
      evaluations = {}
      for one in checkpoints:
        try:  # Of the one that is being written, Orbax has what it was given.
          found = one.metrics or _evaluation(self.folder / str(one.step))
          evaluations[one.step] = found
        except StoppedRun as error:
          logger.warning(f"{error}; it may be the best, so it stays")
          kept.add(one.step)
      kept.add(self.best.step(evaluations))
    return [step in kept for step in steps]


def manager(workdir, *, keep=2, best=None):
  """The CheckpointManager of <workdir>/checkpoints/<step>/{state,meta}.

  Leaving its context waits for what is still being written.  What a killed
  run left half-written is removed.  At Google a checkpoint counts when Orbax
  has put its commit_success.txt; of S3, which Orbax cannot write, see
  `uploaded.Uploaded`.

  Args:
    workdir: folder of the run.
    keep: so many of the newest stay, and beside them
    best: the best one by this, a `Best`, where it is not None.
  """
  folder = files.absolute(workdir) / "checkpoints"
  kept = Kept(folder, keep, best)
  return uploaded.manager(folder, kept)


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


@jax.jit
def _are_finite(tree):
  """One bool per array: no number in it is infinite or none."""
  return [jnp.all(jnp.isfinite(array)) for array in jax.tree.leaves(tree)]


def _not_finite(tree):
  """Where a tree holds a number that is not finite, in words; or ""."""
  found = jax.device_get(_are_finite(tree))
  paths = [path for path, _ in jax.tree.leaves_with_path(tree)]
  bad = [
    jax.tree_util.keystr(path).lstrip(".")
    for path, is_finite in zip(paths, found, strict=True)
    if not is_finite
  ]
  more = f" and {len(bad) - 1} other arrays" if len(bad) > 1 else ""
  return f"{bad[0]}{more} not finite" if bad else ""


def _sums(tree):
  return [int(value) for value in jax.device_get(checksum(tree))]


def _bits(array):
  return 8 * array.dtype.itemsize


def save(manager, step, state, meta):
  """Starts writing; the arrays are copied before this returns.

  Args:
    manager: of `manager`.
    step: of the state.
    state: TrainState.
    meta: what JSON can say about it; `evaluation`, if there, are the figures
      of the evaluation at this step.

  Raises:
    StoppedRun: a number of the state is not finite; then nothing is written,
      and nothing that is there makes room for it.
  """
  if bad := _not_finite(state):
    raise StoppedRun(f"the state after step {step} has {bad}")
  sums = {field: _sums(tree) for field, tree in _stored(state).items()}
  meta = {**meta, "arrays": _arrays(state), "checksum": sums}
  meta["digest"] = _digest(meta)
  manager.save(
    step,
    args=ocp.args.Composite(
      state=ocp.args.StandardSave(_stored(state)), meta=ocp.args.JsonSave(meta)
    ),
    metrics=meta.get("evaluation"),
    force=True,
  )


def _stored(state):
  """{field: tree}; what online runs alone have only where it is there."""
  return {
    field: tree
    for field, tree in vars(state).items()
    if field != "online" or tree
  }


def _arrays(tree):
  """{place: dtype and shape} of every array of a tree."""
  return {
    jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def _digest(meta):
  return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def steps(workdir):
  """Complete checkpoints on disk, newest first; makes nothing."""
  return uploaded.steps_in(files.path_of(workdir) / "checkpoints")


def stands_at(workdir):
  """The newest step by what checkpoints say of themselves; 0 without any.

  Their arrays are not read.
  """
  folder = files.path_of(workdir) / "checkpoints"
  for step in steps(workdir):
    if _said_step(folder / str(step)) == step:
      return step
  return 0


def _said_step(path):
  """The step in the JSON beside a state; None where that cannot be read."""
  try:
    # As a plain file: no other process has to read it at the same time.
    with files.opened(path / "meta" / "metadata") as file:
      found = json.loads(file.read())["step"]
  except (OSError, ValueError, KeyError, TypeError):
    return None
  return found if isinstance(found, int) else None


def restore(workdir, abstract_state):
  """(step, state) of the newest readable checkpoint, or None if there is none.

  An unreadable one, or one with a number that is not finite, is set aside as
  `broken-<step>` and said; when none can be read, InputError names them and
  nothing is moved.  So it does where the arrays of a checkpoint are others than
  those asked for.  What is under another name than its step is set aside, too.
  Where the disk, the network or the memory fails, nothing is: StoppedRun.

  Args:
    workdir: folder of the run.
    abstract_state: TrainState of jax.ShapeDtypeStruct with shardings.
  """
  folder = files.absolute(workdir) / "checkpoints"
  found, broken = steps(workdir), []
  for step in found:
    try:
      state = read(folder / str(step), abstract_state)
    except (InputError, StoppedRun):
      raise
    except Exception as error:  # Orbax and TensorStore raise many kinds
      broken.append((folder / str(step), first_line(error)))
      continue
    for path, reason in broken:
      if processes.is_first():
        _set_aside(path)
      logger.warning(
        f"checkpoint {path} cannot be read ({reason}); using step {step}"
      )
    _set_aside_renamed(folder, [one for one in found if one < step])
    return step, state
  if not found:
    return None
  path, reason = broken[0]
  raise InputError(
    f"{path}: checkpoint cannot be read ({reason}), and there is no older "
    "one; remove the workdir to start again"
  )


def _set_aside_renamed(folder, older):
  """Those of the older steps that say they are of another one."""
  said = {step: _said_step(folder / str(step)) for step in older}
  processes.gather(None)  # all have looked
  for step, real in said.items():
    if real not in (None, step):
      if processes.is_first():
        _set_aside(folder / str(step))
      logger.warning(
        f"checkpoint {folder / str(step)} is of step {real}, under another "
        "name; it is set aside"
      )


def _set_aside(path):
  """Renames it to `broken-<step>`; a step may have broken before."""
  to, count = path.with_name(f"broken-{path.name}"), 1
  while to.exists():
    count += 1
    to = path.with_name(f"broken-{path.name}-{count}")
  files.move_folder(path, to)


def read(path, abstract_state):
  """One state into its shardings; ValueError where it is not what was saved.

  What one process cannot read, none has read.

  Raises:
    InputError: its arrays have other shapes.
    StoppedRun: a process did not reach it, so that it may be whole.
  """
  state = meta = stored = reason = None
  try:
    meta = read_meta(path)
    _check_arrays(path, _arrays(abstract_state), meta["arrays"])
    with (
      uploaded.readable(path / "state") as folder,
      ocp.StandardCheckpointer() as checkpointer,
    ):
      stored = checkpointer.restore(folder, _stored(abstract_state))
    state = abstract_state.replace(**stored)
  except InputError:  # all processes find the same
    raise
  except Exception as error:  # Orbax and TensorStore raise many kinds
    reason = [first_line(error), says_nothing_of_content(error)]
  reasons = [one for one in processes.gather(reason) if one is not None]
  for said, is_unreached in reasons:
    if is_unreached:
      raise StoppedRun(
        f"{_unreached(path, said)} and left as it is: give the same command "
        "again; if it stays so, move it away to go on from an older one"
      )
  if reasons:
    raise ValueError(reasons[0][0])
  for field, tree in _stored(state).items():
    _compare(field, tree, meta)
  if bad := _not_finite(state):
    raise ValueError(f"it has {bad}")
  return state


def _unreached(path, reason):
  return f"{path}: checkpoint cannot be reached ({reason})"


def _check_arrays(path, here, there):
  for name in sorted({*here, *there}):
    if here.get(name) != there.get(name):
      raise InputError(
        f"{path} is of another model, loss or optimizer: {name} is "
        f"{there.get(name)} there, {here.get(name)} here; use another --workdir"
      )


def _compare(field, tree, meta):
  if _sums(tree) != meta["checksum"][field]:
    raise ValueError(f"its {field} differs from the checksum")


def read_meta(path):
  """The JSON beside a state; ValueError where it is not what was saved."""
  with (
    uploaded.readable(path / "meta") as folder,
    ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer,
  ):
    meta = checkpointer.restore(folder)
  digest = meta.pop("digest")
  if digest != _digest(meta):
    raise ValueError("its meta differs from the checksum")
  if meta["step"] != int(path.name):
    raise ValueError(f"it is of step {meta['step']}, under another name")
  return meta


def _evaluation(path):
  """Figures of the evaluation at a checkpoint; none where it was not judged.

  Raises:
    StoppedRun: it was not reached, so that it may be the best.
  """
  try:
    return read_meta(path).get("evaluation", {})
  except Exception as error:  # Orbax raises many kinds
    if says_nothing_of_content(error):
      raise StoppedRun(_unreached(path, first_line(error))) from error
    return {}  # as in `restore`: what cannot be read is not the best


def find(workdir, which, best=None):
  """The step that is meant by "newest", "best" or a number in digits.

  Raises:
    InputError: there is none, or no such one; names those that there are.
  """
  found = steps(workdir)
  if not found:
    raise InputError(f"{workdir}: no checkpoint yet")
  if which == "newest":
    return found[0]
  if which == "best":
    if best is None:
      raise InputError(
        f"--step best: config.checkpoints.best of {workdir} names no figure"
      )
    folder = files.absolute(workdir) / "checkpoints"
    step = best.step({one: _evaluation(folder / str(one)) for one in found})
    if step is None:
      raise InputError(f"{workdir}: no checkpoint has {best.figure} yet")
    return step
  if which not in map(str, found):
    kept = ", ".join(map(str, sorted(found)))
    raise InputError(
      f"--step {which}: no such checkpoint; want newest, best or one of {kept}"
    )
  return int(which)


def policy(workdir, step):
  """(params, ModelConfig, Adapter, meta) of one checkpoint.

  The parameters are on the host, those of an adapter where one was trained;
  otherwise that is None.

  Raises:
    InputError: it cannot be read; names it.
  """
  params, meta = field(workdir, step, "params")
  model, adapter = config_from_hf(meta["model"]), meta.get("adapter")
  if meta.get("head") == VALUED:
    model = with_value_head(model)
  if adapter is not None:
    adapter = lora.Adapter.of_json(adapter)
  return params, model, adapter, meta


def field(workdir, step, name):
  """(tree on the host, meta) of one field of a TrainState that was saved.

  Raises:
    InputError: it cannot be read; names the checkpoint.
  """
  path = files.absolute(workdir) / "checkpoints" / str(step)
  try:
    meta = read_meta(path)
    with (
      warnings.catch_warnings()
    ):  # Orbax asks for shardings: the host is meant
      warnings.simplefilter("ignore", UserWarning)
      with (
        uploaded.readable(path / "state") as folder,
        ocp.PyTreeCheckpointer() as checkpointer,
      ):
        tree = checkpointer.restore(folder)[name]
    if _by_place(tree) != _saved_by_place(name, meta):
      raise ValueError(f"its {name} differs from the checksum")
    if bad := _not_finite(tree):
      raise ValueError(f"its {name} have {bad}")
  except Exception as error:  # Orbax and TensorStore raise many kinds
    reason = first_line(error)
    raise InputError(f"{path}: checkpoint cannot be read ({reason})") from error
  return tree, meta


def _by_place(tree):
  """{place: checksum} of a tree that was read as plain dicts.

  Its arrays may stand in another order than they did, at the same places.
  """
  paths = [path for path, _ in jax.tree.leaves_with_path(tree)]
  return dict(zip(map(_place, paths), _sums(tree), strict=True))


def _saved_by_place(name, meta):
  """The same of a field of a TrainState, from the JSON beside it."""
  places = [tuple(re.findall(r"\w+", path)) for path in meta["arrays"]]
  places = [place[1:] for place in places if place[0] == name]
  return dict(zip(places, meta["checksum"][name], strict=True))


def _place(path):
  return tuple(re.findall(r"\w+", jax.tree_util.keystr(path)))
