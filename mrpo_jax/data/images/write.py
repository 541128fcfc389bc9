# SPDX-License-Identifier: Apache-2.0
"""Pairs of images to a Parquet file that `datasets` reads as images."""

import io
import json
import logging

import numpy as np

from mrpo_jax import files
from mrpo_jax.data.images import encoded
from mrpo_jax.data.images.classes import check_names
from mrpo_jax.data.images.pairs import COLUMNS
from mrpo_jax.data.images.pixels import from_levels, to_levels
from mrpo_jax.errors import InputError, blames
from mrpo_jax.text import counted

logger = logging.getLogger(__name__)

SIDES = ("chosen", "rejected")
# Types that `datasets` calls otherwise than pyarrow does.
DTYPES = {"double": "float64", "float": "float32", "halffloat": "float16"}


def quantised(image):
  """The pixels of an image, [-1, 1], as a file of 8 bits a channel has them.

  Of any shape; float32.  They differ by at most 1 / 255 from what was given,
  and quantising them again changes nothing.

  Raises:
    InputError: a pixel is not finite or outside [-1, 1].
  """
  return from_levels(to_levels(np.asarray(image, np.float32), "image"))


def write_pairs(path, pairs, *, classes=(), columns=None):
  """Writes ImagePairs as a Parquet file, whole or not at all.

  The columns are `chosen` and `rejected`, PNG images of 8 bits a channel in the
  form of `datasets.Image`, `class`, a name or null, and those that are given.
  What is read back has the pixels of `quantised`, so that pairs of quantised
  pixels come back as they are; how many others there are is said.

  Args:
    path: "*.parquet"; what is there is replaced.
    pairs: N ImagePairs.
    classes: the names of C classes, in the order of their numbers.
    columns: {name: N numbers or texts}, further columns of the file, which
      `pairs.load` does not read.

  Raises:
    InputError: the name is of no Parquet file, a class has no name, or a column
      is of another length or kind, or its name means something to `pairs.load`.
  """
  import pyarrow
  import pyarrow.parquet

  if not str(path).lower().endswith(".parquet"):
    raise InputError(f"{path}: pairs of images are written as .parquet")
  count = len(pairs.chosen_NHWX)
  levels = [
    to_levels(images, f"{path}: {side}")
    for side, images in zip(
      SIDES, (pairs.chosen_NHWX, pairs.rejected_NHWX), strict=True
    )
  ]
  _say_what_changes(path, pairs, levels)
  image_type = pyarrow.struct(
    {"bytes": pyarrow.binary(), "path": pyarrow.string()}
  )
  table = {
    side: pyarrow.array(
      [{"bytes": encoded.png(one), "path": None} for one in images], image_type
    )
    for side, images in zip(SIDES, levels, strict=True)
  }
  check_names(classes)
  names = _names(path, pairs.class_N, classes)
  table["class"] = pyarrow.array(names, pyarrow.string())
  for name, given in (columns or {}).items():
    if name in COLUMNS:
      raise InputError(
        f"{path}: a column {name!r} is read as one of the pair; rename it"
      )
    table[name] = _column(path, name, given, count)
  table = pyarrow.table(table)
  file = io.BytesIO()
  pyarrow.parquet.write_table(
    table.replace_schema_metadata({"huggingface": _features(table)}), file
  )
  files.write_atomically(path, file.getvalue())


def _say_what_changes(path, pairs, levels):
  sides = pairs.chosen_NHWX, pairs.rejected_NHWX
  rounded = sum(
    int((from_levels(one) != images).any(axis=(1, 2, 3)).sum())
    for one, images in zip(levels, sides, strict=True)
  )
  if rounded:
    logger.info(
      f"{path}: {rounded} of {2 * len(levels[0])} images are rounded to 8 bits "
      "a channel"
    )
  alike = int((levels[0] == levels[1]).all(axis=(1, 2, 3)).sum())
  if alike:
    logger.info(
      f"{path}: {alike} of {len(levels[0])} pairs have two identical images; "
      "who reads the file leaves them out"
    )


def _names(path, class_N, classes):
  for number in np.unique(class_N):
    if number >= len(classes):
      raise InputError(
        f"{path}: a pair has class {number}, but classes= has "
        f"{counted(len(classes), 'name')}; give one for each"
      )
  return [classes[number] if number >= 0 else None for number in class_N]


def _column(path, name, given, count):
  import pyarrow

  with blames(f"{path}: the column {name!r}", pyarrow.ArrowException):
    column = pyarrow.array(list(given))
  kinds = pyarrow.types
  if len(column) != count:
    raise InputError(
      f"{path}: the column {name!r} has {counted(len(column), 'value')} "
      f"for {counted(count, 'pair')}"
    )
  known = kinds.is_floating, kinds.is_integer, kinds.is_string
  if not any(is_kind(column.type) for is_kind in known):
    raise InputError(
      f"{path}: the column {name!r} holds {column.type}; give numbers or texts"
    )
  return column


def _features(table):
  """The note in which `datasets` finds what the columns are."""
  features = {
    field.name: {"_type": "Image"}
    if field.name in SIDES
    else {"dtype": DTYPES.get(name := str(field.type), name), "_type": "Value"}
    for field in table.schema
  }
  return json.dumps({"info": {"features": features}})
