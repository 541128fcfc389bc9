# SPDX-License-Identifier: Apache-2.0
"""Store of reference scores and rewards: Parquet files that appear whole.

root/<key>/manifest.json      what the key covers, and the units of columns
root/<key>/<sha256>.parquet   rows of pairs; named after the file's bytes
"""

import dataclasses
import hashlib
import io
import itertools
import json
import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mrpo_jax import files
from mrpo_jax.errors import InputError

SCORING = 1  # version of what is computed; part of every key
SCHEMA = 1  # version of the files' layout
MANIFEST = "manifest.json"
KEY = re.compile(r"[0-9a-f]{64}")
SHARD = re.compile(rf"{KEY.pattern}\.parquet")
# Of `files.write_atomically`: ends in the number of the process that writes.
DRAFT = re.compile(rf"\.(?:manifest\.json|{SHARD.pattern})\.(\d{{1,9}})")
OTHER_BYTES = "its bytes are not those that it is named after"
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
REWARD = "reward"  # of a response as the data have it, whatever is cut
COLUMNS = {  # of scores: column -> unit
  "pair": "SHA-256 of the pair and of where it is cut",
  **{
    f"{name}_{c}": unit for name, (*_, unit) in FIGURES.items() for c in CHOICES
  },
  **{
    f"{TOKENS}_{c}": "nats per response token, in their order" for c in CHOICES
  },
}
REWARD_COLUMNS = {
  "pair": "SHA-256 of the pair",
  **{
    f"{REWARD}_{c}": "reward of the response, the larger the better"
    for c in CHOICES
  },
}

ERROR = "errors"  # of a denoiser, under each fixed noise of a pair of images
ERROR_COLUMNS = {
  "pair": "place of the pair in the data that the key covers, from 0",
  **{
    f"{ERROR}_{c}": "mean squared errors of the image, one of each noise"
    for c in CHOICES
  },
}


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


# What a file of rows may hold, by its columns.
SUMS, WITH_TOKENS, REWARDS = "sums", "with tokens", "rewards"
ERRORS = "errors of denoisers"
LAYOUTS = {
  SUMS: _schema(False),
  WITH_TOKENS: _schema(True),
  REWARDS: pa.schema(
    [("pair", pa.string())]
    + [(f"{REWARD}_{choice}", pa.float64()) for choice in CHOICES]
  ),
  ERRORS: pa.schema(
    [("pair", pa.string())]
    + [(f"{ERROR}_{choice}", pa.list_(pa.float32())) for choice in CHOICES]
  ),
}


def layout_of(schema):
  """The name of a table's layout; None for columns that no store writes."""
  for name, one in LAYOUTS.items():
    if schema.equals(one):
      return name
  return None


@dataclasses.dataclass(frozen=True)
class Store:
  """Scores of one reference; nothing is made before `begin` or `write`."""

  root: str | os.PathLike
  material: dict
  per_token: bool = False  # with the log-probability of each token

  @property
  def key(self):
    return key_of(self.material)

  @property
  def folder(self):
    return files.path_of(self.root) / self.key

  @property
  def _layout(self):
    return WITH_TOKENS if self.per_token else SUMS

  def known(self):
    """The fingerprints of all pairs that `read` would find."""
    return known_pairs(self.folder, self._layout)

  def begin(self):
    """See `begin_table`."""
    begin_table(self.folder, self.material, COLUMNS)

  def write(self, pairs, scores):
    """Adds one file; equal content gives an equal file.

    Args:
      pairs: P fingerprints; of a repeated one the first row counts.
      scores: Scores of them.

    Raises:
      ValueError: a number that is not finite, a response without tokens but a
        rejected one that is not there, or arrays of other shapes; names the
        pair.
    """
    if not len(pairs):
      return
    table = _as_table(pairs, scores, self.per_token)
    write_table(self.folder, self.material, COLUMNS, table)

  def read(self, pairs):
    """Scores of the pairs in their order; repeats are fine.

    Raises:
      MissingRows: not all of them are here.
    """
    table = rows_of(self.folder, self._layout, pairs)
    arrays = {
      field: np.stack(
        [table[f"{name}_{choice}"].to_numpy() for choice in CHOICES], axis=1
      )
      for name, (_, field, _) in FIGURES.items()
    }
    token_logps = None
    if self.per_token:
      columns = [lists_of(table[f"{TOKENS}_{choice}"]) for choice in CHOICES]
      token_logps = list(zip(*columns, strict=True))
    return Scores(**arrays, token_logps=token_logps)


# Tables of one key.


def begin_table(folder, material, columns):
  """Makes the folder of a key, with the manifest of what it covers.

  Before long work for it: where nothing can be written is found out now; in a
  bucket that has the manifest already, by the first rows.

  Raises:
    OSError: nothing can be written there.
  """
  files.make_folder(folder)
  if (folder / MANIFEST).exists():
    files.refuse_read_only(folder)
  else:
    files.write_json(folder / MANIFEST, _manifest(material, columns))


