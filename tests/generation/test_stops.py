# SPDX-License-Identifier: Apache-2.0
"""Stop texts are found where a search of the whole text finds them."""

import random

import pytest

from mrpo_jax.generation import stops as module
from mrpo_jax.generation.stops import Stops, first_end

# Tokens of bytes, as byte-level tokenizers have them; "é" and "漢" in parts.
TOKENS = [b"a", b"b", b"ab", b"c\n", b"\n", b"\n\n", b"ba\nb", b"", b" a"]
TOKENS += [b"\xc3", b"\xa9", b"\xe6", b"\xbc\xa2", b"\xe6\xbc", b"\xa2"]


def text_of(ids):
  return b"".join(TOKENS[one] for one in ids).decode("utf-8", "replace")


def ids_of(*tokens):
  return [TOKENS.index(one) for one in tokens]


def naive(ids, stops):
  """(ids kept, text) by reading the whole text one character at a time."""
  whole = text_of(ids)
  for end in range(1, len(whole) + 1):
    starts = [end - len(one) for one in stops if whole[:end].endswith(one)]
    if starts:
      said = whole[: min(starts)]
      counts = range(len(ids) + 1)
      return next(n for n in counts if text_of(ids[:n]).startswith(said)), said
  return None


def found(ids, stops, sizes=(1,)):
  """What Stops says of ids that come in blocks of these sizes, in turns."""
  watch, given, at = Stops(stops, text_of), [], 0
  for number in range(len(ids)):
    size = sizes[number % len(sizes)]
    given.extend(ids[at : at + size])
    at += size
    count = watch.ended(0, given)
    if count is not None:
      said = watch.text(0)
      assert watch.text(0) is None  # it is given once
      return count, said
    if at >= len(ids):
      return None


A, B, AB, CN, N, NN, BANB = ids_of(*TOKENS[:7])


@pytest.mark.parametrize(
  "ids,stops,kept,text",
  [
    ([A, N, N, B], ["\n\n"], 1, "a"),  # across a border
    ([A, B, CN, N, A], ["bc\n\n"], 1, "a"),  # across three
    ([A, BANB, A], ["a\n"], 2, "ab"),  # inside a token
    ([AB, A], ["b"], 1, "a"),  # the token that holds it is needed
    ([NN, A], ["\n"], 0, ""),  # at the very start
    ([A, B, N, A], ["zz", "\n", "b\n"], 1, "a"),  # the longest that ends there
    ([A, B, CN], ["abc\n", "b"], 1, "a"),  # the one that ends first
    (ids_of(b"a", b"\xc3", b"\xa9", b"b"), ["\u00e9"], 1, "a"),
    (ids_of(b"\xe6", b"\xbc\xa2", b"b"), ["b"], 2, "\u6f22"),
    (ids_of(b"a", b"", b"\n"), ["\n"], 1, "a"),  # no token without a text
  ],
)
@pytest.mark.parametrize("block", [1, 2, 16])
def test_a_sample_ends_before_the_stop(ids, stops, kept, text, block):
  assert found(ids, stops, (block,)) == (kept, text)
  assert naive(ids, stops) == (kept, text)


@pytest.mark.parametrize("stops", [[], ["z"], ["\u00e9"]])
def test_a_stop_that_never_comes(stops):
  ids = ids_of(b"a", b"\xc3", b"b", b"\xe6\xbc")
  assert found(ids, stops) is None


@pytest.mark.parametrize("seed", range(200))
def test_any_blocks_find_what_a_search_of_the_whole_text_finds(
  seed, monkeypatch
):
  draw = random.Random(seed)
  monkeypatch.setattr(module, "WINDOW", draw.choice([4, 9, 64]))
  ids = [draw.randrange(len(TOKENS)) for _ in range(draw.choice([10, 80]))]
  whole, stops = text_of(ids), []
  for _ in range(draw.randint(1, 3)):  # of the text itself, so that they come
    at = draw.randrange(len(whole) // 2, len(whole))
    stops.append(whole[at : at + draw.randint(3, 9)])
  sizes = [draw.randint(1, 12) for _ in range(5)]
  assert found(ids, stops, sizes) == naive(ids, stops)


def test_no_place_is_inside_a_character(monkeypatch):
  """Some decoders write a sign for each byte of what is not whole yet."""
  monkeypatch.setattr(module, "WINDOW", 2)

  def byte_by_byte(ids):
    try:
      return bytes(ids).decode()
    except UnicodeDecodeError:
      return "\ufffd" * len(ids)

  watch, ids, counts = Stops(["\u6f22"], byte_by_byte), [], []
  for byte in "\u6f22".encode():
    ids.append(byte)
    counts.append(watch.ended(0, ids))
  assert counts == [None, None, 0]


def test_long_samples_are_not_decoded_anew_for_every_block():
  decoded = 0

  def counted(ids):
    nonlocal decoded
    decoded += len(ids)
    return text_of(ids)

  watch, ids = Stops(["\n\n\n"], counted), []
  for _ in range(500):
    ids += [A, B] * 8
    assert watch.ended(0, ids) is None
  assert decoded < 20 * len(ids)


def test_samples_on_their_way_have_a_place_and_a_text_each():
  watch = Stops(["\nb", "a\na"], text_of)
  assert watch.ended((0, 0), [A]) is None
  assert watch.ended((0, 1), [BANB]) == 1
  assert watch.ended((0, 0), [A, N, A]) == 0
  assert watch.text((0, 1)) == "ba" and watch.text((0, 0)) == ""


def test_of_several_stops_the_first_to_end_counts():
  assert first_end("abcd", ["abcd", "bc"]) == (1, 3)
  assert first_end("abcd", ["bcd", "cd"]) == (1, 4)
  assert first_end("abcd", ["x"]) is None
