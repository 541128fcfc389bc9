# SPDX-License-Identifier: Apache-2.0
"""Rows by hand in every layout, and every refusal with its message.

hh_sample.jsonl: 12 rows of Anthropic's hh-rlhf (MIT), harmless-base/test.
The last but one differs before the last turn, the last has an empty response.
"""

import functools
import gzip
import json
import pathlib

import pyarrow
import pyarrow.parquet
import pytest

from mrpo_jax.data import formats
from mrpo_jax.data.formats import PreferencePair
from mrpo_jax.errors import InputError
from tests.material.rows import bot, only, user

SAMPLE = pathlib.Path(__file__).parents[1] / "material/hh_sample.jsonl"
PLAIN = {"prompt": "Sky?", "chosen": " Blue.", "rejected": " Green."}
PAIR = PreferencePair("Sky?", " Blue.", " Green.")


def written(tmp_path, name, content):
  path = tmp_path / name
  path.write_bytes(content)
  return path


def line(row):
  return json.dumps(row).encode()


# Without the time of day: names of tests are made from such bytes.
zipped = functools.partial(gzip.compress, mtime=0)


# Layouts.


def test_three_strings_are_a_pair_and_extra_keys_do_not_matter():
  assert only(PLAIN | {"id": 3, "ranked": None}) == PAIR


def test_three_message_lists_are_a_conversational_pair():
  row = {
    "prompt": [user("Sky?") | {"name": "Ann"}],
    "chosen": [bot("Blue.")],
    "rejected": [bot("Green.")],
  }
  pair = PreferencePair([user("Sky?")], [bot("Blue.")], [bot("Green.")])
  assert only(row) == pair


def test_an_implicit_conversation_splits_after_the_last_common_message():
  start = [user("Hi"), bot("Hello"), user("Sky?")]
  row = {
    "chosen": [*start, bot("Blue.")],
    "rejected": [*start, bot("Green."), user("Sure?")],
  }
  pair = only(row)
  assert pair.prompt == start
  assert pair.chosen == [bot("Blue.")]
  assert pair.rejected == [bot("Green."), user("Sure?")]


def test_each_response_of_a_conversation_keeps_a_message():
  turns = [user("Sky?"), bot("Blue.")]
  pair = PreferencePair(turns[:1], turns[1:], turns[1:])
  assert only({"chosen": turns, "rejected": turns}) == pair


def test_ultrafeedback_lists_repeat_the_prompt():
  row = {
    "prompt": "Sky?",
    "chosen": [user("Sky?"), bot("Blue.")],
    "rejected": [user("Sky?"), bot("Green.")],
  }
  pair = PreferencePair([user("Sky?")], [bot("Blue.")], [bot("Green.")])
  assert only(row) == pair
  only_answers = {key: row[key][1:] for key in ("chosen", "rejected")}
  assert only(only_answers | {"prompt": "Sky?"}) == pair


def test_a_transcript_splits_at_the_last_common_assistant():
  start = "\n\nHuman: Hi\n\nAssistant: Yo\n\nHuman: Sky?\n\nAssistant:"
  row = {"chosen": start + " Blue.", "rejected": start + " Blu"}
  assert only(row) == PreferencePair(start, " Blue.", " Blu")
  row = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Yo\n\nHuman: A\n\nAssistant: B",
    "rejected": "\n\nHuman: Hi\n\nAssistant: No",
  }
  pair = only(row)
  assert pair.prompt == "\n\nHuman: Hi\n\nAssistant:"
  assert pair.chosen == " Yo\n\nHuman: A\n\nAssistant: B"


@pytest.mark.parametrize(
  "chosen, rejected, prompt",
  [
    ("The sky is blue.", "The sky is green.", "The sky is"),
    ("The sky is blue.", "The sky is black.", "The sky is"),
    ("Sky?\nBlue", "Sky?\nGreen", "Sky?\n"),
    ("The sky", "The skyline", "The"),
    ("The sky", "The sky\nis", "The"),
    ("", "Blue", ""),
    ("", "", ""),
  ],
)
def test_plain_texts_split_at_a_word_boundary(chosen, rejected, prompt):
  pair = only({"chosen": chosen, "rejected": rejected})
  assert pair.prompt == prompt
  assert pair.prompt + pair.chosen == chosen
  assert pair.prompt + pair.rejected == rejected


