# SPDX-License-Identifier: Apache-2.0
"""Preference pairs of images: what Diffusion-DPO trains on.

Rows are read in two layouts: a chosen and a rejected image, or two images and
their labels, as Pick-a-Pic has them.
"""

import dataclasses

import numpy as np

from mrpo_jax.data.images import classes as class_columns
from mrpo_jax.data.images import sources
from mrpo_jax.data.images.classes import ClassReader
from mrpo_jax.data.images.notes import Notes
from mrpo_jax.data.images.pixels import (
  ImageReader,
  check_batch,
  check_classes,
  identical,
  identities,
)
from mrpo_jax.data.reading import values
from mrpo_jax.errors import InputError

SIDES = (
  ("chosen", "rejected"),
  ("image_chosen", "image_rejected"),
  ("chosen_image", "rejected_image"),
)
# Pick-a-Pic, v1 and v2: 1.0 is the winner's label, 0.5 both of a tie.
IMAGES, LABELS = ("jpg_0", "jpg_1"), ("label_0", "label_1")
UNLABELLED = "has_label"
COLUMNS = (
  *(name for names in SIDES for name in names),
  *IMAGES,
  *LABELS,
  UNLABELLED,
  *class_columns.COLUMNS,
)


@dataclasses.dataclass(frozen=True, eq=False)
class ImagePairs:
  """N pairs of images of one size, pixels from -1 (black) to 1 (white).

  X is 1 channel, greyscale, or 3: red, green, blue.
  """

  chosen_NHWX: np.ndarray  # float32
  rejected_NHWX: np.ndarray  # float32
  class_N: np.ndarray  # int32, of both images; -1 where a pair has none
  ids: list  # SHA-256 of each pair's pixels and class

  @classmethod
  def of(cls, chosen_NHWX, rejected_NHWX, class_N=None):
    """Pairs of images that were made, not read.

    Args:
      chosen_NHWX: fractions from -1 to 1.
      rejected_NHWX: as many, of the same size.
      class_N: whole numbers; None where no pair has a class.

    Raises:
      InputError: they are none, of unequal shapes, or a pixel is not finite or
        outside [-1, 1].
    """
    chosen_NHWX = check_batch(chosen_NHWX, "chosen")
    rejected_NHWX = check_batch(rejected_NHWX, "rejected")
    if chosen_NHWX.shape != rejected_NHWX.shape:
      raise InputError(
        f"chosen is {list(chosen_NHWX.shape)}, but rejected is "
        f"{list(rejected_NHWX.shape)}; want images of one shape"
      )
    class_N = check_classes(class_N, len(chosen_NHWX), "class")
    ids = identities(class_N, chosen_NHWX, rejected_NHWX)
    return cls(chosen_NHWX, rejected_NHWX, class_N, ids)


def load(name, *, classes, size=None, channels=None):
  """All ImagePairs of what a name stands for, in the order of its rows.

  Ties, rows without a label, and pairs whose images are identical are left out;
  how many they are is said, and so is every conversion.

  Args:
    name: a Parquet or JSON file, a glob, a folder of them ("DIR[:split]"), or
      one prepared by TFDS ("DIR[:split]").
    classes: the names of C classes, in the order of their numbers; () for none.
    size: that images must have: pixels of a side, or (height, width); None is
      that of the first one.  Nothing is resized.
    channels: 1 converts colour to greyscale, 3 repeats greyscale; with None a
      set of both is refused.

  Raises:
    InputError: names the file, the row, and what is wrong with it.
  """
  where, rows = sources.rows_of(name, COLUMNS)
  reader, class_reader = ImageReader(size, channels), ClassReader(classes)
  notes = Notes("rows")
  chosen, rejected, numbers = [], [], []
  for place, row in rows:
    notes.total += 1
    sides = _sides(row, place, notes)
    if sides is None:
      continue
    images = [reader.read(row.get(one), f"{place}: {one}") for one in sides]
    if identical(*images):
      notes.add("have two identical images, and are left out", place)
      continue
    numbers.append(class_reader.read(row, place))
    chosen.append(images[0])
    rejected.append(images[1])
  class_reader.say(where)
  notes.say(where)
  if not chosen:
    raise InputError(f"{where}: has no pair of images; give at least one")
  sides = reader.stacked(chosen, rejected, where=where)
  return ImagePairs.of(*sides, np.array(numbers, np.int32))


def _sides(row, place, notes):
  """Names of the columns of the chosen and the rejected image.

  None where neither is preferred, which is noted.
  """
  given = [names for names in (*SIDES, IMAGES) if _any(row, names)]
  if len(given) > 1:
    both = " and ".join(map(repr, (name for names in given for name in names)))
    raise InputError(f"{place}: {both} are several pairs; keep one")
  if not given:
    raise InputError(
      f"{place}: there are no images; the row's keys are "
      f"{values.keys_of(row)}; want 'chosen' and 'rejected'"
    )
  if given == [IMAGES]:
    return _preferred(row, place, notes)
  return given[0]


def _any(row, names):
  return any(row.get(name) is not None for name in names)


def _preferred(row, place, notes):
  """Names of the better and the worse of two images, by their labels."""
  labels, is_labelled = [row.get(name) for name in LABELS], row.get(UNLABELLED)
  if is_labelled not in (None, True, False):  # 1 and 0 are equal to these
    raise InputError(
      f"{place}: {UNLABELLED} is {values.shown(is_labelled)}; want true or "
      "false"
    )
  if labels == [None, None] or is_labelled not in (None, True):
    notes.add("have no label, and are left out", place)
    return None
  if labels == [0.5, 0.5]:
    notes.add("are ties, and are left out", place)
    return None
  if labels not in ([1, 0], [0, 1]):
    raise InputError(
      f"{place}: the labels are {labels[0]!r} and {labels[1]!r}; want 1 and 0, "
      "0 and 1, or 0.5 twice for a tie"
    )
  return IMAGES if labels == [1, 0] else IMAGES[::-1]
