# SPDX-License-Identifier: Apache-2.0
"""GGUF files: numbers by hand, parts, and files that are damaged."""

import shutil
import struct
import warnings

import gguf
import numpy as np
import pytest

from mrpo_jax.errors import InputError
from mrpo_jax.hub.gguf import read as module
from mrpo_jax.hub.gguf.read import read
from tests.material.gguf_files import byte_level, write

KINDS = gguf.GGMLQuantizationType


def written(path, tensors, **general):
  write(path, "llama", {}, tensors, **general)
  return read(path)


def half(number):
  return np.float16(number).tobytes()


def test_blocks_are_dequantised_by_hand(tmp_path):
  integers = np.arange(-16, 16, dtype=np.int8)
  nibbles = bytes(i | (15 - i) << 4 for i in range(16))
  blocks = {
    "q8": (half(0.5) + integers.tobytes(), KINDS.Q8_0, 0.5 * integers),
    "q40": (
      half(2.0) + nibbles,
      KINDS.Q4_0,  # the low halves of the bytes come first; 8 stands for 0
      2.0 * (np.r_[0:16, 15:-1:-1] - 8),
    ),
    "q41": (
      half(0.25) + half(-1.0) + nibbles,
      KINDS.Q4_1,
      0.25 * np.r_[0:16, 15:-1:-1] - 1.0,
    ),
  }
  tensors = {
    name: (np.frombuffer(raw, np.uint8)[None], kind)
    for name, (raw, kind, _) in blocks.items()
  }
  tensors["f16"] = np.float16([[1.5, -2.0]])
  tensors["bf16"] = (np.frombuffer(b"\x80\x3f\x00\xc0", np.uint8), KINDS.BF16)
  found = written(tmp_path / "a.gguf", tensors).tensors
  for name, (_, kind, want) in blocks.items():
    assert found[name].kind == kind and found[name].shape == (1, 32)
    np.testing.assert_array_equal(found[name].read(np.float32)[0], want)
  assert found["f16"].read(np.float32).tolist() == [[1.5, -2.0]]
  assert found["bf16"].read(np.float32).tolist() == [1.0, -2.0]
  assert found["f16"].read(np.float32, 1.0).tolist() == [[0.5, -3.0]]


def test_a_tensor_in_several_pieces_is_the_same(tmp_path, monkeypatch, rng):
  numbers = rng.normal(size=(7, 64)).astype(np.float32)
  packed = gguf.quants.quantize(numbers, KINDS.Q8_0)
  source = written(tmp_path / "a.gguf", {"q": (packed, KINDS.Q8_0)})
  whole = source.tensors["q"].read(np.float32)
  monkeypatch.setattr(module, "CHUNK", 130)  # two rows
  np.testing.assert_array_equal(source.tensors["q"].read(np.float32), whole)
  assert np.abs(whole - numbers).max() < 0.02


@pytest.mark.parametrize("number", [np.nan, np.inf, 3.4e38])
def test_a_number_that_is_not_finite_is_refused(tmp_path, number):
  tensor = np.float32([[1.0, number]])
  source = written(tmp_path / "a.gguf", {"a.weight": tensor})
  with pytest.raises(InputError, match="a.weight holds numbers .* float16"):
    source.tensors["a.weight"].read(np.float16)


def test_metadata_is_read_in_its_own_types(tmp_path):
  given = dict(a__list=[1, 2], a__texts=["ä", ""], a__flag=True, a__n=2.5)
  found = written(
    tmp_path / "a.gguf", {"t": np.ones(2, np.float32)}, **given
  ).metadata
  assert found["a.list"] == [1, 2] and found["a.texts"] == ["ä", ""]
  assert found["a.flag"] is True and found["a.n"] == 2.5
  assert found["tokenizer.ggml.tokens"] == byte_level()["tokens"]


# Damage.


