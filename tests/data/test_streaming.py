# SPDX-License-Identifier: Apache-2.0
"""Rows reached by their place: the same, in an order that needs no replay."""

import gzip
import itertools
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from mrpo_jax import configs
from mrpo_jax.data import source
from mrpo_jax.data.reading.weights import WeightColumn
from mrpo_jax.data.streaming import pair_stream, row_blocks
from mrpo_jax.data.streaming.order import Order, permutation
from mrpo_jax.data.streaming.pair_stream import (
  START,
  Ahead,
  Encoder,
  PairStream,
  Position,
)
from mrpo_jax.data.tokenizer import load_tokenizer
from mrpo_jax.errors import InputError

LIMITS = dict(max_prompt=64, max_response=64)


def order(counts=(3, 1, 4, 2, 5), seed=0, buffer=6):
  return Order(np.array(counts), seed, buffer)


def taken(order, start, count):
  """(block, row) of so many rows from a position on."""
  found = (
    (int(window.blocks[block]), int(row))
    for window in order.windows(start)
    for n, (block, row) in enumerate(window.rows_N2, window.start)
    if n >= start
  )
  return [*itertools.islice(found, count)]


# Order.


def test_an_epoch_has_each_row_once_and_the_next_another_order():
  want = [(b, r) for b, n in enumerate((3, 1, 4, 2, 5)) for r in range(n)]
  rows = taken(order(), 0, 45)
  epochs = [rows[n : n + 15] for n in (0, 15, 30)]
  for epoch in epochs:
    assert sorted(epoch) == want
  assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


@pytest.mark.parametrize("start", [0, 1, 5, 6, 7, 14, 15, 16, 29, 31])
def test_any_position_is_reached_without_the_rows_before(start):
  assert taken(order(), start, 20) == taken(order(), 0, start + 20)[start:]


def test_a_window_ends_with_the_block_that_fills_the_buffer():
  one = order((4,) * 10, buffer=7)
  windows = [*itertools.islice(one.windows(), 6)]
  assert [len(window.rows_N2) for window in windows] == [8] * 5 + [8]
  assert [window.start for window in windows] == [0, 8, 16, 24, 32, 40]
  whole = next(order(buffer=10**6).windows())
  assert len(whole.rows_N2) == 15


def test_rows_of_a_window_are_mixed_over_its_blocks():
  window = next(order((100,) * 50, buffer=2000).windows())
  first = window.rows_N2[:200, 0]
  assert len(set(first.tolist())) == 20  # of twenty blocks, all
  assert len(np.unique(window.rows_N2, axis=0)) == 2000


def test_the_seed_decides_the_order():
  assert taken(order(seed=1), 0, 15) != taken(order(), 0, 15)
  assert taken(order(seed=1), 0, 15) == taken(order(seed=1), 0, 15)


def test_the_order_of_a_version_is_that_of_the_next():
  # Written down when it was first made; a run that resumes relies on it.
  assert permutation(10, 0, 1).tolist() == [1, 2, 4, 5, 9, 7, 8, 6, 0, 3]
  assert sorted(permutation(1000, 7, 0, 3).tolist()) == [*range(1000)]
  assert permutation(1, 0, 0).tolist() == [0]
  found = [*itertools.islice(order().windows(), 3)]
  assert [window.start for window in found] == [0, 6, 15]
  assert [window.blocks.tolist() for window in found] == [
    *([2, 3], [1, 0, 4], [1, 2, 4])
  ]
  rows = [window.rows_N2.tolist() for window in found[:2]]
  assert rows[0] == [[1, 1], [0, 3], [0, 1], [0, 0], [1, 0], [0, 2]]
  assert rows[1][:5] == [[1, 2], [0, 0], [2, 2], [1, 1], [2, 3]]


# Sources.


def rows_of(count=700):
  rows = []
  with gzip.open(configs.HH_HARMLESS / "eval.jsonl.gz") as file:
    for line in itertools.islice(file, 50):
      rows.append(json.loads(line))
  return [
    {**rows[n % 50], "number": n, "chosen": f"{rows[n % 50]['chosen']} {n}"}
    for n in range(count)
  ]


def write_lines(path, rows, blank=False):
  lines = [json.dumps(row) for row in rows]
  if blank:  # blank lines, of several kinds, are no rows
    lines[0:0] = [""]
    for place in range(5, len(lines), 97):
      lines[place:place] = ["", "  \t ", "\r"]
  path.write_text("\n".join(lines) + ("\n\n" if blank else ""))


