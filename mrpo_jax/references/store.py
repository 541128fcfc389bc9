# SPDX-License-Identifier: Apache-2.0
"""What frozen references say of pairs: Parquet files that appear whole.

root/<key>/manifest.json      what the key covers, and the units of columns
root/<key>/<sha256>.parquet   rows of pairs; named after the file's bytes
"""

import contextlib
import csv
import dataclasses
import hashlib
import io
import itertools
import json
import os
import pathlib
import re
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mrpo_jax.errors import InputError

SCORING = 1  # version of what is computed; part of every key
SCHEMA = 1  # version of the files' layout
MANIFEST = "manifest.json"
KEY = re.compile(r"[0-9a-f]{64}")
SHARD = re.compile(rf"{KEY.pattern}\.parquet")
# Ends in the number of the process that writes it.
DRAFT = re.compile(rf"\.(?:manifest\.json|{SHARD.pattern})\.(\d{{1,9}})")
CHOICES = ("chosen", "rejected")
FIGURES = {  # per response: (type, field of Scores, unit)
  "logp": (pa.float32(), "logp_PC", "nats, summed over response tokens"),
  "tokens": (pa.int32(), "token_PC", "response tokens"),
  "characters": (pa.int32(), "character_PC", "characters of the response"),
  "entropy": (
    pa.float32(),
    "entropy_PC",
    "nats, of the next-token distributions, summed over response tokens",
  ),
}
TOKENS = "token_logps"  # where a loss needs them
COLUMNS = {  # column -> unit
  "pair": "SHA-256 of the pair and of where it is cut",
  **{
    f"{name}_{c}": unit for name, (*_, unit) in FIGURES.items() for c in CHOICES
  },
  **{
    f"{TOKENS}_{c}": "nats per response token, in their order" for c in CHOICES
  },
}
DAY = 86_400.0  # seconds


@dataclasses.dataclass(frozen=True)
class Scores:
  """Figures of P pairs, C = 2 responses each: NumPy arrays."""

  logp_PC: np.ndarray  # nats, summed over response tokens
  token_PC: np.ndarray
  character_PC: np.ndarray
  entropy_PC: np.ndarray  # nats, summed over response tokens
  token_logps: list | None = None  # P of (chosen, rejected), nats per token


class MissingRows(ValueError):
  """Some pairs are not in the store: `indices` among those asked for."""

  def __init__(self, indices):
    super().__init__(f"{len(indices)} pairs are not in the store")
    self.indices = indices


