# SPDX-License-Identifier: Apache-2.0
"""Blocks of rows that are read from their place in a file, not from its start.

A source has `counts`, rows of each block; `read(block)`, a sequence of rows as
they are stored; `pairs(stored)`, the pairs of one of them; and `mark`, a hash
of its files.  What is held in memory is a few numbers of each block.
"""

import dataclasses
import hashlib
import os
import pathlib

import numpy as np

from mrpo_jax.buckets import is_bucket
from mrpo_jax.data import formats, source
from mrpo_jax.data.reading import prepared, row_files, shards
from mrpo_jax.data.reading.prompts import PROMPTS
from mrpo_jax.errors import InputError

BLOCK = 256  # rows, where any row can be read by itself
PARTS = 256  # of a row group of Parquet: reading one decodes those before it
PART = 1024  # rows of one, at least
PIECE = 2**20  # bytes of JSON lines that are looked at together
SAMPLES, SAMPLE = 256, 2**12  # pieces of a file that its hash covers; bytes
EDGE = 2**20  # bytes at each end that it covers


def opened(name, weights=None):
  """The sources that a name stands for, as `data.source.load` reads them.

  Args:
    name: of Parquet files, of files of JSON lines, of folders or globs of them,
      of TFDS directories, or several of these with commas between.
    weights: WeightColumn to read, too.

  Raises:
    InputError: there is no such source, or none that can be read by place.
  """
  return [
    one
    for part in source.names_of(str(name))
    for one in _sources(part, weights)
  ]


def _sources(name, weights):
  if is_bucket(name):
    raise InputError(
      f"{name}: config.data.streaming reads files of a disk; copy it to one"
    )
  files, place, split = shards.resolved(name)
  if files is not None:
    return [_file(path, weights) for path in files]
  if place and pathlib.Path(place).is_dir():
    prepared.refuse_outer(place)
    return [Prepared(place, split or "train", weights)]
  raise InputError(
    f"{name!r}: found no such file and no such directory prepared by TFDS; "
    "config.data.streaming reads what stands on a disk: check the name, or "
    "fetch the data set first"
  )


def _file(path, weights):
  suffix = path.suffix.lower()
  if suffix == ".parquet":
    return Parquet(path, weights)
  if suffix == ".jsonl":
    return JsonLines(path, weights)
  raise InputError(
    f"{path}: config.data.streaming reads .parquet, .jsonl and TFDS "
    "directories, whose rows can be reached by their place; write it as one of "
    "these, or leave streaming out"
  )


def _weighed(row, where, weights):
  """The pairs of a row, with the weights of its references."""
  pairs = formats.pairs_of(row, where)
  if weights is None or not pairs:
    return pairs
  taken = weights.of(row, where)
  return [dataclasses.replace(one, reference_weights=taken) for one in pairs]


def files_mark(paths, index=b""):
  """SHA-256 of the files' sizes, ends and samples, and of an index of them.

  What is read of a file does not grow with it.  A change that moves nothing in
  the index, neither size nor place of a block, is seen where a sample lies.
  """
  whole = hashlib.sha256(index)
  for path in paths:
    row_files.check_file(path)
    try:
      with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        whole.update(f"{size}\n".encode())
        pieces = [(0, EDGE), (max(0, size - EDGE), EDGE)]
        if size > 2 * EDGE:
          step = size // SAMPLES
          pieces += [(n * step, SAMPLE) for n in range(SAMPLES)]
        for start, count in pieces:
          file.seek(start)
          whole.update(file.read(count))
    except OSError as error:
      raise row_files.unreadable(path, error) from None
  return whole.hexdigest()


# JSON lines.


class JsonLines:
  """Ranges of BLOCK lines of a file that is not compressed."""

  def __init__(self, path, weights=None):
    """Passes over the file once, for the places of its blocks."""
    self._path, self._weights = path, weights
    row_files.check_file(path)
    try:
      starts, numbers, rows = _indexed(path)
      size = os.path.getsize(path)
    except OSError as error:
      raise row_files.unreadable(path, error) from None
    self._edges = np.append(starts, size)  # byte where each block begins
    self._numbers = numbers  # of the line there
    self.counts = np.full(len(starts), BLOCK)
    self.counts[-1:] = rows - BLOCK * (len(starts) - 1)
    self.mark = files_mark([path], self._edges.astype("<i8").tobytes())

  def read(self, block):
    start, stop = (int(one) for one in self._edges[block : block + 2])
    try:
      with open(self._path, "rb") as file:
        file.seek(start)
        text = file.read(stop - start)
    except OSError as error:
      raise row_files.unreadable(self._path, error) from None
    lines = enumerate(text.split(b"\n"), int(self._numbers[block]))
    found = [(number, line) for number, line in lines if line.strip()]
    if len(found) != self.counts[block]:
      raise InputError(f"{self._path}: has changed since the run started")
    return found

  def pairs(self, stored):
    """(place in words, pairs) of a line."""
    number, line = stored
    where, row = row_files.json_row(line, self._path, number)
    return where, _weighed(row, where, self._weights)