@pytest.fixture
def file(tmp_path):
  write(
    tmp_path / "a.gguf",
    "llama",
    {"n": 1},
    {"tensor": np.ones((4, 32), np.float32)},
  )
  return tmp_path / "a.gguf"


def test_every_truncated_file_is_refused(file):
  content = file.read_bytes()
  for size in range(0, len(content) - 1, 61):
    file.write_bytes(content[:size])
    with pytest.raises(InputError, match="not a whole GGUF|is no GGUF file"):
      read(file)


def patched(file, at, form, value):
  content = bytearray(file.read_bytes())
  struct.pack_into(form, content, at, value)
  file.write_bytes(content)


@pytest.mark.parametrize(
  "at,form,value,match",
  [
    (0, "<4s", b"GGML", "is no GGUF file"),
    (4, ">I", 3, "is big-endian; convert it with gguf_convert_endian"),
    (4, "<I", 1, "is of version 1 of GGUF; want 2 or 3"),
    (4, "<I", 9, "is of version 9 of GGUF"),
    (8, "<Q", 2**62, "not a whole GGUF file .4611686018427387904 tensors"),
    (8, "<Q", 2**16 + 1, "not a whole GGUF file .65537 tensors"),
    (16, "<Q", 2**62, "not a whole GGUF file"),  # keys
    (24, "<Q", 2**62, "not a whole GGUF file"),  # bytes of the first key
  ],
)
def test_a_senseless_header_is_refused_at_once(file, at, form, value, match):
  patched(file, at, form, value)
  with pytest.raises(InputError, match=f"a.gguf.*{match}"):
    read(file)


def place(file, name, after):
  """Where what stands `after` bytes beyond a name begins."""
  return file.read_bytes().index(name) + len(name) + after


@pytest.mark.parametrize(
  "name,after,form,value,match",
  [
    (b"ggml.token_type", 4 + 4, "<Q", 2**60, "array of 1152921504606846976"),
    (b"ggml.token_type", 4 + 4, "<Q", 2**22, "array of 4194304 values"),
    (b"ggml.token_type", 4 + 4, "<Q", 2**20, "ends at byte"),
    (b"ggml.token_type", 4, "<I", 9, "an array of arrays"),
    (b"ggml.token_type", 4, "<I", 77, "77.? is not a valid"),
    (b"ggml.tokens", 4 + 4 + 8, "<Q", 2**61, "ends at byte"),
    (b"llama.n", 0, "<I", 99, "99.? is not a valid"),
    (b"tensor", 0, "<I", 2**30, "a tensor of 1073741824 axes"),
    (b"tensor", 0, "<I", 5, "a tensor of 5 axes"),
    (b"tensor", 4, "<Q", 2**63, "not a whole"),
    (b"tensor", 4, "<Q", 0, "tensor of shape"),
    (b"tensor", 20, "<I", 31, "tensor is of kind 31, which .* take a file of"),
    (b"tensor", 24, "<Q", 64, "ends at byte .*, and goes on to"),  # offset
    (b"tensor", 24, "<Q", 2**50, "ends at byte .*, before tensor"),
    (b"tensor", 24, "<Q", 2**64 - 64, "ends at byte .*, before tensor"),
  ],
)
def test_what_leaves_the_file_is_refused(file, name, after, form, value, match):
  patched(file, place(file, name, after), form, value)
  with pytest.raises(InputError, match=match):
    read(file)


def test_a_key_that_stands_there_twice_is_refused(file):
  content = file.read_bytes()
  key = struct.pack("<Q", 7) + b"llama.n" + struct.pack("<II", 4, 1)
  at = content.index(key)
  twice = content[:at] + key + content[at:]
  twice = twice[:16] + struct.pack("<Q", twice[16] + 1) + twice[24:]
  file.write_bytes(twice)
  with pytest.raises(InputError, match="Duplicate llama.n"):
    read(file)


