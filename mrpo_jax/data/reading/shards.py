# SPDX-License-Identifier: Apache-2.0
"""Data files that a name stands for: one, a glob, a folder of shards."""

import glob
import logging
import pathlib
import re

from mrpo_jax.data.reading.row_files import SUFFIXES
from mrpo_jax.errors import InputError

logger = logging.getLogger(__name__)

# What stands beside data and is none.
METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")
METADATA += ("features.json", "metadata.json", "state.json", "config.json")
TFDS = ("dataset_info.json", "features.json")
SPLIT_OF = re.compile(
  r"(?:^|[^a-z])((?:train|training|test|testing|validation|valid|val|dev|eval"
  r"|evaluation)(?:_[a-z]+)*)(?=$|[^a-z])"
)


def files_of(name, split=None):
  """Paths of the files that a name stands for, in order; None if it is none.

  Args:
    name: of a file, also of one that is not there, a glob, or a folder, which
      is taken with its own folders.
    split: which of a folder's files, by their names; None where all are one.

  Raises:
    InputError: a glob finds nothing; a folder holds files of several kinds or
      of several splits, or not the split.
  """
  path = pathlib.Path(name)
  if not name:
    return None
  if path.is_dir():
    return _shards(path, split)
  if split is not None:
    return None
  if path.exists():
    return [path]
  if glob.has_magic(name):
    found = sorted(map(pathlib.Path, glob.glob(name, recursive=True)))
    if "**" in name:
      found = [one for one in found if not one.is_dir()]
    if found:
      return _said(name, found)
    if "*" in name or "?" in name:
      raise InputError(f"{name}: finds no file; check the path")
  return [path] if name.lower().endswith(SUFFIXES) else None


def _shards(folder, split):
  found, others = [], []
  for path in sorted(folder.rglob("*")):
    inside = path.relative_to(folder)
    hidden = any(part.startswith((".", "_")) for part in inside.parts)
    if hidden or path.is_dir():
      continue
    is_data = path.name.lower().endswith(SUFFIXES)
    (found if is_data and path.name not in METADATA else others).append(path)
  if not found or any((folder / name).exists() for name in TFDS):
    return None
  kinds = {_kind(path) for path in found}
  if len(kinds) > 1:
    raise InputError(
      f"{folder}: holds files of several kinds, {', '.join(sorted(kinds))}; "
      f"name one: {folder}/*{min(kinds)}"
    )
  splits = {}
  for path in found:
    splits.setdefault(_split(path.relative_to(folder)), []).append(path)
  known = ", ".join(name or "one without a name" for name in sorted(splits))
  if split is None and len(splits) > 1:
    raise InputError(
      f"{folder}: holds several splits by the names of its files: {known}; "
      f"name one: {folder}:{max(splits)}"
    )
  if split is not None and split not in splits:
    raise InputError(f"{folder}: holds no split {split!r}; it has {known}")
  files = splits[split or next(iter(splits))]
  return _said(folder, files, others)


def _kind(path):
  return next(s for s in sorted(SUFFIXES) if path.name.lower().endswith(s))


def _split(inside):
  """ "train" of train-00000-of-00002.parquet, also of train/0000.parquet."""
  found = SPLIT_OF.findall(inside.as_posix().lower())
  return found[-1] if found else ""


def _said(name, files, others=()):
  if len(files) > 1 or others:
    beside = f", beside {len(others)} of other kinds" if others else ""
    logger.info(
      f"{name}: {len(files)} files, {files[0].name} to {files[-1].name}{beside}"
    )
  return files