def test_llama_factory_conversations():
  row = {
    "conversations": [{"from": "human", "value": "Sky?"}],
    "chosen": {"from": "gpt", "value": "Blue."},
    "rejected": {"from": "gpt", "value": "Green."},
  }
  pair = PreferencePair([user("Sky?")], [bot("Blue.")], [bot("Green.")])
  assert only(row | {"system": None}) == pair
  system = {"role": "system", "content": "Be short."}
  assert only(row | {"system": "Be short."}).prompt == [system, user("Sky?")]


def test_llama_factory_alpaca_ranking():
  row = {"instruction": "Name it.", "chosen": "Blue.", "rejected": "Green."}
  pair = PreferencePair([user("Name it.")], [bot("Blue.")], [bot("Green.")])
  assert only(row | {"input": "", "history": None}) == pair
  row |= {"input": "The sky", "system": "S", "history": [["Hi", "Yo"]]}
  assert only(row).prompt == [
    {"role": "system", "content": "S"},
    user("Hi"),
    bot("Yo"),
    user("Name it.\nThe sky"),
  ]


@pytest.mark.parametrize("responses", ["responses", "completions", "outputs"])
@pytest.mark.parametrize(
  "order",
  [
    {"scores": [2, 0.5, 2]},
    {"score": [1, -1, 1]},
    {"ranks": [1, 2, 1]},
    {"rank": [0, 9, 0]},
  ],
)
def test_a_ranked_list_gives_all_strictly_ordered_pairs(responses, order):
  row = {"prompt": "p", responses: ["a", "b", "c"]} | order
  pairs = [PreferencePair("p", "a", "b"), PreferencePair("p", "c", "b")]
  assert formats.pairs_of(row, "row 1") == pairs


def test_ranked_lists_the_best_first_and_takes_the_prompts_form():
  row = {"prompt": "p", "ranked": ["a", "b", "c"]}
  pairs = formats.pairs_of(row, "row 1")
  assert [(p.chosen, p.rejected) for p in pairs] == [
    ("a", "b"),
    ("a", "c"),
    ("b", "c"),
  ]
  (first, *_) = formats.pairs_of(row | {"prompt": [user("p")]}, "row 1")
  assert first == PreferencePair([user("p")], [bot("a")], [bot("b")])


@pytest.mark.parametrize("human", ["## Human:\n{}\n\n## Assistant:", None])
def test_scored_transcripts_are_ordered_and_split(human):
  start = (human or "\n\nHuman: {}\n\nAssistant:").format("Sky?")
  row = {"text": [start + " A lake.", start + " A sea."], "score": [0.5, 1.5]}
  assert only(row) == PreferencePair(start, " A sea.", " A lake.")
  assert formats.pairs_of(row | {"score": [1, 1]}, "row 1") == []


def test_a_real_file_comes_through_whole():
  pairs = list(formats.read(SAMPLE))
  rows = [json.loads(text) for text in SAMPLE.read_text().split("\n") if text]
  assert len(pairs) == len(rows) == 12
  for pair, row in zip(pairs, rows, strict=True):
    assert pair.prompt.endswith("\n\nAssistant:")
    assert pair.prompt + pair.chosen == row["chosen"]
    assert pair.prompt + pair.rejected == row["rejected"]
  assert "\n\nAssistant:" in pairs[-2].chosen
  assert pairs[-1].chosen == " "


# Files.


@pytest.mark.parametrize(
  "content",
  [
    line(PLAIN),
    b"\xef\xbb\xbf" + line(PLAIN) + b"\r\n\r\n  \r\n",
    b"\n\n" + line(PLAIN),
  ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "A.JSONL"])
def test_line_ends_blank_lines_and_a_bom_are_fine(tmp_path, name, content):
  path = written(tmp_path, name, content)
  assert list(formats.read(path)) == list(formats.read(str(path))) == [PAIR]


def test_u2028_inside_a_string_ends_no_line(tmp_path):
  row = PLAIN | {"prompt": "a\u2028b\x85c"}
  text = json.dumps(row, ensure_ascii=False).encode()
  (pair,) = formats.read(written(tmp_path, "a.jsonl", text))
  assert pair.prompt == "a\u2028b\x85c"


def test_every_suffix_is_read(tmp_path):
  lines, rows = line(PLAIN) + b"\n" + line(PLAIN), [PLAIN, PLAIN]
  paths = [
    written(tmp_path, "a.jsonl", lines),
    written(tmp_path, "a.jsonl.gz", zipped(lines)),
    written(tmp_path, "a.json", b"\xef\xbb\xbf\n" + line(rows)),
    written(tmp_path, "a.json.gz", zipped(line(rows))),
    tmp_path / "a.parquet",
  ]
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), paths[-1])
  assert [list(formats.read(path)) for path in paths] == [[PAIR, PAIR]] * 5