def test_tensors_that_share_bytes_are_refused(tmp_path):
  ones = np.ones(16, np.float32)
  write(tmp_path / "a.gguf", "llama", {}, {"one": ones, "other": ones})
  offset = place(tmp_path / "a.gguf", b"other", 4 + 8 + 4)
  patched(tmp_path / "a.gguf", offset, "<Q", 60)
  with pytest.raises(InputError, match="one and other overlap"):
    read(tmp_path / "a.gguf")


def test_a_file_that_shrinks_while_it_is_read_is_refused(file):
  tensor = read(file).tensors["tensor"]
  file.write_bytes(file.read_bytes()[:-1])
  with pytest.raises(InputError, match="a.gguf: became shorter while it was"):
    tensor.read(np.float32)


def test_a_scale_that_is_not_finite_is_refused_without_a_warning(tmp_path):
  block = np.frombuffer(half(np.inf) + bytes(32), np.uint8)[None]
  source = written(tmp_path / "a.gguf", {"a.weight": (block, KINDS.Q8_0)})
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    with pytest.raises(InputError, match="a.weight holds numbers that are not"):
      source.tensors["a.weight"].read(np.float32)


def test_a_text_that_is_no_utf_8_is_refused(file):
  content = file.read_bytes()
  file.write_bytes(content.replace("Ġthe".encode(), b"\xff\xfethe"))
  with pytest.raises(InputError, match="can't decode byte 0xff"):
    read(file)


def test_a_kind_that_nobody_dequantises_is_refused(tmp_path):
  with pytest.raises(InputError, match="t is of kind I32, which the pack"):
    written(tmp_path / "a.gguf", {"t": np.ones(4, np.int32)})


def test_a_folder_and_a_missing_file_are_errors_of_the_system(tmp_path):
  with pytest.raises(IsADirectoryError):
    read(tmp_path)
  with pytest.raises(FileNotFoundError):
    read(tmp_path / "none.gguf")


# Parts.


@pytest.fixture
def parts(tmp_path):
  """The files of one model in three parts, the metadata in the first."""
  files = []
  for number in range(3):
    file = tmp_path / f"m-{number + 1:05}-of-00003.gguf"
    write(
      file,
      "llama",
      {"n": 5} if number == 0 else {},
      {f"t{number}": np.full(4, number, np.float32)},
      split__no=number,
      split__count=3,
      split__tensors__count=3,
    )
    files.append(file)
  return files


@pytest.mark.parametrize("number", range(3))
def test_any_part_of_a_split_file_names_them_all(parts, number):
  source = read(parts[number])
  assert source.paths == parts and source.metadata["llama.n"] == 5
  assert [source.tensors[f"t{i}"].read(np.float32)[0] for i in range(3)] == [
    *(0, 1, 2)
  ]


def test_a_part_that_is_missing_renamed_or_another_is_refused(parts):
  shutil.copy(parts[0], parts[2])
  with pytest.raises(InputError, match="00003-of-00003.gguf: is not part 3 of"):
    read(parts[1])
  parts[2].unlink()
  with pytest.raises(InputError, match="00003-of-00003.gguf: no such file"):
    read(parts[0])
  parts[0].rename(parts[0].with_name("first.gguf"))
  with pytest.raises(InputError, match="is one of 3 parts; name them NAME-0"):
    read(parts[0].with_name("first.gguf"))


@pytest.mark.parametrize("count", [[1, 2], "3", 2.5, True])
def test_a_count_of_parts_that_is_no_integer_is_refused(tmp_path, count):
  with pytest.raises(InputError, match="a.gguf: split.count=.*; want an integ"):
    written(tmp_path / "a.gguf", {}, split__count=count)


def test_parts_that_do_not_hold_all_tensors_are_refused(parts):
  write(
    parts[2],
    "llama",
    {},
    {"t0": np.ones(4, np.float32)},
    split__no=2,
    split__count=3,
    split__tensors__count=3,
  )
  with pytest.raises(InputError, match="00003.*t0 stands in .*00001"):
    read(parts[0])
