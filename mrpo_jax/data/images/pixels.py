# SPDX-License-Identifier: Apache-2.0
"""Pixels: stored images of one set to arrays of one size in [-1, 1]."""

import hashlib
import logging

import numpy as np

from mrpo_jax.data.images import encoded
from mrpo_jax.data.images.notes import Notes
from mrpo_jax.data.reading import values
from mrpo_jax.errors import InputError
from mrpo_jax.text import sized_bytes

logger = logging.getLogger(__name__)

TOP = np.float32(255)  # the level of white, 1; level 0 is black, -1
# The pixel of each level: one rounding, so opposite levels are opposite pixels.
PIXEL = (2 * np.arange(256, dtype=np.float32) - TOP) / TOP
# Red, green and blue in 65,536 parts of grey: ITU-R BT.601, as Pillow rounds.
LUMA = np.array([19595, 38470, 7471])
LARGE = 1e9  # bytes of arrays, from which their size is said
DARK = 128  # a set without any brighter level is said to have none
NAMES = {1: "greyscale", 3: "colour"}


def from_levels(levels):
  """Pixels in [-1, 1], float32, of levels, uint8: (2 level - 255) / 255."""
  return PIXEL[levels]


def to_levels(pixels, where):
  """The levels 0 to 255, uint8, nearest to pixels; half is rounded to even.

  Raises:
    InputError: a pixel is not finite or outside [-1, 1].
  """
  check_range(pixels, where)
  return np.rint((pixels * TOP + TOP) / 2).astype(np.uint8)


def as_pixels(image):
  """Pixels in [-1, 1] of levels, uint8, or of such pixels."""
  return from_levels(image) if image.dtype == np.uint8 else image


def identical(image, other):
  """Have two images, levels or pixels, the same pixels?"""
  if image.dtype != other.dtype:
    image, other = as_pixels(image), as_pixels(other)
  return np.array_equal(image, other)


def check_range(pixels, where):
  """InputError where a pixel is not finite or outside [-1, 1]."""
  if not np.isfinite(pixels).all():
    raise InputError(
      f"{where}: a pixel is NaN or infinite; leave the image out, or look for "
      "what made it"
    )
  low, high = pixels.min(initial=0), pixels.max(initial=0)
  if low < -1 or high > 1:
    raise InputError(
      f"{where}: has pixels from {low:.9g} to {high:.9g}; fractions are from "
      "-1 (black) to 1 (white), and whole numbers from 0 to 255"
    )


def check_batch(image_NHWX, where):
  """A batch as float32; InputError where it is none of finite images."""
  image_NHWX = np.asarray(image_NHWX)
  shape = image_NHWX.shape
  if image_NHWX.dtype.kind != "f" or len(shape) != 4 or shape[-1] not in NAMES:
    raise InputError(
      f"{where}: want fractions of [images, height, width, 1 or 3 channels]; "
      f"got {image_NHWX.dtype} of {list(shape)}"
    )
  check_range(image_NHWX, where)
  return image_NHWX.astype(np.float32, copy=False)


def check_classes(class_N, count, where):
  """Numbers of classes as int32, -1 for none; None is none of all images."""
  if class_N is None:
    return np.full(count, -1, np.int32)
  class_N = np.asarray(class_N)
  if class_N.shape != (count,) or class_N.dtype.kind not in "iu":
    raise InputError(
      f"{where}: want {count} whole numbers of classes; got {class_N.dtype} of "
      f"{list(class_N.shape)}"
    )
  if count and class_N.min() < -1:
    raise InputError(f"{where}: a class is {class_N.min()}; want -1 for none")
  return class_N.astype(np.int32)


def identities(class_N, *batches):
  """SHA-256, in hex, of each row's class, and of its pixels in some batches."""
  ids = []
  for number, *images in zip(class_N, *batches, strict=True):
    content = hashlib.sha256(f"{int(number)} {images[0].shape}".encode())
    for image_HWX in images:
      positive_HWX = image_HWX + np.float32(0)  # -0 is 0
      content.update(np.ascontiguousarray(positive_HWX, "<f4"))
    ids.append(content.hexdigest())
  return ids