def _indexed(path):
  """(byte and line where each block begins, rows) of JSON lines."""
  starts, numbers = [], []
  rows = lines = place = 0
  with open(path, "rb") as file:
    while piece := file.read(PIECE):
      piece += file.readline(row_files.LONGEST + 1)
      begins = _line_starts(piece)
      longest = np.diff(begins, append=len(piece))
      if longest.max() > row_files.LONGEST:
        raise row_files.long_line(path, lines + int(longest.argmax()) + 1)
      kept = _with_text(piece, begins)
      chosen = kept[-rows % BLOCK :: BLOCK]
      starts.append(place + begins[chosen])
      numbers.append(lines + 1 + chosen)
      rows, lines = rows + len(kept), lines + len(begins)
      place += len(piece)
  if not rows:
    raise InputError(f"{path}: has no rows; give at least one pair")
  return np.concatenate(starts), np.concatenate(numbers), rows


def _line_starts(piece):
  """Where each line of some whole lines begins."""
  ends = np.flatnonzero(np.frombuffer(piece, np.uint8) == ord("\n")) + 1
  if piece.endswith(b"\n"):
    ends = ends[:-1]
  return np.insert(ends, 0, 0)


def _with_text(piece, begins):
  """Which of the lines hold more than white space."""
  first = np.frombuffer(piece, np.uint8)[begins]
  blank = [
    n
    for n in np.flatnonzero(first <= ord(" "))
    if not piece[begins[n] : _end(piece, begins, n)].strip()
  ]
  return np.delete(np.arange(len(begins)), blank)


def _end(piece, begins, n):
  return begins[n + 1] if n + 1 < len(begins) else len(piece)


# Parquet.


class Parquet:
  """Row groups of a file, or parts of large ones."""

  def __init__(self, path, weights=None):
    """Reads the footer alone."""
    import pyarrow.parquet

    self._path, self._weights = path, weights
    also = (weights.name,) if weights else ()
    row_files.check_file(path)
    with row_files.blames_parquet(path, lambda: path):
      with pyarrow.parquet.ParquetFile(path) as table:
        self._metadata = table.metadata
        self._names = table.schema_arrow.names
        self._columns = row_files.parquet_columns(
          path, table, (*formats.KNOWN, *also), PROMPTS
        )
      groups = [
        self._metadata.row_group(i).num_rows
        for i in range(self._metadata.num_row_groups)
      ]
    parts = [part for i, n in enumerate(groups) for part in _parts(i, n)]
    if not parts:
      raise InputError(f"{path}: has no rows; give at least one pair")
    self._parts = np.array(parts)  # group, first row in it, rows
    self._before = np.cumsum([0, *groups])
    self.counts = self._parts[:, 2]
    self.mark = files_mark([path], self._parts.astype("<i8").tobytes())

  def read(self, block):
    group, first, count = (int(one) for one in self._parts[block])
    before = int(self._before[group]) + first
    with row_files.blames_parquet(
      self._path, lambda: f"{self._path} rows {before + 1} to {before + count}"
    ):
      return _ArrowRows(before, self._part(group, first, count))

  def _part(self, group, first, count):
    """The table of some rows of a group; those before are decoded, too."""
    import pyarrow
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(
      self._path, metadata=self._metadata, buffer_size=2**20
    ) as file:
      found, place = [], 0
      for batch in file.iter_batches(
        batch_size=PART, row_groups=[group], columns=self._columns
      ):
        start = max(first - place, 0)
        stop = first + count - place
        if start < batch.num_rows:
          found.append(batch.slice(start, stop - start))
        place += batch.num_rows
        if place >= first + count:
          break
      return pyarrow.Table.from_batches(found).combine_chunks()

  def pairs(self, stored):
    """(place in words, pairs) of a row."""
    number, one = stored
    where = f"{self._path} row {number}"
    with row_files.blames_parquet(self._path, lambda: where):
      (row,) = one.to_pylist(maps_as_pydicts="strict")
    row = row_files.parquet_row(row, self._names, where)
    return where, _weighed(row, where, self._weights)


class _ArrowRows:
  """The rows of a table by their places: (number in the file, one row)."""

  def __init__(self, before, table):
    self._before, self._table = before, table

  def __getitem__(self, place):
    return self._before + place + 1, self._table.slice(place, 1)


def _parts(group, count):
  """(group, first row, rows) of the parts in which a row group is read."""
  size = max(PART, -(-count // PARTS))
  return [
    (group, first, min(size, count - first)) for first in range(0, count, size)
  ]


# TFDS.


class Prepared:
  """Ranges of BLOCK rows of a split of a TFDS directory in ArrayRecord."""

  def __init__(self, directory, split, weights=None):
    """Opens its files."""
    self._directory, self._split = directory, split
    self._weights = weights
    self._is_ours = source.is_prepared(directory, weights)
    self._rows = prepared.data_source(directory, split)
    count = len(self._rows)
    if not count:
      raise InputError(
        f"{directory} split {split}: holds no pairs; give another split"
      )
    starts = np.arange(0, count, BLOCK)
    self.counts = np.minimum(BLOCK, count - starts)
    folder = pathlib.Path(directory)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    self.mark = files_mark(files, f"{split} {count}".encode())

  def read(self, block):
    start = BLOCK * int(block)
    return range(start, start + int(self.counts[block]))

  def pairs(self, stored):
    """(place in words, pairs) of the row at a place."""
    where = f"{self._directory} split {self._split} row {stored + 1}"
    row = prepared.row_of(self._rows, stored, self._directory)
    if self._is_ours:
      return where, [source.prepared_pair(row, where)]
    row = source.row_of(row, where)
    return where, _weighed(row, where, self._weights)