def write_table(folder, material, columns, table):
  """Adds a table as one file, beside a manifest of what its key covers."""
  content = parquet_bytes(distinct_pairs(table))
  begin_table(folder, material, columns)
  name = hashlib.sha256(content).hexdigest()
  files.write_atomically(folder / f"{name}.parquet", content)


def known_pairs(folder, layout):
  """The fingerprints of all pairs that stand there in that layout."""
  return set(_whole_table(folder, layout, ["pair"])["pair"].to_pylist())


def rows_of(folder, layout, pairs):
  """The rows of these pairs, in their order, as one table.

  Raises:
    MissingRows: not all of them are here.
  """
  table = _whole_table(folder, layout, LAYOUTS[layout].names)
  # Of a pair that stands in several files the first one counts.
  places = pc.index_in(pa.array(pairs, pa.string()), value_set=table["pair"])
  if places.null_count:
    is_missing = places.is_null().to_numpy(zero_copy_only=False)
    raise MissingRows(np.flatnonzero(is_missing).tolist())
  return table.take(places)


def _whole_table(folder, layout, columns):
  """All files of a key as one; rows with tokens hold the sums, too."""
  layouts = (SUMS, WITH_TOKENS) if layout == SUMS else (layout,)
  fields = [LAYOUTS[layout].field(name) for name in columns]
  tables = read_tables(folder, columns, layouts=layouts)
  return pa.concat_tables([pa.schema(fields).empty_table(), *tables])


def read_tables(folder, columns=None, *, layouts=tuple(LAYOUTS)):
  """Yields the table of every file that has one of these layouts.

  Raises:
    InputError: a file is not what it is named after, or holds another table.
  """
  for path in shard_paths(folder):
    try:
      # Read once: what is parsed is what was verified.  A disk or a network
      # that fails says nothing of the file.
      content = path.read_bytes()
    except FileNotFoundError:  # removed since the folder was listed
      continue
    try:
      table = _verified(content, path.stem, columns, layouts)
    except (ValueError, pa.ArrowException, OSError) as error:
      raise InputError(
        f"{path}: cannot be read ({one_line(error)}); mrpo store verify lists "
        "broken files, mrpo store prune removes them"
      ) from None
    if table is not None:
      yield table


def _verified(content, name, columns, layouts):
  """The table in a file's bytes, None where it has another layout."""
  if hashlib.sha256(content).hexdigest() != name:
    raise ValueError(OTHER_BYTES)
  with pq.ParquetFile(io.BytesIO(content)) as file:
    layout = layout_of(file.schema_arrow)
    if layout is None:
      raise ValueError("its columns are of another table")
    return file.read(columns=columns) if layout in layouts else None


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
  # A single response has no other: no tokens, and so nothing of any.
  token_PC = np.asarray(scores.token_PC)
  is_absent_P = (token_PC[:, 1] == 0) & (np.asarray(scores.logp_PC)[:, 1] == 0)
  bad_PC |= token_PC < np.stack([np.ones_like(is_absent_P), ~is_absent_P], 1)
  if bad_PC.any():
    pair = pairs[int(np.argmax(bad_PC.any(axis=1)))]
    raise ValueError(
      f"pair {pair}: a log-probability or entropy is not finite, or a response "
      "has no tokens"
    )
  if per_token:
    columns |= _token_columns(pairs, scores)
  return pa.table(columns, schema=_schema(per_token))


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


def distinct_pairs(table):
  """One row per pair, the first, sorted by pair."""
  first = {}
  for place, pair in enumerate(table["pair"].to_pylist()):
    first.setdefault(pair, place)
  return table.take([first[pair] for pair in sorted(first)])


def lists_of(column):
  """NumPy arrays of a list column."""
  for chunk in column.chunks:
    values, offsets = chunk.values.to_numpy(), chunk.offsets.to_numpy()
    for start, stop in itertools.pairwise(offsets):
      yield values[start:stop]


def _manifest(material, columns):
  versions = {"scoring": SCORING, "schema": SCHEMA}
  return {"key covers": material, "columns": columns, **versions}


def parquet_bytes(table):
  """A table as the content of a file of the store."""
  content = io.BytesIO()
  pq.write_table(table, content, compression="zstd")
  return content.getvalue()


def shard_paths(folder):
  """The files of rows of one key, sorted; none where the folder is missing."""
  try:
    return sorted(p for p in folder.iterdir() if SHARD.fullmatch(p.name))
  except FileNotFoundError:
    return []


def one_line(error):
  """A message of several lines as one."""
  return " ".join(str(error).split())
