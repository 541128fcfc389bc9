# SPDX-License-Identifier: Apache-2.0
"""Files that are none, unpack to too much, or say one thing twice."""

import datetime
import decimal
import gzip
import json
import os
import socket

import pyarrow
import pyarrow.parquet
import pytest

from mrpo_jax.data import formats
from mrpo_jax.data.formats import PreferencePair
from mrpo_jax.data.reading import row_files
from mrpo_jax.errors import InputError

PLAIN = {"prompt": "Sky?", "chosen": " Blue.", "rejected": " Green."}
PAIR = PreferencePair("Sky?", " Blue.", " Green.")
MOMENT = pyarrow.array([1], pyarrow.timestamp("ns", "Nowhere/Land"))


def parquet(path, columns):
  pyarrow.parquet.write_table(pyarrow.table(columns), path)
  return path


def columns(**more):
  return {key: [value] for key, value in (PLAIN | more).items()}


def refusal(path):
  with pytest.raises(InputError) as found:
    list(formats.read(path))
  assert "\n" not in str(found.value)
  return str(found.value)


# What is no file.


@pytest.mark.parametrize("name", ["a.jsonl", "a.json.gz", "a.parquet"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, name):
  os.mkfifo(tmp_path / name)
  assert "is a pipe, a socket or a device" in refusal(tmp_path / name)


def test_a_device_and_a_socket_are_refused(tmp_path, monkeypatch):
  (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
  assert "zero.jsonl: is a pipe, a" in refusal(tmp_path / "zero.jsonl")
  monkeypatch.chdir(tmp_path)  # names of sockets are short
  with socket.socket(socket.AF_UNIX) as server:
    server.bind("s.jsonl")
    assert "s.jsonl: is a pipe, a socket" in refusal("s.jsonl")


def test_a_link_to_a_file_is_a_file(tmp_path):
  (tmp_path / "data").write_text(json.dumps(PLAIN))
  (tmp_path / "a.jsonl").symlink_to(tmp_path / "data")
  assert list(formats.read(tmp_path / "a.jsonl")) == [PAIR]


def test_a_name_that_no_disk_takes_is_refused(tmp_path):
  assert "cannot be read: File name too long" in refusal(
    tmp_path / ("a" * 300 + ".jsonl")
  )


# What unpacks to too much.


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz"])
@pytest.mark.parametrize("unit", [b" ", b"\n", json.dumps(PLAIN).encode()])
def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(
  tmp_path, monkeypatch, name, unit
):
  monkeypatch.setattr(row_files, "LONGEST", 2**20)
  unit += b"\n" if unit.startswith(b"{") else b""
  bomb = gzip.compress(unit * (2**24 // len(unit)))
  (tmp_path / name).write_bytes(bomb)
  text = refusal(tmp_path / name)
  assert "unpacks to more than" in text or "line 1: more than" in text


def test_a_line_has_an_end(tmp_path, monkeypatch):
  monkeypatch.setattr(row_files, "LONGEST", 1000)
  (tmp_path / "a.jsonl").write_text(json.dumps(PLAIN) + "\n" + "[" * 2000)
  assert "a.jsonl line 2: more than 1000 bytes" in refusal(tmp_path / "a.jsonl")


def test_what_packs_well_but_is_small_is_read(tmp_path):
  rows = (json.dumps(PLAIN) + "\n") * 5000
  (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
  assert list(formats.read(tmp_path / "a.jsonl.gz")) == [PAIR] * 5000


def test_a_parquet_bomb_is_refused_by_what_it_says_of_itself(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(row_files, "LONGEST", 2**20)
  path = tmp_path / "a.parquet"
  table = pyarrow.table(columns(chosen="a" * 2**24))
  pyarrow.parquet.write_table(table, path, compression="zstd")
  assert "unpacks to more than" in refusal(path)


# One thing said twice.


@pytest.mark.parametrize(
  "row, key",
  [
    (
      '{"prompt": "p", "chosen": "c", "rejected": "r", "chosen": "x"}',
      "chosen",
    ),
    (
      '{"prompt": [{"role": "user", "content": "p", "content": "q"}], '
      '"chosen": "c", "rejected": "r"}',
      "content",
    ),
  ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_key_that_stands_twice_is_refused(tmp_path, name, row, key):
  (tmp_path / name).write_text(row)
  assert (
    f"line 1: is not usable JSON (the key '{key}' stands there twice)"
    in refusal(tmp_path / name)
  )


def test_a_parquet_column_that_stands_twice_is_refused(tmp_path):
  names = ["prompt", "chosen", "rejected", "chosen"]
  arrays = [pyarrow.array([name]) for name in names]
  path = tmp_path / "a.parquet"
  pyarrow.parquet.write_table(pyarrow.Table.from_arrays(arrays, names), path)
  assert "the column 'chosen' is twice" in refusal(path)


def test_a_field_of_a_parquet_column_that_stands_twice_is_refused(tmp_path):
  text = pyarrow.field("content", pyarrow.string())
  turn = pyarrow.StructArray.from_arrays(
    [pyarrow.array(["a"]), pyarrow.array(["b"])], fields=[text, text]
  )
  turns = pyarrow.ListArray.from_arrays([0, 1], turn)
  path = parquet(tmp_path / "a.parquet", columns() | {"chosen": turns})
  assert "the column 'chosen.content' is twice" in refusal(path)


# Columns of odd types.


@pytest.mark.parametrize(
  "odd",
  [
    MOMENT,
    pyarrow.array([b"\xff"]).view(pyarrow.string()),
    pyarrow.array([[1]], pyarrow.list_(pyarrow.int64(), 1)),
    pyarrow.array([None]),
    pyarrow.array([datetime.timedelta(days=9)], pyarrow.duration("ns")),
    pyarrow.array([{"at": 1}], pyarrow.struct({"at": MOMENT.type})),
  ],
)
def test_a_parquet_column_that_means_nothing_is_not_read(tmp_path, odd):
  path = parquet(tmp_path / "a.parquet", columns() | {"odd": odd})
  assert list(formats.read(path)) == [PAIR]


def test_an_odd_field_of_a_turn_is_not_read(tmp_path):
  fields = {"role": pyarrow.string(), "content": pyarrow.string()}
  kind = pyarrow.list_(pyarrow.struct(fields | {"at": MOMENT.type}))
  turns = {
    key: pyarrow.array([[{"role": role, "content": PLAIN[key], "at": 1}]], kind)
    for key, role in zip(PLAIN, ("user", *["assistant"] * 2), strict=True)
  }
  (pair,) = formats.read(parquet(tmp_path / "a.parquet", turns))
  assert pair.prompt == [{"role": "user", "content": "Sky?"}]
  assert pair.chosen == [{"role": "assistant", "content": " Blue."}]


def test_a_file_without_a_column_that_means_anything_names_its_columns(
  tmp_path,
):
  path = parquet(tmp_path / "a.parquet", {"n": [1], "at": MOMENT})
  assert "row 1: a key is missing; the row's keys are 'n', 'at'" in refusal(
    path
  )


# Values that JSON lacks.


def called(arguments, kind=None):
  """A column of one answer with a tool call of these arguments."""
  call = {"function": {"name": "pay", "arguments": arguments}}
  turn = {"role": "assistant", "content": "Paid.", "tool_calls": [call]}
  if kind is None:
    return pyarrow.array([[turn]])
  function = pyarrow.struct({"name": pyarrow.string(), "arguments": kind})
  calls = pyarrow.list_(pyarrow.struct({"function": function}))
  fields = {"role": pyarrow.string(), "content": pyarrow.string()}
  turns = pyarrow.list_(pyarrow.struct(fields | {"tool_calls": calls}))
  return pyarrow.array([[turn]], turns)


def chats(chosen):
  asked, other = (
    [{"role": role, "content": text}]
    for role, text in (("user", "Pay."), ("assistant", "No."))
  )
  return {"prompt": [asked], "chosen": chosen, "rejected": [other]}


def arguments_of(path):
  (pair,) = formats.read(path)
  return pair.chosen[0]["tool_calls"][0]["function"]["arguments"]


def test_arguments_in_parquet_are_what_json_would_hold(tmp_path):
  given = {
    "to": "bob",
    "amount": decimal.Decimal("10.50"),
    "times": decimal.Decimal("3"),
    "when": datetime.datetime(2026, 1, 2, 3, 4, 5),
    "day": datetime.date(2026, 1, 2),
    "at": datetime.time(3, 4),
  }
  path = parquet(tmp_path / "a.parquet", chats(called(given)))
  found = arguments_of(path)
  assert found == {
    "to": "bob",
    "amount": 10.5,
    "times": 3,
    "when": "2026-01-02T03:04:05",
    "day": "2026-01-02",
    "at": "03:04:00",
  }
  assert isinstance(found["times"], int)


def test_a_map_in_parquet_is_an_object(tmp_path):
  kind = pyarrow.map_(pyarrow.string(), pyarrow.string())
  path = tmp_path / "a.parquet"
  parquet(path, chats(called([("a", "1")], kind)))
  assert arguments_of(path) == {"a": "1"}
  parquet(path, chats(called([("a", "1"), ("a", "2")], kind)))
  assert "after row 0: a column cannot be read" in refusal(path)


def test_bytes_of_an_argument_are_refused_by_name(tmp_path):
  path = parquet(tmp_path / "a.parquet", chats(called({"raw": b"x", "n": 1})))
  assert "chosen[0].tool_calls holds what JSON cannot" in refusal(path)


@pytest.mark.parametrize(
  "kind", [pyarrow.decimal128(5, 2), pyarrow.decimal256(60, 0)]
)
def test_decimals_are_scores(tmp_path, kind):
  scores = pyarrow.array([[decimal.Decimal(1), decimal.Decimal(2)]]).cast(
    pyarrow.list_(kind)
  )
  assert_scored(tmp_path / "a.parquet", scores)


def test_halves_are_scores(tmp_path):
  kind = pyarrow.list_(pyarrow.float16())
  scores = pyarrow.array([[1.0, 1.5]], pyarrow.list_(pyarrow.float32()))
  assert_scored(tmp_path / "a.parquet", scores.cast(kind))


def assert_scored(path, scores):
  given = {"prompt": ["Sky?"], "responses": [["Red.", "Blue."]]}
  (pair,) = formats.read(parquet(path, given | {"scores": scores}))
  assert (pair.chosen, pair.rejected) == ("Blue.", "Red.")


def test_a_prompt_of_binary_data_is_called_so(tmp_path):
  given = columns() | {"prompt": pyarrow.array([b"q w"])}
  path = parquet(tmp_path / "a.parquet", given)
  assert "prompt is binary data, want a string" in refusal(path)


# Depth.


def nested(depth):
  value = []
  for _ in range(depth - 1):
    value = [value]
  return value


@pytest.mark.parametrize("depth, refused", [(90, False), (700, True)])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize(
  "beside",
  [
    lambda deep: {"tools": [{"a": deep}]},
    lambda deep: {"tools": json.dumps([{"a": deep}])},
    lambda deep: {"more": {"a": deep}},
  ],
)
def test_a_row_that_is_nested_deep_is_refused(
  tmp_path, depth, refused, name, beside
):
  asked = {"prompt": [{"role": "user", "content": "Hi"}]}
  sides = {
    key: [{"role": "assistant", "content": key}]
    for key in ("chosen", "rejected")
  }
  row = asked | sides | beside(nested(depth))
  path = tmp_path / name
  path.write_text(json.dumps([row] if name == "a.json" else row))
  if not refused:
    (pair,) = formats.read(path)
    assert pair.rejected == sides["rejected"]
    return
  place = "row 1" if name == "a.json" else "line 1"
  assert refusal(path) == (
    f"{path} {place}: more than 100 lists and objects stand in one another; "
    "leave the row out"
  )


@pytest.mark.parametrize(
  "column", ["[" * 100_000, json.dumps([{"a": nested(900)}])]
)
def test_tools_in_parquet_that_are_nested_deep_are_refused(tmp_path, column):
  path = parquet(tmp_path / "a.parquet", columns() | {"tools": [column]})
  assert "row 1: more than 100 lists and objects" in refusal(path)


def test_arguments_that_are_nested_deep_are_refused(tmp_path):
  given = {"a": nested(900)}
  call = {"function": {"name": "f", "arguments": given}}
  text = {"function": {"name": "f", "arguments": json.dumps(given)}}
  for calls in ([call], json.dumps([call]), [text], json.dumps([text])):
    turn = {"role": "assistant", "content": "a", "tool_calls": calls}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(PLAIN | {"prompt": [turn]}))
    assert "line 1: more than 100 lists and objects" in refusal(path)


def test_brackets_in_a_text_are_no_depth(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text(json.dumps(PLAIN | {"prompt": "[" * 500}))
  (pair,) = formats.read(path)
  assert pair.prompt == "[" * 500