def write_parquet(path, rows, group):
  table = pyarrow.Table.from_pylist(rows)
  pyarrow.parquet.write_table(table, path, row_group_size=group)


def all_pairs(sources):
  """(place in words, pair) of every row, block by block."""
  for one in sources:
    for block, count in enumerate(one.counts):
      stored = one.read(block)
      for row in range(count):
        where, pairs = one.pairs(stored[row])
        yield from ((where, pair) for pair in pairs)


@pytest.mark.parametrize("kind", ["jsonl", "blank", "parquet", "large", "tfds"])
def test_every_source_gives_what_the_reader_in_memory_gives(
  tmp_path, kind, monkeypatch
):
  monkeypatch.setattr(row_blocks, "PIECE", 10_000)
  monkeypatch.setattr(row_blocks, "PART", 32)
  monkeypatch.setattr(row_blocks, "PARTS", 6)
  rows = rows_of()
  if kind in ("jsonl", "blank", "tfds"):
    name = tmp_path / "a.jsonl"
    write_lines(name, rows, kind == "blank")
  else:
    name = tmp_path / "a.parquet"
    write_parquet(name, rows, 64 if kind == "parquet" else 500)
  if kind == "tfds":
    name = source.prepare(name, tmp_path / "to")
  want = source.load(name)
  sources = row_blocks.opened(name)
  found = [*all_pairs(sources)]
  assert len(want) == 700
  assert [pair for _, pair in found] == want
  assert sum(one.counts.sum() for one in sources) == 700
  assert max(one.counts.max() for one in sources) <= row_blocks.BLOCK
  assert len(sources[0].counts) > 2


def test_several_files_and_globs_are_one_sequence(tmp_path):
  rows = rows_of(30)
  write_lines(tmp_path / "b-0.jsonl", rows[:10])
  write_lines(tmp_path / "b-1.jsonl", rows[10:20])
  write_parquet(tmp_path / "c.parquet", rows[20:], 4)
  name = f"{tmp_path}/b-*.jsonl,{tmp_path}/c.parquet"
  found = [pair for _, pair in all_pairs(row_blocks.opened(name))]
  assert found == source.load(name)


def test_places_are_those_of_the_reader_in_memory(tmp_path):
  path = tmp_path / "a.jsonl"
  write_lines(path, rows_of(400), blank=True)
  lines = path.read_text().split("\n")
  for where, pair in all_pairs(row_blocks.opened(path)):
    number = int(where.removeprefix(f"{path} line "))
    assert pair.chosen.endswith(str(json.loads(lines[number - 1])["number"]))
  parquet = tmp_path / "a.parquet"
  write_parquet(parquet, rows_of(20), 8)
  places = [where for where, _ in all_pairs(row_blocks.opened(parquet))]
  assert places == [f"{parquet} row {n}" for n in range(1, 21)]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_weights_of_references_are_read_beside_the_pairs(tmp_path, kind):
  rows = [{**row, "trust": [1.0, 3.0]} for row in rows_of(5)]
  path = tmp_path / f"a.{kind}"
  (write_lines if kind == "jsonl" else write_parquet)(
    path, rows, *([2] if kind == "parquet" else [])
  )
  column = WeightColumn("trust", ("a", "b"))
  (one,) = row_blocks.opened(path, column)
  _, (pair,) = one.pairs(one.read(0)[1])
  assert pair.reference_weights == (0.25, 0.75)


@pytest.mark.parametrize(
  "name, match",
  [
    ("a.jsonl.gz", "can be reached by their place; write it as one"),
    ("a.json", "can be reached by their place; write it as one"),
    ("missing.jsonl", "no such file"),
    ("org/name", "found no such file and no such directory prepared"),
    ("gs://bucket/a.jsonl", "reads files of a disk; copy it to one"),
    ("empty.jsonl", "has no rows; give at least one pair"),
    ("blank.jsonl", "has no rows; give at least one pair"),
    ("empty.parquet", "has no rows; give at least one pair"),
    ("bad.parquet", "damaged Parquet file"),
  ],
)
def test_what_cannot_be_read_by_place_is_refused(tmp_path, name, match):
  for there in ("a.jsonl.gz", "a.json", "bad.parquet"):
    (tmp_path / there).write_text("[]")
  (tmp_path / "empty.jsonl").write_text("")
  (tmp_path / "blank.jsonl").write_text("\n \n")
  schema = pyarrow.schema([("prompt", pyarrow.string())])
  pyarrow.parquet.write_table(schema.empty_table(), tmp_path / "empty.parquet")
  given = name if "/" in name else tmp_path / name
  with pytest.raises(InputError, match=match):
    row_blocks.opened(given)


