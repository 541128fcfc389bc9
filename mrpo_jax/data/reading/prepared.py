# SPDX-License-Identifier: Apache-2.0
"""Rows of a directory that TFDS has prepared; TFDS is imported when used."""

import contextlib

from mrpo_jax.data.reading import shards
from mrpo_jax.errors import InputError, in_one_line
from mrpo_jax.files import path_of


def rows_of(directory, split, decoders=None):
  """Iterates over the rows of a split, with NumPy and bytes as TFDS gives them.

  Args:
    decoders: {column: a decoder of TFDS}; None has TFDS decode all.

  Raises:
    InputError: there is no such split, or it cannot be read.
  """
  rows = data_source(directory, split, decoders)
  with _blames(directory, f" in array_record format, split {split}"):
    for i in range(len(rows)):
      yield rows[i]


def data_source(directory, split, decoders=None):
  """The rows of a split by their places, a sequence; InputError as above."""
  with _blames(directory, f" in array_record format, split {split}"):
    return _builder(directory).as_data_source(split=split, decoders=decoders)


def row_of(rows, place, directory):
  """One row of a `data_source`; InputError where it cannot be read."""
  with _blames(directory, f", row {place + 1}"):
    return rows[place]


def features_of(directory):
  """{column: its TFDS feature}; InputError where they cannot be read."""
  with _blames(directory, ""):
    return {**_builder(directory).info.features}


def refuse_outer(place):
  """Raises InputError where data sets stand below a folder that is none."""
  if (path_of(place) / shards.TFDS[0]).exists():
    return
  below = [path.parent for path in path_of(place).rglob(shards.TFDS[0])]
  # The hub's own folders have no features.json.
  sets = sorted(str(one) for one in below if (one / shards.TFDS[1]).exists())
  if sets:
    raise InputError(
      f"{place}: is no data set itself; name the one below it: "
      f"{' or '.join(sets)}"
    )


def _builder(directory):
  import tensorflow_datasets as tfds

  return tfds.builder_from_directory(directory)


@contextlib.contextmanager
def _blames(directory, which):
  try:
    yield
  except Exception as error:  # TFDS and ArrayRecord raise many kinds.
    raise InputError(
      f"{directory}: cannot be read as a data set prepared by TFDS{which} "
      f"({in_one_line(error)}); check directory and split, or prepare it again"
    ) from error