def test_parquet_holds_conversations(tmp_path):
  row = {"chosen": [user("q"), bot("a")], "rejected": [user("q"), bot("b")]}
  path = tmp_path / "a.parquet"
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
  pair = PreferencePair([user("q")], [bot("a")], [bot("b")])
  assert list(formats.read(path)) == [pair]


# Refusals.

RANKED = {"prompt": "p", "responses": ["a", "b"], "scores": [1, 0]}
LLAMA = {
  "conversations": [{"from": "human", "value": "q"}],
  "chosen": {"from": "gpt", "value": "a"},
  "rejected": {"from": "gpt", "value": "b"},
}
ALPACA = {"instruction": "q", "chosen": "a", "rejected": "b"}
TURN = "want a message with role and content"


@pytest.mark.parametrize(
  "row, message",
  [
    ([1], "is a list, want one object per row"),
    ("text", "is a string, want one object per row"),
    ({}, "the row's keys are none; give one of the layouts {prompt, chosen"),
    (
      {"prompt": "p", "chosen": "c"},
      "a key is missing; the row's keys are 'prompt', 'chosen'; give one of",
    ),
    ({"chosen": "c", "scores": [1]}, "a key is missing"),
    ({"question": "q", "responses": {"a": "b"}}, "a key is missing"),
    (PLAIN | {"prompt": None}, "prompt is null, want a string or a list of"),
    (PLAIN | {"chosen": 3}, "chosen is a number, want a string or a list of"),
    (PLAIN | {"rejected": True}, "rejected is a boolean, want a string or"),
    (PLAIN | {"prompt": b"\xff"}, "prompt is binary data, want a string"),
    (PLAIN | {"prompt": ["p"]}, f"prompt[0] is a string, {TURN}"),
    (PLAIN | {"prompt": [{"role": "user"}]}, f"keys 'role', {TURN}"),
    (PLAIN | {"prompt": {}}, f"object with the keys none, {TURN}"),
    (PLAIN | {"prompt": [user(None)]}, "prompt[0].content is null, want a"),
    (PLAIN | {"prompt": [bot("x") | {"role": 1}]}, "prompt[0].role is a numb"),
    (PLAIN | {"chosen": []}, "chosen is an empty list, want at least one"),
    (PLAIN | {"chosen": [bot("c")]}, "mix strings and message lists; give"),
    (PLAIN | {"prompt": [user("p")]}, "mix strings and message lists; give"),
    ({"chosen": "c", "rejected": [bot("r")]}, "one response is a string, the"),
    (
      LLAMA | {"chosen": {"from": "robot", "value": "a"}},
      "chosen[0].from: unknown role 'robot'; the known are prompter, gpt, bot,",
    ),
    (LLAMA | {"conversations": "q"}, "conversations is a string, want a list"),
    (LLAMA | {"chosen": "a"}, "mix strings and message lists"),
    (LLAMA | {"system": 1}, "system is a number, want a string"),
    (ALPACA | {"instruction": None}, "instruction is null, want a string"),
    (ALPACA | {"input": 0}, "input is a number, want a string"),
    (ALPACA | {"history": "x"}, "history is a string, want a list"),
    (ALPACA | {"history": [["q"]]}, "history[0] is a list, want [question, a"),
    (ALPACA | {"history": [["q", 1]]}, "history[0] is a number, want a string"),
    (RANKED | {"scores": [1]}, "scores has 1 entries for 2 responses; give"),
    (RANKED | {"scores": 1}, "scores is a number, want a list"),
    (RANKED | {"scores": [1, True]}, "scores[1] is a boolean, want a finite"),
    (RANKED | {"scores": [1, "0"]}, "scores[1] is a string, want a finite"),
    (RANKED | {"scores": [1, float("nan")]}, "scores[1] is nan, want a finite"),
    (RANKED | {"scores": [float("inf"), 0]}, "scores[0] is inf, want a finite"),
    (RANKED | {"responses": "ab"}, "responses is a string, want a list"),
    (RANKED | {"responses": ["a", None]}, "responses[1] is null, want a str"),
    ({"prompt": 1, "ranked": ["a", "b"]}, "prompt is a number, want a string"),
    ({"text": ["a"], "score": [1, 2]}, "score has 2 entries for 1 responses"),
    (
      PLAIN | {"prompt": {"role": ["user"], "content": []}},
      "prompt has lists of unequal length; give one each",
    ),
    (
      PLAIN | {"prompt": {"role": ["user"], "content": "x"}},
      "prompt has lists of unequal length; give one each",
    ),
  ],
)
def test_a_bad_row_is_refused_in_one_line(row, message):
  with pytest.raises(InputError) as refusal:
    formats.pairs_of(row, "a.jsonl line 7")
  text = str(refusal.value)
  assert text.startswith("a.jsonl line 7: ") and "\n" not in text
  assert message in text