class ImageReader:
  """Reads the images of one set, which have one size and kind of colour."""

  def __init__(self, size=None, channels=None):
    """All that images may differ in is fixed by the first of them, or here.

    Args:
      size: of every image: pixels of a side, or (height, width).
      channels: 1 converts colour to greyscale, 3 repeats greyscale, and says
        so; with None images of both kinds are refused.
    """
    self._size = None if size is None else _size_of(size)
    if channels not in (None, *NAMES):
      raise InputError(f"channels: want 1 or 3, got {channels!r}")
    self._channels, self._fixed = channels, channels is not None
    self._first = None  # place of the first image
    self._numbers = {}  # "whole", "fractions": place of the first array of it
    self._lowest, self._highest = np.inf, -np.inf  # fraction, whole number
    self._notes = Notes("images")

  def read(self, value, place):
    """Pixels [H, W, X] of a stored image: levels as uint8, or float32.

    Args:
      value: PNG or JPEG bytes, {"bytes", "path"} with them, or numbers of
        [height, width] or [height, width, channels]: whole ones from 0 to 255
        or fractions from -1 to 1, as an array or as nested lists.
      place: where it stands, in words.

    Raises:
      InputError: it is none of these, or unlike the images before it.
    """
    self._notes.total += 1
    pixels = self._without_alpha(self._opened(value, place), place)
    self._check_size(pixels, place)
    pixels = self._in_channels(pixels, place)
    self._first = self._first or place
    return pixels

  def stacked(self, *sides, where):
    """Each of some lists of read images as pixels_NHWX, float32; says notes.

    Raises:
      InputError: the numbers of all arrays together show another range.
    """
    self._check_numbers(where)
    self._notes.say(where)
    size = 4 * sum(image.size for images in sides for image in images)
    if size > LARGE:
      logger.info(f"{where}: the images take {sized_bytes(size)} of memory")
    return [_stack(images) for images in sides]

  def _opened(self, value, place):
    if isinstance(value, dict):
      value = _bytes_of(value, place)
    if isinstance(value, bytes | bytearray | memoryview):
      return encoded.decoded(bytes(value), place, self._notes)
    if isinstance(value, list | np.ndarray):
      return self._numbers_of(value, place)
    raise InputError(
      f"{place}: is {values.kind_of(value)}; want PNG or JPEG bytes, or "
      "numbers of [height, width, channels]"
    )

  def _numbers_of(self, value, place):
    """An array of an image's numbers, checked: uint8 or float32."""
    pixels = _array(value, place)
    kind = "fractions" if pixels.dtype.kind == "f" else "whole numbers"
    self._numbers.setdefault(kind, place)
    if len(self._numbers) > 1:
      (one, first), (other, second) = self._numbers.items()
      raise InputError(
        f"{second}: holds {other}, but {first} {one}; write all images alike"
      )
    low, high = pixels.min(), pixels.max()
    if kind == "fractions":
      check_range(pixels, place)
      self._lowest = min(self._lowest, low)
      return pixels.astype(np.float32)
    if low < 0 or high > 255:
      raise InputError(
        f"{place}: has pixels from {low} to {high}; whole numbers are from 0 "
        "to 255, and fractions from -1 to 1"
      )
    self._highest = max(self._highest, high)
    return pixels.astype(np.uint8)

  def _check_numbers(self, where):
    """InputError where arrays keep within [0, 1], which is another range."""
    if "fractions" in self._numbers and self._lowest >= 0:
      raise InputError(
        f"{where}: no pixel is below 0, so they seem to be from 0 to 1; give "
        "2 * pixels - 1, or whole numbers from 0 to 255"
      )
    if "whole numbers" in self._numbers and self._highest <= 1:
      raise InputError(
        f"{where}: no pixel is above 1 of 255; give whole numbers from 0 to "
        "255, or fractions from -1 to 1 (with a point in JSON)"
      )
    if "whole numbers" in self._numbers and self._highest < DARK:
      logger.info(
        f"{where}: the brightest pixel is {self._highest} of 255; if that is "
        "white, scale them"
      )

  def _without_alpha(self, pixels, place):
    if pixels.shape[-1] in NAMES:
      return pixels
    opaque = 1 if pixels.dtype.kind == "f" else 255
    if (pixels[..., -1] != opaque).any():
      raise InputError(
        f"{place}: is transparent in part; put it on a background"
      )
    self._notes.add("have an alpha channel, opaque, which is left out", place)
    return pixels[..., :-1]

  def _check_size(self, pixels, place):
    size = pixels.shape[:2]
    if self._size is None:
      self._size = size
    if size != self._size:
      wanted = f"but {self._first} is" if self._first else "want"
      raise InputError(
        f"{place}: is {_sized(size)} pixels (height x width), {wanted} "
        f"{_sized(self._size)}; crop or resize the images to one size"
      )

  def _in_channels(self, pixels, place):
    channels = pixels.shape[-1]
    self._channels = self._channels or channels
    if channels == self._channels:
      return pixels
    if not self._fixed:
      raise InputError(
        f"{place}: is {NAMES[channels]}, but {self._first} is "
        f"{NAMES[self._channels]}; save them alike, or load them with "
        "channels=1 or channels=3"
      )
    if channels == 1:
      self._notes.add("are greyscale, repeated in three channels", place)
      return np.repeat(pixels, 3, axis=-1)
    self._notes.add("are colour, converted to greyscale", place)
    return _grey(pixels)


