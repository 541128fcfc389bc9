# SPDX-License-Identifier: Apache-2.0
"""Reading a GGUF file, or the parts of a split one: metadata and tensors.

Through the reader and the dequantisers of llama.cpp's package `gguf`.
"""

import dataclasses
import itertools
import math
import pathlib
import re

import gguf
import numpy as np

from mrpo_jax import files
from mrpo_jax.errors import InputError, first_line
from mrpo_jax.models.families.family import UnsupportedModel

MAGIC, VERSIONS = b"GGUF", (2, 3)
# Beyond these a count is damage, and would be listed for minutes.
LONGEST = 2**21  # values of an array; the most merges are a quarter of it
MOST, DIMS = 2**16, 4  # tensors of a file, axes of a tensor
CHUNK = 2**22  # values that are dequantised at once
PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
ARRAY, STRING = gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING
BROKEN = (
  *(ValueError, KeyError, IndexError, TypeError, OverflowError),
  MemoryError,
)


class Header(gguf.GGUFReader):
  """The package's reader, which goes nowhere beyond the end of the file.

  The package takes what lies there as empty, so that a false count has it
  loop for years, and makes two arrays of each number of an array.
  """

  def _get(self, offset, dtype, count=1, override_order=None):
    offset, count = int(offset), int(count)
    end = offset + np.dtype(dtype).itemsize * count
    if end > len(self.data):
      raise ValueError(
        f"it ends at byte {len(self.data)}, and goes on to {end}"
      )
    return self.data.view(np.ndarray)[offset:end].view(dtype)

  def _get_field_parts(self, orig_offs, raw_type):
    if raw_type != ARRAY:
      return super()._get_field_parts(orig_offs, raw_type)
    raw_kind = self._get(orig_offs, np.uint32)
    kind, number = gguf.GGUFValueType(int(raw_kind[0])), orig_offs + 4
    raw_count = self._get(number, np.uint64)
    count, start = int(raw_count[0]), number + 8
    if count > LONGEST:
      raise ValueError(f"an array of {count} values")
    if kind == STRING:
      parts, size = self._strings(start, count)
    elif kind in self.gguf_scalar_to_np:
      parts = [self._get(start, self.gguf_scalar_to_np[kind], count)]
      size = parts[0].nbytes
    else:
      raise ValueError("an array of arrays")
    places = range(2, 2 + len(parts))
    return 12 + size, [raw_kind, raw_count, *parts], [*places], [ARRAY, kind]

  def _build_tensor_info(self, offs, count):
    if count > MOST:
      raise ValueError(f"{count} tensors")
    return super()._build_tensor_info(offs, count)

  def _get_tensor_info_field(self, orig_offs):
    size, _ = self._get_str(orig_offs)
    (dims,) = self._get(orig_offs + 8 + int(size[0]), np.uint32)
    if dims > DIMS:
      raise ValueError(f"a tensor of {dims} axes")
    field = super()._get_tensor_info_field(orig_offs)
    (kind,), (offset,) = field.parts[-2:]
    if kind not in {*gguf.GGMLQuantizationType}:
      raise _no_kind(self.data.filename, field.name, kind)
    if offset > len(self.data):  # before a sum leaves 64 bits
      raise ValueError(f"it ends at byte {len(self.data)}, before {field.name}")
    return field

  def _strings(self, start, count):
    """(arrays of bytes, their size in the file)."""
    parts, at = [], start
    for _ in range(count):
      size, text = self._get_str(at)
      parts.append(text)
      at += size.nbytes + text.nbytes
    return parts, at - start


