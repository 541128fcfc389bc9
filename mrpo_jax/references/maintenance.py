# SPDX-License-Identifier: Apache-2.0
"""Maintenance of a store of scores and rewards: list, verify, prune, export."""

import contextlib
import csv
import hashlib
import io
import itertools
import json
import logging
import os
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mrpo_jax import files
from mrpo_jax.buckets import is_bucket
from mrpo_jax.errors import InputError
from mrpo_jax.references.store import (
  DRAFT,
  KEY,
  MANIFEST,
  OTHER_BYTES,
  SHARD,
  TOKENS,
  WITH_TOKENS,
  distinct_pairs,
  key_of,
  layout_of,
  one_line,
  parquet_bytes,
  read_tables,
  shard_paths,
)

logger = logging.getLogger(__name__)

DAY = 86_400.0  # seconds

# Commands.


def entries(root):
  """[dict] per key: key, material, pairs, shards, bytes."""
  found = []
  for key in _keys(root):
    folder = files.path_of(root) / key
    sizes = []
    for path in shard_paths(folder):
      with contextlib.suppress(FileNotFoundError):  # removed since
        sizes.append(files.size_of(path))
    pairs = [table["pair"] for table in read_tables(folder, ["pair"])]
    found.append(
      {
        "key": key,
        "material": _material(folder) or {},
        "pairs": len(set(itertools.chain(*(p.to_pylist() for p in pairs)))),
        "shards": len(sizes),
        "bytes": sum(sizes),
      }
    )
  return found


def verify(root, keys=()):
  """A sentence for each file that is not as it was written."""
  problems = []
  for key in _keys(root, keys):
    folder = files.path_of(root) / key
    material = _material(folder)
    if material is None or key_of(material) != key:
      problems.append(
        f"{folder / MANIFEST}: missing, or not of this key; prune the key by "
        "name"
      )
    for path in shard_paths(folder):
      if problem := _problem(path):
        problems.append(f"{path}: {problem}")
  return problems


def prune(root, keys=()):
  """Removes keys, broken files and what killed writers left; their paths."""
  named = _keys(root, keys) if keys else []
  removed = []
  for key in _keys(root):
    folder, whole = files.path_of(root) / key, key in named
    for path in sorted(folder.iterdir()):
      if _is_ours(path) and (whole or _is_waste(path)):
        path.unlink(missing_ok=True)
        removed.append(path)
    if whole:
      with contextlib.suppress(OSError):  # another's file, or a new one
        folder.rmdir()
  return removed


def export(root, key, to):
  """Every pair of one key, in the order of fingerprints, as one file."""
  to, (key,) = files.path_of(to), _keys(root, [key])
  if to.suffix not in EXPORTS:
    raise InputError(f"{to}: the known endings are {', '.join(EXPORTS)}")
  if to.exists():
    raise InputError(f"{to} exists already; name another file")
  if not is_bucket(to) and not to.parent.is_dir():
    raise InputError(f"{to.parent}: no such folder; make it first")
  # Of a pair that stands in several files, a row with tokens comes first.
  tables = sorted(
    read_tables(files.path_of(root) / key),
    key=lambda t: layout_of(t.schema) != WITH_TOKENS,
  )
  if not tables:
    raise InputError(f"{key}: holds no pairs")
  table = pa.concat_tables(tables, promote_options="default")
  files.write_atomically(to, EXPORTS[to.suffix](distinct_pairs(table)))


def _as_lines(table):
  return "".join(f"{json.dumps(row)}\n" for row in table.to_pylist())


def _as_csv(table):
  names = [name for name in table.column_names if not name.startswith(TOKENS)]
  if len(names) < table.num_columns:
    logger.warning(
      "warning: .csv holds no log-probabilities of single tokens; the others do"
    )
  text = io.StringIO()
  writer = csv.DictWriter(text, names, lineterminator="\n")
  writer.writeheader()
  writer.writerows(table.select(names).to_pylist())
  return text.getvalue()


EXPORTS = {".parquet": parquet_bytes, ".jsonl": _as_lines, ".csv": _as_csv}


def _keys(root, starts=None):
  """All keys of a store, or those that the given starts name."""
  root = files.path_of(root)
  if not root.is_dir():
    raise InputError(f"{root}: no store here")
  keys = sorted(
    path.name
    for path in root.iterdir()
    if KEY.fullmatch(path.name) and path.is_dir() and not files.is_link(path)
  )
  if not starts:
    return keys
  found = []
  for start in starts:
    named = [key for key in keys if start and key.startswith(start)]
    if len(named) != 1:
      known = ", ".join(key[:16] for key in keys) or "none"
      what = "is no key" if not named else f"is the start of {len(named)} keys"
      raise InputError(f"{root}: {start!r} {what}; the keys are {known}")
    found += named
  return found


def _material(folder):
  """The material of a key by its manifest; None if it is none.

  A disk or a network that fails says nothing of it: OSError.
  """
  try:
    material = files.read_json(folder / MANIFEST)["key covers"]
  except (FileNotFoundError, IsADirectoryError):
    return None
  except (ValueError, KeyError, TypeError):
    return None
  return material if isinstance(material, dict) else None


def _problem(path):
  """A sentence about what is wrong with a file of rows, or None."""
  try:
    content = path.read_bytes()
  except FileNotFoundError:  # removed since the folder was listed
    return None
  if hashlib.sha256(content).hexdigest() != path.stem:
    return OTHER_BYTES
  try:
    table = pq.ParquetFile(io.BytesIO(content)).read()
  except (pa.ArrowException, OSError) as error:
    return f"no Parquet file ({one_line(error)})"
  if layout_of(table.schema) is None:
    return f"its columns are {one_line(table.schema)}"
  for name in table.column_names[1:]:
    column = table[name]
    if column.null_count:
      return f"a number of {name} is missing"
    if pa.types.is_list(column.type):
      column = pc.list_flatten(column)
    if not np.isfinite(column.to_numpy()).all():
      return f"a number of {name} is not finite"
  return None


def _is_ours(path):
  is_named = SHARD.fullmatch(path.name) or DRAFT.fullmatch(path.name)
  return path.is_file() and bool(is_named or path.name == MANIFEST)


def _is_waste(path):
  """A broken file of rows, or the draft of a writer that is gone?"""
  if SHARD.fullmatch(path.name):
    return _problem(path) is not None
  draft = DRAFT.fullmatch(path.name)
  if not draft:
    return False
  try:
    os.kill(int(draft[1]), 0)
  except PermissionError:
    pass  # somebody else's, and alive
  except OSError:
    return True
  with contextlib.suppress(FileNotFoundError):  # it has become a whole file
    return time.time() - path.stat().st_mtime > DAY
  return False
