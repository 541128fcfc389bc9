# SPDX-License-Identifier: Apache-2.0
"""Data files that a name stands for: one, a glob, a folder of shards."""

import glob
import logging
import re

from mrpo_jax.data.reading.row_files import SUFFIXES
from mrpo_jax.errors import InputError
from mrpo_jax.files import below, is_link, matching, path_of

logger = logging.getLogger(__name__)

# What stands beside data and is none.
METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")
METADATA += ("features.json", "metadata.json", "state.json", "config.json")
SPLIT = re.compile(r"(.+?):([\w.+-]+(?:\[[^\]]*\])?)")
TFDS = ("dataset_info.json", "features.json")
SPLIT_OF = re.compile(
  r"(?:^|[^a-z])((?:train|training|test|testing|validation|valid|val|dev|eval"
  r"|evaluation)(?:_[a-z]+)*)(?=$|[^a-z])"
)
SHARD = re.compile(r"(.*?)-(\d+)-of-(\d+)(.*)")


def resolved(name):
  """(files, place, split) that the name of a source stands for.

  Files are None where it stands for none; then `place` is the name without
  ":split", and `split` is None where it has no such end.

  Raises:
    InputError: as `files_of` does.
  """
  place, split = name, None
  if not path_of(name).exists() and (match := SPLIT.fullmatch(name)):
    place, split = match.groups()
  files = files_of(name)
  if files is None and split is not None:
    files = files_of(place, split)
  return files, place, split


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
  path = path_of(name)
  if not name:
    return None
  if path.is_dir():
    return _shards(path, split)
  if split is not None:
    return None
  if path.exists():
    return [path]
  if glob.has_magic(name):
    found = matching(name)
    if "**" in name:
      found = [one for one in found if not one.is_dir()]
    if found:
      return _said(name, found)
    if "*" in name or "?" in name:
      raise InputError(f"{name}: finds no file; check the path")
  return [path] if name.lower().endswith(SUFFIXES) else None


def _shards(folder, split):
  found, others, passed = _inside(folder)
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
  _refuse_missing(files)
  return _said(folder, files, others, passed)


def _inside(folder):
  """(data files, others, what is passed over) of a folder, in order.

  Passed over are hidden data files, and links to folders, which may lead in a
  circle; what stands in a hidden folder counts as nothing.
  """
  found, others, passed = [], [], []
  for path in below(folder):
    *above, name = path.relative_to(folder).parts
    if any(part.startswith((".", "_")) for part in above):
      continue
    is_data = name.lower().endswith(SUFFIXES) and name not in METADATA
    hidden = name.startswith((".", "_"))
    if path.is_dir():
      if is_link(path) and not hidden:
        passed.append(path)
    elif not hidden:
      (found if is_data else others).append(path)
    elif is_data:
      passed.append(path)
  return found, others, passed


def _refuse_missing(files):
  """InputError where "-00000-of-00003" tells of shards that are not there."""
  numbers, last = {}, {}
  for path in files:
    if match := SHARD.fullmatch(path.name):
      key = path.parent, match[1], match[3]
      numbers.setdefault(key, set()).add(int(match[2]))
      last[key] = match
  for key, there in numbers.items():
    folder, start, count = key
    first = 1 if int(count) in there and 0 not in there else 0
    wanted = range(first, first + int(count))
    missing = next((one for one in wanted if one not in there), None)
    if missing is not None:
      number = str(missing).zfill(len(last[key][2]))
      raise InputError(
        f"{folder / start}-{number}-of-{count}{last[key][4]}: no such file, "
        f"but {len(there)} of these {int(count)} shards; fetch the others, or "
        "name those that you mean by a glob"
      )


def _kind(path):
  return next(s for s in sorted(SUFFIXES) if path.name.lower().endswith(s))


def _split(inside):
  """ "train" of train-00000-of-00002.parquet, also of train/0000.parquet."""
  found = SPLIT_OF.findall(inside.as_posix().lower())
  return found[-1] if found else ""


def _said(name, files, others=(), passed=()):
  if len(files) > 1 or others or passed:
    beside = f", beside {len(others)} of other kinds" if others else ""
    if passed:
      beside += (
        f", without {len(passed)} hidden files and linked folders, the first "
        f"is {passed[0]}"
      )
    logger.info(
      f"{name}: {len(files)} files, {files[0].name} to {files[-1].name}{beside}"
    )
  return files