def _size_of(size):
  """(height, width) of a number of pixels or two; InputError if it is none."""
  both = size if isinstance(size, tuple | list) else (size, size)
  if len(both) != 2 or not all(type(one) is int and one > 0 for one in both):
    raise InputError(
      f"size: want pixels of a side, or (height, width); got {size!r}"
    )
  return tuple(both)


def _bytes_of(value, place):
  """The bytes of Hugging Face's {"bytes", "path"}."""
  if value.get("bytes") is None:
    path = value.get("path")
    raise InputError(
      f"{place}: holds no bytes of an image"
      + (f", only the path {path!r}" if path else "")
      + "; nothing beside the file is read: store the images in it"
    )
  return value["bytes"]


def _array(value, place):
  """Numbers of [H, W] or [H, W, X] as an array of [H, W, X]."""
  try:
    pixels = np.asarray(value)
  except ValueError:  # lists of unequal lengths
    pixels = np.empty(0)
  if pixels.ndim == 2:
    pixels = pixels[..., None]
  shape = pixels.shape
  if pixels.dtype.kind not in "iuf" or pixels.ndim != 3 or 0 in shape:
    raise InputError(
      f"{place}: is no image; want rows of equal length of numbers, [height, "
      "width] or [height, width, channels]"
    )
  if shape[-1] not in (*NAMES, 4):
    raise InputError(
      f"{place}: has the shape {list(shape)}; want [height, width, channels] "
      "with 1 or 3 channels, which stand last"
    )
  return pixels


def _grey(pixels):
  """Luma of colour, levels to levels and fractions to fractions."""
  if pixels.dtype == np.uint8:
    levels = (pixels.astype(np.int64) @ LUMA + 2**15) >> 16
    return levels.astype(np.uint8)[..., None]
  return (pixels.astype(np.float64) @ LUMA / 2**16).astype(np.float32)[
    ..., None
  ]


def _stack(images):
  pixels_NHWX = np.empty((len(images), *images[0].shape), np.float32)
  for pixels, image in zip(pixels_NHWX, images, strict=True):
    pixels[:] = as_pixels(image)
  return pixels_NHWX


def _sized(size):
  return f"{size[0]} x {size[1]}"
