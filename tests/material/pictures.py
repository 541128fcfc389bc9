# SPDX-License-Identifier: Apache-2.0
"""Tiny images as files, and Parquet files that hold them."""

import io
import struct
import zlib

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image


def levels(seed, height=4, width=5, channels=3):
  """Random levels, uint8 [height, width, channels]."""
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def picture(levels_HWX):
  """A Pillow image of levels, of 1, 2, 3 or 4 channels."""
  one = levels_HWX.shape[-1] == 1
  return Image.fromarray(levels_HWX[..., 0] if one else levels_HWX)


def saved(image, kind="PNG", **how):
  """The bytes of a Pillow image, or of levels, as a file."""
  if isinstance(image, np.ndarray):
    image = picture(image)
  file = io.BytesIO()
  image.save(file, kind, **how)
  return file.getvalue()


def struct_of(content):
  """Hugging Face's form of an image."""
  return {"bytes": content, "path": None}


def parquet(path, rows, metadata=None):
  """A Parquet file of rows; what one of them has not is null."""
  names = dict.fromkeys(name for row in rows for name in row)
  table = pyarrow.Table.from_pylist(
    [dict.fromkeys(names) | row for row in rows]
  )
  pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), path)
  return path


def raw_png(width, height, bits, colour, scanlines):
  """A PNG of any header, by the specification's own terms."""

  def chunk(kind, data):
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum

  header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
  parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(scanlines))
  return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b"")