def test_a_line_that_is_too_long_is_refused_when_its_file_is_opened(
  tmp_path, monkeypatch
):
  monkeypatch.setattr("mrpo_jax.data.reading.row_files.LONGEST", 500)
  path = tmp_path / "a.jsonl"
  path.write_text(json.dumps({"a": 1}) + "\n" + "x" * 600 + "\n")
  with pytest.raises(InputError, match="a.jsonl line 2: more than 500 bytes"):
    row_blocks.opened(path)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
  path = tmp_path / "a.jsonl"
  write_lines(path, rows_of(300))
  (one,) = row_blocks.opened(path)
  write_lines(path, rows_of(200))
  with pytest.raises(InputError, match="has changed since the run started"):
    one.read(1)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_mark_is_of_what_the_files_hold(tmp_path, kind):
  def mark(name, rows):
    path = tmp_path / name
    (write_lines if kind == "jsonl" else write_parquet)(
      path, rows, *([8] if kind == "parquet" else [])
    )
    (one,) = row_blocks.opened(path)
    return one.mark

  rows = rows_of(20)
  first = mark(f"a.{kind}", rows)
  assert first == mark(f"b.{kind}", rows)
  rows[7]["chosen"] = rows[7]["chosen"].swapcase()  # of the same length
  assert first != mark(f"a.{kind}", rows)