@dataclasses.dataclass(frozen=True)
class StoredTensor:
  """A tensor of a file, before it is read."""

  path: pathlib.Path
  name: str
  kind: gguf.GGMLQuantizationType
  shape: tuple[int, ...]  # as NumPy has it, outputs first
  offset: int  # of its first byte in the file
  size: int  # bytes

  def read(self, dtype, shift=0.0):
    """Its dequantised numbers less `shift`, rounded to a NumPy dtype.

    Beside the result, the host holds the float32 of CHUNK numbers.

    Raises:
      InputError: one is not finite.
    """
    tensor = np.empty(self.shape, dtype)
    rows = max(math.prod(self.shape[:-1]), 1)
    flat, bytes_of_row = tensor.reshape(rows, -1), self.size // rows
    step = max(CHUNK // flat.shape[1], 1)
    for start in range(0, rows, step):
      some = min(step, rows - start)
      raw = self.raw(start * bytes_of_row, some * bytes_of_row)
      with np.errstate(over="ignore", invalid="ignore"):  # refused below
        values = gguf.quants.dequantize(raw.reshape(some, -1), self.kind)
        rounded = (values - np.float32(shift)).astype(dtype)
      if not np.isfinite(rounded).all():
        raise InputError(
          f"{self.path}: {self.name} holds numbers that are not finite in "
          f"{tensor.dtype}"
        )
      flat[start : start + some] = rounded
    return tensor

  def raw(self, start, count):
    """`count` of its bytes as the file has them, from its `start`-th on."""
    found = np.fromfile(self.path, np.uint8, count, offset=self.offset + start)
    if found.size < count:
      raise InputError(
        f"{self.path}: became shorter while it was read; fetch it again"
      )
    return found


@dataclasses.dataclass(frozen=True)
class GGUFFile:
  """What a GGUF file holds, its parts together."""

  paths: list[pathlib.Path]
  metadata: dict  # key -> number, text, bool or a list of such
  tensors: dict[str, StoredTensor]


def read(path):
  """The GGUFFile of a file, or of all parts of one that is split.

  Raises:
    InputError: it is not whole, no GGUF file, or a part is missing.
  """
  path = pathlib.Path(path)
  metadata, tensors = _one(path)
  count = metadata.get("split.count", 1)
  if type(count) is not int:
    raise InputError(f"{path}: split.count={count!r}; want an integer")
  if count in (0, 1):
    return GGUFFile([path], metadata, tensors)
  match = PART.fullmatch(path.name)
  if not match or int(match[3]) != count:
    raise InputError(
      f"{path}: is one of {count} parts; name them "
      f"NAME-00001-of-{count:05}.gguf and so on, as llama.cpp does"
    )
  paths = [
    path.with_name(f"{match[1]}-{i:05}-of-{count:05}.gguf")
    for i in range(1, count + 1)
  ]
  for part in paths:
    if not part.is_file():
      raise InputError(f"{part}: no such file; {path.name} is a part beside it")
  found = [_one(part) for part in paths]
  tensors = {}
  for number, (part, (own, more)) in enumerate(zip(paths, found, strict=True)):
    if own.get("split.no") != number or own.get("split.count") != count:
      raise InputError(
        f"{part}: is not part {number + 1} of {count}; fetch it again"
      )
    for name in more:
      if name in tensors:
        raise InputError(f"{part}: {name} stands in {tensors[name].path} too")
    tensors |= more
  metadata = found[0][0]
  want = metadata.get("split.tensors.count", len(tensors))
  if len(tensors) != want:
    raise InputError(
      f"{path}: its parts hold {len(tensors)} tensors, not {want}; fetch them "
      "again"
    )
  return GGUFFile(paths, metadata, tensors)


def _one(path):
  """(metadata, {name: StoredTensor}) of one file."""
  with files.opened(path) as file:
    start = file.read(8)
  version = int.from_bytes(start[4:], "little")
  if start[:4] != MAGIC or len(start) < 8:
    raise InputError(
      f"{path}: is no GGUF file, and begins with {start[:4]!r}; fetch it again"
    )
  if version and not version & 0xFFFF:
    raise InputError(
      f"{path}: is big-endian; convert it with gguf_convert_endian.py"
    )
  if version not in VERSIONS:
    raise InputError(
      f"{path}: is of version {version} of GGUF; want 2 or 3: quantise it "
      "again with a llama.cpp of today"
    )
  try:
    header = Header(path)
    metadata = {
      key: field.contents()
      for key, field in header.fields.items()
      if not key.startswith("GGUF.")
    }
    tensors = {one.name: _stored(path, one) for one in header.tensors}
    _refuse_overlaps(tensors.values())
  except UnsupportedModel:
    raise
  except BROKEN as error:
    raise InputError(
      f"{path}: not a whole GGUF file ({first_line(error)}); fetch it again"
    ) from None
  for kind, name in {one.kind: one.name for one in tensors.values()}.items():
    _check_kind(path, name, kind)
  return metadata, tensors


def _stored(path, one):
  shape = tuple(one.shape.tolist()[::-1])
  if math.prod(shape) != one.n_elements or not one.n_elements:
    raise ValueError(f"{one.name} of shape {shape}")
  return StoredTensor(
    path, one.name, one.tensor_type, shape, one.data_offset, one.n_bytes
  )


def _refuse_overlaps(tensors):
  """ValueError where two tensors share bytes."""
  ordered = sorted(tensors, key=lambda one: one.offset)
  for one, after in itertools.pairwise(ordered):
    if one.offset + one.size > after.offset:
      raise ValueError(f"{one.name} and {after.name} overlap")


def _no_kind(path, name, kind):
  """The UnsupportedModel of a kind that the package cannot dequantise."""
  return UnsupportedModel(
    f"{path}: {name} is of kind {kind}, which the package gguf does not "
    "dequantise; take a file of another, of Q8_0 say"
  )


def _check_kind(path, name, kind):
  _, size = gguf.GGML_QUANT_SIZES[kind]
  try:
    gguf.quants.dequantize(np.zeros((1, size), np.uint8), kind)
  except NotImplementedError:
    raise _no_kind(path, name, kind.name) from None