@pytest.mark.parametrize(
  "name, content, message",
  [
    ("a.jsonl", line(PLAIN) + b"\n\n{'x'}\n", " line 3: is not JSON (Expect"),
    ("a.jsonl", line(PLAIN)[:-3], " line 1: is not JSON (Untermin"),
    ("a.jsonl", b"\n" + line([PLAIN]), " line 2: is a list, want one object"),
    ("a.jsonl", b"\n" + line({}), " line 2: a key is missing"),
    ("a.jsonl", b'\n{"prompt": "\xe9"}', " line 2: is not UTF-8; save the"),
    ("a.jsonl", b"[" * 100_000, " line 1: is not usable JSON (maximum recu"),
    ("a.jsonl", b"", ": has no rows; give at least one pair"),
    ("a.jsonl", b"\n \r\n", ": has no rows; give at least one pair"),
    ("a.json", b"[]", ": has no rows; give at least one pair"),
    ("a.json", b"[\n{},\n{]", " line 3: is not JSON (Expecting property na"),
    ("a.json", b'[\n"\xe9"]', " line 2: is not UTF-8; save the file as"),
    ("a.json", line([PLAIN, {}]), " row 2: a key is missing"),
    ("a.json", b'{\n"data": []}', " line 1: is not JSON"),
    ("a.jsonl", line(RANKED | {"scores": [1, 1]}), ": no row prefers a resp"),
    ("a.jsonl.gz", line(PLAIN), ": damaged gzip file (Not a gzipped file"),
    ("a.jsonl.gz", zipped(line(PLAIN))[:-9], ": damaged gzip file ("),
    ("a.json.gz", zipped(b"x" * 99)[:-9], ": damaged gzip file (Comp"),
    ("a.parquet", b"PAR1" * 9, ": damaged Parquet file ("),
    ("a.parquet", b"", ": damaged Parquet file ("),
    ("a.csv", b"a,b", ": unknown file type; the known are .jsonl, .jsonl.gz"),
  ],
)
def test_a_bad_file_is_refused_by_name_and_place(
  tmp_path, name, content, message
):
  path = written(tmp_path, name, content)
  with pytest.raises(InputError) as refusal:
    list(formats.read(path))
  text = str(refusal.value)
  assert text.startswith(f"{path}{message}") and "\n" not in text


def test_rows_before_the_bad_one_come_through(tmp_path):
  path = written(tmp_path, "a.jsonl", line(PLAIN) + b"\n3\n")
  pairs = formats.read(path)
  assert next(pairs) == PAIR
  with pytest.raises(InputError, match="line 2: is a number"):
    next(pairs)


def test_what_is_no_file_is_refused_at_once(tmp_path):
  with pytest.raises(InputError, match="x.jsonl: no such file; check the path"):
    formats.read(tmp_path / "x.jsonl")
  (tmp_path / "dir.json").mkdir()
  with pytest.raises(InputError, match="dir.json: is a directory; name a fil"):
    formats.read(tmp_path / "dir.json")


def test_a_parquet_row_is_named_by_its_number(tmp_path):
  rows = [PLAIN, PLAIN | {"chosen": None}]
  path = tmp_path / "a.parquet"
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  with pytest.raises(InputError, match="parquet row 2: chosen is null, want"):
    list(formats.read(path))


def test_parquet_text_that_is_not_utf8_is_refused(tmp_path):
  broken = pyarrow.array([b"\xff"]).view(pyarrow.string())
  table = pyarrow.table(
    {"prompt": broken, "chosen": broken, "rejected": broken}
  )
  path = tmp_path / "a.parquet"
  pyarrow.parquet.write_table(table, path)
  with pytest.raises(InputError, match="after row 0: a text is not UTF-8"):
    list(formats.read(path))


def test_half_a_surrogate_pair_is_left_to_the_encoder():
  (pair,) = formats.pairs_of(PLAIN | {"prompt": "\ud800"}, "here")
  assert pair.prompt == "\ud800"


def test_the_texts_of_a_pair():
  plain = formats.PreferencePair("a", "b", "c")
  assert list(formats.texts(plain)) == ["a", "b", "c"]
  turns = [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]
  assert list(formats.texts(formats.PreferencePair(turns, [], turns[:1]))) == [
    *("x", "y", "x")
  ]
