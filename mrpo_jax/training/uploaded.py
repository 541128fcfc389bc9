# SPDX-License-Identifier: Apache-2.0
"""Folders of checkpoints on disks, at Google and at S3, and who writes there.

Orbax writes and reads disks and gs:// itself, each process its own shards.  Of
s3:// it knows the metadata alone: of its arrays it says "Checkpoint path should
be absolute" (0.12.8).  So there a checkpoint is written here and put, and is
fetched before it is read.  In both kinds of buckets it counts when its
commit_success.txt is there, which comes last.
"""

import contextlib
import pathlib
import re
import tempfile
from typing import NamedTuple

import orbax.checkpoint as ocp

from mrpo_jax import buckets, files, processes
from mrpo_jax.errors import InputError

STEP = re.compile("0|[1-9][0-9]*")  # names of their folders
COMMIT = "commit_success.txt"  # Orbax's name


def _is_s3(path):
  return str(path).startswith("s3://")


def steps_in(folder):
  """The steps of complete checkpoints, newest first; makes nothing."""
  if buckets.is_bucket(folder):
    paths = files.matching(f"{folder}/*/{COMMIT}")
    names = [path.parent.name for path in paths]
  else:
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
  found = (int(name) for name in names if STEP.fullmatch(name))
  return sorted(found, reverse=True)


@contextlib.contextmanager
def readable(folder):
  """The folder of one item of a checkpoint, where Orbax can read it."""
  if not _is_s3(folder):
    yield folder
    return
  with tempfile.TemporaryDirectory(prefix="mrpo-") as draft:
    copy = pathlib.Path(draft) / folder.name
    buckets.fetch_folder(folder, copy)
    yield copy


def manager(folder, policy):
  """What writes checkpoints into a folder: a context with Orbax's `save`.

  Args:
    folder: absolute.
    policy: Orbax's preservation policy: which of them stay.
  """
  if _is_s3(folder):
    return Uploaded(folder, policy)
  return _orbax(folder, preservation_policy=policy)


def _orbax(folder, **given):
  return ocp.CheckpointManager(
    folder,
    item_names=("state", "meta"),
    options=ocp.CheckpointManagerOptions(
      cleanup_tmp_directories=True, create=True, **given
    ),
  )


class _Entry(NamedTuple):
  """A checkpoint, as preservation policies see it."""

  step: int
  metrics: dict | None


class Uploaded:
  """Writes checkpoints here, and puts each whole, its commit file last.

  The run waits until one is there.  A context, as Orbax's manager is.
  """

  def __init__(self, folder, policy):
    """Removes what a killed run left half-written.

    Raises:
      InputError: there are several processes, of which each has a part only.
    """
    if processes.several():
      raise InputError(
        f"{folder}: one process alone writes checkpoints to s3://; with "
        "several name a workdir at gs://, or on a disk that all share"
      )
    self._folder, self._policy = folder, policy
    self._draft = tempfile.TemporaryDirectory(prefix="mrpo-")
    self._manager = _orbax(pathlib.Path(self._draft.name), max_to_keep=1)
    whole = set(map(str, steps_in(folder)))
    names = {one[0].split("/")[0] for one in buckets.marks_of(folder)}
    for name in sorted(names - whole):
      if STEP.fullmatch(name):
        buckets.remove_tree(folder / name)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._manager.close()
    self._draft.cleanup()

  def save(self, step, *, args, metrics=None, force=False):
    self._manager.save(step, args=args, force=force)
    self._manager.wait_until_finished()
    here = pathlib.Path(self._draft.name) / str(step)
    if step in steps_in(self._folder):  # one that could not be read, say
      buckets.remove_tree(self._folder / str(step))
    buckets.put_folder(here, self._folder / str(step))
    entries = [
      _Entry(one, metrics if one == step else None)
      for one in sorted(steps_in(self._folder))
    ]
    stay = self._policy.should_preserve(entries, context=None)
    for entry, stays in zip(entries, stay, strict=True):
      if not stays:
        buckets.remove_tree(self._folder / str(entry.step))