def key_of(material):
  """SHA-256, in hex, of what figures depend on, whatever its order."""
  text = json.dumps({**material, "scoring": SCORING}, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _schema(per_token):
  fields = [("pair", pa.string())]
  for name, (kind, _, _) in FIGURES.items():
    fields += [(f"{name}_{choice}", kind) for choice in CHOICES]
  if per_token:
    fields += [(f"{TOKENS}_{c}", pa.list_(pa.float32())) for c in CHOICES]
  return pa.schema(fields)


@dataclasses.dataclass(frozen=True)
class Store:
  """What one reference says; nothing is made on disk before `write`."""

  root: str | os.PathLike
  material: dict
  per_token: bool = False  # with the log-probability of each token

  @property
  def key(self):
    return key_of(self.material)

  @property
  def folder(self):
    return pathlib.Path(self.root) / self.key

  def known(self):
    """The fingerprints of all pairs that `read` would find."""
    return set(self._table(["pair"])["pair"].to_pylist())

  def write(self, pairs, scores):
    """Adds one file; equal content gives an equal file.

    Args:
      pairs: P fingerprints; of a repeated one the first row counts.
      scores: Scores of them.

    Raises:
      ValueError: a number that is not finite, a response without tokens, or
        arrays of other shapes; names the pair.
    """
    if not len(pairs):
      return
    table = _as_table(pairs, scores, self.per_token)
    content = io.BytesIO()
    pq.write_table(table, content, compression="zstd")
    content = content.getvalue()
    self.folder.mkdir(parents=True, exist_ok=True)
    if not (self.folder / MANIFEST).exists():
      text = json.dumps(_manifest(self.material), indent=2, sort_keys=True)
      _write(self.folder / MANIFEST, f"{text}\n".encode())
    name = hashlib.sha256(content).hexdigest()
    _write(self.folder / f"{name}.parquet", content)

  def read(self, pairs):
    """Scores of the pairs in their order; repeats are fine.

    Raises:
      MissingRows: not all of them are here.
    """
    table = self._table(_schema(self.per_token).names)
    # Of a pair that stands in several files the first one counts.
    places = pc.index_in(pa.array(pairs, pa.string()), value_set=table["pair"])
    if places.null_count:
      is_missing = places.is_null().to_numpy(zero_copy_only=False)
      raise MissingRows(np.flatnonzero(is_missing).tolist())
    table = table.take(places)
    arrays = {
      field: np.stack(
        [table[f"{name}_{choice}"].to_numpy() for choice in CHOICES], axis=1
      )
      for name, (_, field, _) in FIGURES.items()
    }
    token_logps = None
    if self.per_token:
      columns = [_lists(table[f"{TOKENS}_{choice}"]) for choice in CHOICES]
      token_logps = list(zip(*columns, strict=True))
    return Scores(**arrays, token_logps=token_logps)

  def _table(self, columns):
    schema = _schema(self.per_token)
    schema = pa.schema([schema.field(name) for name in columns])
    tables = _tables(self.folder, columns, per_token=self.per_token)
    return pa.concat_tables([schema.empty_table(), *tables])


def _tables(folder, columns=None, *, per_token=False):
  """What every file says; with `per_token` those that say it of tokens."""
  for path in _shards(folder):
    try:
      with pq.ParquetFile(path) as file:
        has_tokens = _has_tokens(file.schema_arrow)
        if has_tokens is None:
          raise pa.ArrowInvalid("its columns are of another table")
        if has_tokens or not per_token:
          yield file.read(columns=columns)
    except FileNotFoundError:  # removed since the folder was listed
      continue
    except (pa.ArrowException, OSError) as error:
      raise InputError(
        f"{path}: cannot be read ({_one_line(error)}); mrpo store verify lists "
        "broken files, mrpo store prune removes them"
      ) from None


def _has_tokens(schema):
  """True or False; None for columns that no store writes."""
  for per_token in (False, True):
    if schema.equals(_schema(per_token)):
      return per_token
  return None


def _as_table(pairs, scores, per_token):
  P = len(pairs)
  columns = {"pair": pairs}
  for name, (kind, field, _) in FIGURES.items():
    value_PC = np.asarray(getattr(scores, field))
    if value_PC.shape != (P, 2):
      raise ValueError(f"{field} has shape {value_PC.shape}, want {(P, 2)}")
    for choice, value_P in zip(CHOICES, value_PC.T, strict=True):
      columns[f"{name}_{choice}"] = pa.array(value_P, kind)
  bad_PC = ~np.isfinite(scores.logp_PC) | ~np.isfinite(scores.entropy_PC)
  bad_PC |= np.asarray(scores.token_PC) < 1
  if bad_PC.any():
    pair = pairs[int(np.argmax(bad_PC.any(axis=1)))]
    raise ValueError(
      f"pair {pair}: a log-probability or entropy is not finite, or a response "
      "has no tokens"
    )
  if per_token:
    columns |= _token_columns(pairs, scores)
  return _distinct(pa.table(columns, schema=_schema(per_token)))


def _token_columns(pairs, scores):
  if scores.token_logps is None or len(scores.token_logps) != len(pairs):
    raise ValueError("log-probabilities of tokens are missing")
  rows = [
    [np.asarray(x, np.float32) for x in row] for row in scores.token_logps
  ]
  for pair, row, counts in zip(pairs, rows, scores.token_PC, strict=True):
    if [x.shape for x in row] != [(count,) for count in counts]:
      raise ValueError(f"pair {pair}: want one log-probability per token")
    if not all(np.isfinite(x).all() for x in row):
      raise ValueError(f"pair {pair}: logp of a token is not finite")
  return {
    f"{TOKENS}_{choice}": [row[c] for row in rows]
    for c, choice in enumerate(CHOICES)
  }


def _distinct(table):
  """One row per pair, the first, sorted by pair."""
  first = {}
  for place, pair in enumerate(table["pair"].to_pylist()):
    first.setdefault(pair, place)
  return table.take([first[pair] for pair in sorted(first)])


def _lists(column):
  """NumPy arrays of a list column."""
  for chunk in column.chunks:
    values, offsets = chunk.values.to_numpy(), chunk.offsets.to_numpy()
    for start, stop in itertools.pairwise(offsets):
      yield values[start:stop]


def _manifest(material):
  versions = {"scoring": SCORING, "schema": SCHEMA}
  return {"key covers": material, "columns": COLUMNS, **versions}


def _write(path, content):
  """The whole file or none of it."""
  draft = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    with open(draft, "wb") as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    draft.replace(path)
  except BaseException:
    draft.unlink(missing_ok=True)
    raise


def _shards(folder):
  try:
    return sorted(p for p in folder.iterdir() if SHARD.fullmatch(p.name))
  except FileNotFoundError:
    return []


# Commands.


def entries(root):
  """[dict] per key: key, material, pairs, shards, bytes."""
  found = []
  for key in _keys(root):
    folder = pathlib.Path(root) / key
    sizes = []
    for path in _shards(folder):
      with contextlib.suppress(FileNotFoundError):  # removed since
        sizes.append(path.stat().st_size)
    pairs = [table["pair"] for table in _tables(folder, ["pair"])]
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
    folder = pathlib.Path(root) / key
    material = _material(folder)
    if material is None or key_of(material) != key:
      problems.append(
        f"{folder / MANIFEST}: missing, or not of this key; prune the key by "
        "name"
      )
    for path in _shards(folder):
      if problem := _problem(path):
        problems.append(f"{path}: {problem}")
  return problems


def prune(root, keys=()):
  """Removes keys, broken files and what killed writers left; their paths."""
  named = _keys(root, keys) if keys else []
  removed = []
  for key in _keys(root):
    folder, whole = pathlib.Path(root) / key, key in named
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
  to, (key,) = pathlib.Path(to), _keys(root, [key])
  if to.suffix not in EXPORTS:
    raise InputError(f"{to}: the known endings are {', '.join(EXPORTS)}")
  if to.exists():
    raise InputError(f"{to} exists already; name another file")
  if not to.parent.is_dir():
    raise InputError(f"{to.parent}: no such folder; make it first")
  # Of a pair that stands in several files, a row with tokens comes first.
  tables = sorted(
    _tables(pathlib.Path(root) / key), key=lambda t: not _has_tokens(t.schema)
  )
  if not tables:
    raise InputError(f"{key}: holds no pairs")
  table = pa.concat_tables(tables, promote_options="default")
  _write(to, EXPORTS[to.suffix](_distinct(table)))


def _as_parquet(table):
  content = io.BytesIO()
  pq.write_table(table, content, compression="zstd")
  return content.getvalue()


def _as_lines(table):
  return "".join(f"{json.dumps(row)}\n" for row in table.to_pylist()).encode()


def _as_csv(table):
  names = [name for name in table.column_names if not name.startswith(TOKENS)]
  text = io.StringIO()
  writer = csv.DictWriter(text, names, lineterminator="\n")
  writer.writeheader()
  writer.writerows(table.select(names).to_pylist())
  return text.getvalue().encode()


EXPORTS = {".parquet": _as_parquet, ".jsonl": _as_lines, ".csv": _as_csv}


def _keys(root, starts=None):
  """All keys of a store, or those that the given starts name."""
  root = pathlib.Path(root)
  if not root.is_dir():
    raise InputError(f"{root}: no store here")
  keys = sorted(
    path.name
    for path in root.iterdir()
    if KEY.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
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
  """What the manifest says that the key covers; None if it is not readable."""
  try:
    material = json.loads((folder / MANIFEST).read_text())["key covers"]
  except (OSError, ValueError, KeyError, TypeError):
    return None
  return material if isinstance(material, dict) else None


def _problem(path):
  """What is wrong with a file of rows, or None."""
  try:
    content = path.read_bytes()
  except FileNotFoundError:  # removed since the folder was listed
    return None
  if hashlib.sha256(content).hexdigest() != path.stem:
    return "its bytes are not those that it is named after"
  try:
    table = pq.ParquetFile(io.BytesIO(content)).read()
  except (pa.ArrowException, OSError) as error:
    return f"no Parquet file ({_one_line(error)})"
  if _has_tokens(table.schema) is None:
    return f"its columns are {_one_line(table.schema)}"
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


def _one_line(error):
  return " ".join(str(error).split())