def test_the_mark_of_a_large_file_is_of_its_ends_and_samples(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(row_blocks, "EDGE", 100)
  monkeypatch.setattr(row_blocks, "SAMPLES", 10)
  monkeypatch.setattr(row_blocks, "SAMPLE", 20)
  path = tmp_path / "a"

  def mark(changed=None):
    text = bytearray(10_000)
    if changed is not None:
      text[changed] = 1
    path.write_bytes(text)
    return row_blocks.files_mark([path])

  same = mark()
  for seen in (0, 99, 9_901, 9_999, 2_000, 2_019, 5_010):
    assert mark(seen) != same, seen
  assert mark(2_020) == same  # which no sample covers
  assert row_blocks.files_mark([path], b"index") != same


# Streams.


@pytest.fixture(scope="module")
def tokenizer():
  return load_tokenizer(configs.TOKENIZERS / "unigram-512")


def stream_of(path, buffer=50):
  sources = row_blocks.opened(path)
  return PairStream(str(path), sources, seed=3, buffer=buffer)


def encoder_of(tokenizer, **more):
  given = dict(row_length=256, limits=LIMITS) | more
  return Encoder([tokenizer], **given)


def batches(path, tokenizer, count, position=START, size=8, **more):
  """[([chosen texts], Position)] of so many batches."""
  found = stream_of(path).batches(encoder_of(tokenizer, **more), size, position)
  return [
    ([item.pair.chosen for item in items], after)
    for items, after in itertools.islice(found, count)
  ]


def test_an_epoch_of_batches_has_every_pair_once(tmp_path, tokenizer):
  path = tmp_path / "a.jsonl"
  write_lines(path, rows_of(320))
  found = batches(path, tokenizer, 80)
  epochs = [
    [text for texts, _ in found[n : n + 40] for text in texts] for n in (0, 40)
  ]
  want = sorted(pair.chosen for pair in source.load(path))
  assert sorted(epochs[0]) == sorted(epochs[1]) == want
  assert epochs[0] != epochs[1]
  assert found[39][1].rows == 320 and found[79][1].rows == 640


def mixed_rows():
  """Rows with pairs to drop, rankings of several pairs, and ties."""
  rows = rows_of(60)
  for n in range(0, 60, 5):
    rows[n]["rejected"] = rows[n]["chosen"]
  for n in range(1, 60, 7):
    rows[n] = dict(
      prompt=f"Say {n}.",
      responses=[f"one {n}", f"two {n}", f"three {n}"],
      scores=[1, 2, 3],
    )
  for n in range(3, 60, 11):
    rows[n] = dict(prompt=f"Say {n}.", responses=["a", "b"], scores=[1, 1])
  return rows


def test_any_position_is_resumed_exactly(tmp_path, tokenizer, monkeypatch):
  monkeypatch.setattr(pair_stream, "ROWS", 16)
  path = tmp_path / "a.jsonl"
  write_lines(path, mixed_rows())
  whole = batches(path, tokenizer, 40, size=5)
  inside = 0
  for n, (_, after) in enumerate(whole[:-3]):
    inside += after.pairs > 0
    given = json.loads(json.dumps(after.to_json()))
    found = batches(path, tokenizer, 3, Position.of_json(given), size=5)
    assert found == whole[n + 1 : n + 4]
  assert inside > 3  # batches that end within the pairs of a row


def test_what_is_left_out_is_counted_and_batches_stay_full(tmp_path, tokenizer):
  path = tmp_path / "a.jsonl"
  rows = rows_of(60)
  for n in range(0, 60, 5):
    rows[n]["rejected"] = rows[n]["chosen"]
  for n in range(1, 60, 6):
    rows[n]["chosen"] = ""
  write_lines(path, rows)
  equal = sum(row["chosen"] == row["rejected"] for row in rows)
  empty = sum(not row["chosen"] for row in rows)
  kept = 60 - equal - empty
  found = batches(path, tokenizer, 2 * kept, size=1)
  last = found[-1][1]
  assert all(len(texts) == 1 for texts, _ in found)
  # What follows the last pair of the second epoch is not reached yet.
  again = batches(path, tokenizer, 1, last, size=1)[0][1]
  assert last.rows <= 120 < again.rows
  assert sum(last.dropped.values()) == last.rows - 2 * kept
  assert {*last.dropped} == {"equal responses", "empty response"}
  assert 0 < last.truncated < 2 * kept


def test_rows_that_prefer_no_response_are_counted(tmp_path, tokenizer):
  path = tmp_path / "a.jsonl"
  rows = mixed_rows()
  write_lines(path, rows)
  order = taken(stream_of(path).order, 0, 240)
  for _, last in batches(path, tokenizer, 40, size=5):
    reached = [rows[row] for _, row in order[: last.rows]]
    ties = sum(row.get("scores") == [1, 1] for row in reached)
    assert last.without == ties
  assert ties > 6


@pytest.mark.parametrize("count, more", [(200, 72), (256, 0), (2560, 72)])
def test_a_run_begins_where_some_rows_cannot_be_used(
  tmp_path, tokenizer, count, more
):
  from mrpo_jax.runs.data import Tokenizers
  from mrpo_jax.runs.streaming import _sampled

  path = tmp_path / "a.jsonl"
  tie = dict(prompt="Say it.", responses=["a", "b"], scores=[1, 1])
  same = dict(prompt="Say it.", chosen="a", rejected="a")
  tokenizers = Tokenizers([tokenizer], {"policy": 0}, {}, {})
  for useless, why in ((tie, "no row of a few prefers"), (same, "equal resp")):
    write_lines(path, [useless] * (count - more) + rows_of(more))
    given = stream_of(path), encoder_of(tokenizer), tokenizers, "a.jsonl"
    if more:
      assert 0 < len(_sampled(*given).views[0]) <= more
    else:
      with pytest.raises(InputError, match=f"a.jsonl.*: .*{why}"):
        _sampled(*given)


def test_what_is_odd_is_counted_where_a_run_begins(tmp_path, tokenizer, caplog):
  from mrpo_jax.runs.data import Tokenizers
  from mrpo_jax.runs.streaming import _sampled

  caplog.set_level("INFO")
  path = tmp_path / "a.jsonl"
  tied = dict(score_chosen=3, score_rejected=3)
  first, second, *others = rows_of(9)
  write_lines(path, [first | tied, second | tied, *others])
  tokenizers = Tokenizers([tokenizer], {"policy": 0}, {}, {})
  _sampled(stream_of(path), encoder_of(tokenizer), tokenizers, "a.jsonl")
  assert (
    "a.jsonl, of a few: 2 of 9 pairs give the chosen and the rejected"
    in caplog.text
  )


def test_encodings_are_those_of_the_table_in_memory(tmp_path, tokenizer):
  from mrpo_jax.data.table import encode_table

  path = tmp_path / "a.jsonl"
  write_lines(path, rows_of(40))

  class Tokenizers:
    views = [tokenizer]

    def users(self, index):
      return ["policy"]

  pairs = source.load(path)
  table = encode_table(
    "train", pairs, Tokenizers(), origin="a", row_length=256, **LIMITS
  )
  want = {
    pairs[i].chosen: e
    for i, e in zip(table.places, table.views[0], strict=True)
  }
  items, _ = next(stream_of(path).batches(encoder_of(tokenizer), len(want)))
  for item in items:
    assert item.encoded == (want[item.pair.chosen],)


def test_a_malformed_row_is_refused_when_it_is_reached(tmp_path, tokenizer):
  path = tmp_path / "a.jsonl"
  rows = rows_of(300)
  write_lines(path, rows)
  lines = path.read_text().split("\n")
  lines[211] = "{"
  path.write_text("\n".join(lines))
  stream = stream_of(path)
  reached = taken(stream.order, 0, 300).index((0, 211))
  before = reached // 4
  found = stream.batches(encoder_of(tokenizer), 4)
  assert len([*itertools.islice(found, before)]) == before > 0
  with pytest.raises(InputError, match=r"a\.jsonl line 212: is not JSON"):
    next(found)


@pytest.mark.parametrize(
  "row, more, match",
  [
    (dict(prompt="a", completion="b"), {}, "line 1: has no rejected response"),
    (
      dict(prompt="a", completion="b", label=True),
      {},
      "line 1: has one response with a label",
    ),
    (None, dict(labelled=True), "line 1: has no label, true or false"),
  ],
)
def test_rows_of_another_kind_are_refused_with_their_place(
  tmp_path, tokenizer, row, more, match
):
  path = tmp_path / "a.jsonl"
  write_lines(path, [row or rows_of(1)[0]])
  found = stream_of(path).batches(encoder_of(tokenizer, **more), 1)
  with pytest.raises(InputError, match=match):
    next(found)


@pytest.mark.parametrize(
  "row, match",
  [
    (dict(prompt="a", chosen="b", rejected="b"), "is left: . equal responses"),
    (dict(prompt="a", responses=["b", "c"], scores=[1, 1]), "no row prefers"),
  ],
)
def test_data_of_which_nothing_is_left_ends(
  tmp_path, tokenizer, row, match, monkeypatch
):
  monkeypatch.setattr(pair_stream, "ROWS", 4)
  path = tmp_path / "a.jsonl"
  write_lines(path, [row] * 3)
  with pytest.raises(InputError, match=match):
    next(stream_of(path).batches(encoder_of(tokenizer), 1))


def test_supervised_rows_have_one_response(tmp_path, tokenizer):
  path = tmp_path / "a.jsonl"
  write_lines(path, [dict(prompt="Say it.", completion="It is said.")])
  encoder = encoder_of(tokenizer, chosen_only=True)
  items, _ = next(stream_of(path).batches(encoder, 1))
  assert items[0].encoded[0].chosen_ids and not items[0].encoded[0].rejected_ids


def test_plain_dialogues_become_turns(tmp_path, tokenizer):
  path = tmp_path / "a.jsonl"
  said = "\n\nHuman: Hi?\n\nAssistant:"
  write_lines(path, [dict(chosen=f"{said} Yes.", rejected=f"{said} No.")])
  encoder = encoder_of(tokenizer, conversations="hh")
  items, _ = next(stream_of(path).batches(encoder, 1))
  assert items[0].pair.prompt == [{"role": "user", "content": "Hi?"}]


def test_what_a_model_cannot_read_is_refused_with_its_place(
  tmp_path, tokenizer
):
  def check(where, encoded):
    raise InputError(f"{where}: {len(encoded)}")

  path = tmp_path / "a.jsonl"
  write_lines(path, rows_of(1))
  with pytest.raises(InputError, match="line 1: 1"):
    next(stream_of(path).batches(encoder_of(tokenizer, check=check), 1))


# Ahead.


def test_items_come_in_order_and_failures_when_they_are_reached():
  def numbers():
    yield from range(5)
    raise InputError("the sixth")

  ahead = Ahead(numbers(), steps=3)
  assert [next(ahead) for _ in range(5)] == [0, 1, 2, 3, 4]
  with pytest.raises(InputError, match="the sixth"):
    next(ahead)
  ahead.close()


def test_only_so_many_are_made_before_they_are_asked_for():
  made = []

  def numbers():
    for n in itertools.count():
      made.append(n)
      yield n

  ahead = Ahead(numbers(), steps=3)
  assert next(ahead) == 0
  ahead.close()
  assert len(made) <= 4
