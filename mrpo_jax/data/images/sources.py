# SPDX-License-Identifier: Apache-2.0
"""Rows that hold images: of files, folders of files, and what TFDS prepared."""

import json
import pathlib

import numpy as np

from mrpo_jax.data.images import classes
from mrpo_jax.data.reading import prepared, row_files, shards, values
from mrpo_jax.errors import InputError
from mrpo_jax.files import opened


def rows_of(name, columns):
  """(what is read in words, iterator of (place in words, row)) of a name.

  Labels that are numbers of a ClassLabel, of `datasets` or of TFDS, are its
  names, where it has any but the numbers themselves.

  Args:
    name: a Parquet or JSON file, a glob, a folder of such files ("DIR[:split]")
      or one prepared by TFDS ("DIR[:split]"; the split is "train" where none is
      given).
    columns: names of those that are read.

  Raises:
    InputError: it stands for nothing; while iterating: it cannot be read.
  """
  name = str(name)
  files, place, split = shards.resolved(name)
  if files is not None:
    where = files[0] if len(files) == 1 else name
    return where, (row for file in files for row in _file_rows(file, columns))
  if place and pathlib.Path(place).is_dir():
    prepared.refuse_outer(place)
    split = split or "train"
    where = f"{place} split {split}"
    return where, _prepared_rows(place, split, columns)
  raise InputError(
    f"{name!r}: found no such file and no such directory prepared by TFDS; "
    "check the name, and store a data set of a hub as Parquet files first"
  )


def _file_rows(path, columns):
  rows = row_files.rows_of(path, columns)  # refuses what is no file
  names = _label_names(path)
  for place, row in rows:
    values.refuse_no_row(row, place)
    yield place, _named(row, names, place)


def _label_names(path):
  """{column: names} of the ClassLabels that `datasets` has noted in Parquet."""
  if not str(path).lower().endswith(".parquet"):
    return {}
  import pyarrow
  import pyarrow.parquet

  try:
    with opened(path) as file:
      noted = pyarrow.parquet.read_schema(file).metadata or {}
    features = json.loads(noted[b"huggingface"])["info"]["features"]
    return {
      column: feature["names"]
      for column, feature in features.items()
      if feature.get("_type") == "ClassLabel"
      and isinstance(feature.get("names"), list)
    }
  except (LookupError, TypeError, AttributeError):
    return {}  # there is no such note
  except (pyarrow.ArrowException, OSError, ValueError):
    return {}  # a damaged file is refused where its rows are read


def _prepared_rows(directory, split, columns):
  import tensorflow_datasets as tfds

  features = prepared.features_of(directory)
  # TFDS would take palettes for pixels and pass over EXIF data; of float32 it
  # has its own way of storing.
  decoders = {
    column: tfds.decode.SkipDecoding()
    for column, feature in features.items()
    if isinstance(feature, tfds.features.Image)
    and feature.np_dtype != np.float32
  }
  names = {
    column: feature.names
    for column, feature in features.items()
    if isinstance(feature, tfds.features.ClassLabel)
  }
  rows = prepared.rows_of(directory, split, decoders)
  for number, row in enumerate(rows, 1):
    place = f"{directory} split {split} row {number}"
    plain = {key: _plain(row[key], key) for key in columns if key in row}
    yield place, _named(plain or {key: None for key in row}, names, place)


def _plain(value, column):
  """A number or a text of NumPy as Python has it; an array stays."""
  if isinstance(value, np.generic) or getattr(value, "shape", None) == ():
    value = value.item()
  if isinstance(value, bytes) and column in classes.COLUMNS:
    value = value.decode(errors="replace")
  return value


def _named(row, names, place):
  """A row with the names of its labels in the place of their numbers."""
  for column in classes.LABELS:
    known, label = names.get(column), row.get(column)
    if known is None or type(label) is not int or known == _numerals(known):
      continue
    if not -1 <= label < len(known):
      raise InputError(
        f"{place}: {column} is {label}, but the file names {len(known)} "
        "classes; write it anew"
      )
    # In a ClassLabel -1 is a label that is missing.
    row = row | {column: None if label == -1 else known[label]}
  return row


def _numerals(names):
  return [str(number) for number in range(len(names))]
