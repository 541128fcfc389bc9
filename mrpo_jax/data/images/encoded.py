# SPDX-License-Identifier: Apache-2.0
"""PNG and JPEG to levels and back, by Pillow, which is imported when used.

A JPEG that is damaged, but not cut off, decodes to other pixels without an
error: its format has no checksum.  PNG has one.
"""

import contextlib
import importlib.util
import io
import warnings

import numpy as np

from mrpo_jax.errors import InputError, in_one_line

FORMATS = ("PNG", "JPEG")
GREY, COLOUR = ("1", "L", "LA"), ("P", "PA", "RGB", "RGBA")  # Pillow's modes
ORIENTATION = 0x0112  # EXIF: 1 is upright, 2 to 8 turn or mirror
BITS = 24  # where a PNG says how many bits a channel has


def decoded(data, place, notes):
  """Levels 0 to 255, uint8 [H, W, X], of a PNG or JPEG image.

  X is 1 or 3 channels, and one of alpha behind them where there is one.

  Args:
    data: bytes of the file.
    place: where they stand, in words.
    notes: Notes to which conversions are added.

  Raises:
    InputError: it is no such image, is cut off, animated, has 16 bits a channel
      or a mode like CMYK, or more pixels than Pillow's limit.
  """
  image_module = pillow()
  try:
    with _strict(), image_module.open(io.BytesIO(data), "r", FORMATS) as image:
      _refuse(image, data, place)
      image.load()
      return _levels(image, place, notes)
  except InputError:
    raise
  except image_module.UnidentifiedImageError:
    problem = "is no PNG and no JPEG image, or a damaged one; save it anew"
  except (
    image_module.DecompressionBombError,
    image_module.DecompressionBombWarning,
  ):
    limit = image_module.MAX_IMAGE_PIXELS
    problem = f"has more than {limit} pixels; make it smaller"
  except Exception as error:  # Pillow's readers raise many kinds.
    problem = f"cannot be decoded ({in_one_line(error)}); save it anew"
  raise InputError(f"{place}: {problem}")


def png(levels_HWX):
  """A PNG file, as bytes, of levels 0 to 255, uint8 [H, W, 1 or 3]."""
  grey = levels_HWX.shape[-1] == 1
  file = io.BytesIO()
  pillow().fromarray(levels_HWX[..., 0] if grey else levels_HWX).save(
    file, "PNG"
  )
  return file.getvalue()


def pillow():
  """Pillow's module Image; InputError where it is not installed."""
  if importlib.util.find_spec("PIL") is None:
    raise InputError(
      "images need the package pillow: pip install 'mrpo-jax[diffusion]'"
    )
  from PIL import Image

  return Image


@contextlib.contextmanager
def _strict():
  """Has Pillow raise where it would warn of a bomb, or fill a cut image."""
  from PIL import Image, ImageFile

  before = ImageFile.LOAD_TRUNCATED_IMAGES  # other packages set it
  ImageFile.LOAD_TRUNCATED_IMAGES = False
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("error", Image.DecompressionBombWarning)
      yield
  finally:
    ImageFile.LOAD_TRUNCATED_IMAGES = before


def _refuse(image, data, place):
  """InputError for what Pillow would reduce to less without a word."""
  # Pillow opens colour of 16 bits as if it had 8.
  if image.mode.startswith("I") or (image.format == "PNG" and data[BITS] > 8):
    raise InputError(
      f"{place}: has 16 bits a channel, of which 8 would be lost; save it "
      "with 8"
    )
  if image.mode not in GREY + COLOUR:
    raise InputError(
      f"{place}: is of the colour mode {image.mode}; save it as RGB or as "
      "greyscale"
    )
  frames = getattr(image, "n_frames", 1)
  if frames > 1:
    raise InputError(
      f"{place}: holds {frames} pictures, an animation for one; keep one"
    )


def _levels(image, place, notes):
  from PIL import ImageOps

  if image.info.get("icc_profile"):
    notes.add("have a colour profile, which is not applied", place)
  if image.getexif().get(ORIENTATION) in range(2, 9):
    notes.add("are turned upright, as their EXIF data says", place)
    image = ImageOps.exif_transpose(image)
  if image.mode in ("P", "PA"):
    notes.add("have a palette, and are read as colour", place)
  mode = "RGB" if image.mode in COLOUR else "L"
  if image.has_transparency_data:
    mode = "RGBA" if mode == "RGB" else "LA"
  levels = np.asarray(image.convert(mode))
  return levels if levels.ndim == 3 else levels[..., None]
