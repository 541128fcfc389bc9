# SPDX-License-Identifier: Apache-2.0
"""Labelled images: what a denoiser is first trained on."""

import dataclasses
import pathlib

import numpy as np

from mrpo_jax.data.images import classes as class_columns
from mrpo_jax.data.images import digits, sources
from mrpo_jax.data.images.classes import ClassReader
from mrpo_jax.data.images.pixels import (
  ImageReader,
  check_batch,
  check_classes,
  identities,
)
from mrpo_jax.data.reading import values
from mrpo_jax.errors import InputError

IMAGES = ("image", "img")  # MNIST's on the hub, and CIFAR's
COLUMNS = (*IMAGES, *class_columns.COLUMNS)


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
  """N images of one size, pixels from -1 (black) to 1 (white).

  X is 1 channel, greyscale, or 3: red, green, blue.
  """

  image_NHWX: np.ndarray  # float32
  class_N: np.ndarray  # int32; -1 where an image has none
  ids: list  # SHA-256 of each image's pixels and class

  @classmethod
  def of(cls, image_NHWX, class_N=None):
    """Images that were made, not read; InputError as of ImagePairs.of."""
    image_NHWX = check_batch(image_NHWX, "image")
    class_N = check_classes(class_N, len(image_NHWX), "class")
    return cls(image_NHWX, class_N, identities(class_N, image_NHWX))


def load_images(name, *, classes, size=None, channels=None):
  """All Images of what a name stands for, in the order of its rows.

  Args:
    name: a source as `pairs.load` takes it, its images in the column `image` or
      `img`; or "digits:train", "digits:held_out".
    classes: the names of C classes, in the order of their numbers; () for none.
    size: as of `pairs.load`.
    channels: as of `pairs.load`.

  Raises:
    InputError: names the file, the row, and what is wrong with it.
  """
  where, rows = _rows_of(str(name))
  reader, class_reader = ImageReader(size, channels), ClassReader(classes)
  images, numbers = [], []
  for place, row in rows:
    column = _column(row, place)
    images.append(reader.read(row[column], f"{place}: {column}"))
    numbers.append(class_reader.read(row, place))
  class_reader.say(where)
  if not images:
    raise InputError(f"{where}: has no image; give at least one")
  (image_NHWX,) = reader.stacked(images, where=where)
  return Images.of(image_NHWX, np.array(numbers, np.int32))


def _rows_of(name):
  start, _, split = name.partition(":")
  if start != digits.NAME or pathlib.Path(name).exists():
    return sources.rows_of(name, COLUMNS)
  if pathlib.Path(start).exists():
    raise InputError(
      f"{name}: there is a {start!r} here, too; name it ./{name} if it is meant"
    )
  image_NHWX, class_N = digits.digits(split)
  rows = (
    (f"{name} image {number}", {"image": image, "label": int(label)})
    for number, (image, label) in enumerate(
      zip(image_NHWX, class_N, strict=True), 1
    )
  )
  return name, rows


def _column(row, place):
  given = [name for name in IMAGES if row.get(name) is not None]
  if len(given) > 1:
    raise InputError(f"{place}: 'image' and 'img' are two images; keep one")
  if not given:
    raise InputError(
      f"{place}: there is no image; the row's keys are {values.keys_of(row)}; "
      "want 'image'"
    )
  return given[0]
