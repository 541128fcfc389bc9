# SPDX-License-Identifier: Apache-2.0
"""Which column holds the prompt, and which the system text."""

import pyarrow
import pyarrow.parquet
import pytest

from mrpo_jax.data import formats
from mrpo_jax.data.formats import PreferencePair
from mrpo_jax.errors import InputError
from tests.material.rows import bot, only, system, user

ANSWERS = {"chosen": "Blue.", "rejected": "Green."}
SHARED = {"chosen": "The sky is blue.", "rejected": "The sky is green."}


def refused(row):
  with pytest.raises(InputError, match="^row 1: ") as found:
    formats.pairs_of(row, "row 1")
  assert "\n" not in str(found.value)
  return str(found.value)


PAIR = PreferencePair([user("Sky?")], [bot("Blue.")], [bot("Green.")])
WITH_SYSTEM = PreferencePair(
  [system("S"), user("Sky?")], PAIR.chosen, PAIR.rejected
)


# Prompts.


@pytest.mark.parametrize("key", ["question", "query", "input", "instruction"])
@pytest.mark.parametrize("none", [{}, {"prompt": None, "messages": None}])
def test_a_question_in_its_own_column_is_the_prompt(key, none):
  assert only({key: "Sky?"} | ANSWERS | none) == PAIR


@pytest.mark.parametrize("key", ["messages", "conversations"])
@pytest.mark.parametrize("as_list", [True, False])
def test_turns_in_their_own_column_are_the_prompt(key, as_list):
  sides = {k: bot(v) for k, v in ANSWERS.items()}
  sides = {k: [v] if as_list else v for k, v in sides.items()}
  assert only({key: PAIR.prompt} | sides) == PAIR


def test_a_question_has_the_history_and_the_turns_of_its_answers():
  row = {"question": "Sky?", "history": [["Hi", "Yo"]]}
  sides = {key: [bot(text)] for key, text in ANSWERS.items()}
  pair = only(row | sides)
  assert pair.prompt == [user("Hi"), bot("Yo"), user("Sky?")]
  assert (pair.chosen, pair.rejected) == (PAIR.chosen, PAIR.rejected)


def test_a_ranked_list_may_have_a_question():
  row = {"question": "Sky?", "responses": ["Green.", "Blue."], "ranks": [2, 1]}
  assert only(row) == PAIR


@pytest.mark.parametrize(
  "two",
  [("question", "query"), ("messages", "instruction"), ("query", "input")],
)
def test_two_columns_that_could_be_the_prompt_are_refused(two):
  row = dict.fromkeys(two, "Sky?") | ANSWERS
  assert "could each be the prompt; name one of them" in refused(row)


OTHERS = [
  {"context": "Which colour?"},
  {"context": [user("Sky?")]},
  {"context": user("Sky?")},
  {"context": ["Which colour?"]},
  {"topics": {"content": ["Which colour?"], "role": ["user"]}},
]


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize(
  "sides", [ANSWERS, SHARED, {k: [bot(v)] for k, v in SHARED.items()}]
)
def test_a_guessed_prompt_does_not_stand_against_another_column(sides, other):
  text = refused(sides | other)
  assert "which is what both begin with, but" in text
  assert f"{next(iter(other))!r} holds text too; name the column" in text


def test_an_empty_prompt_does_not_stand_against_one_word():
  assert "with the prompt ''" in refused(ANSWERS | {"topic": "Sky?"})


@pytest.mark.parametrize(
  "other", [{"id": "a7"}, {"n": 3}, {"t": ["a", "b"]}, {}]
)
def test_a_shared_start_stands_beside_marks_and_numbers(other):
  pair = PreferencePair("The sky is", " blue.", " green.")
  assert only(SHARED | other) == pair


@pytest.mark.parametrize("other", OTHERS)
def test_a_dialogue_stands_beside_any_column(other):
  start = "\n\nHuman: Sky?\n\nAssistant:"
  row = {"chosen": start + " Blue.", "rejected": start + " Green."}
  assert only(row | other) == PreferencePair(start, " Blue.", " Green.")
  row = {"chosen": [user("Sky?"), bot("Blue.")]}
  row["rejected"] = [user("Sky?"), bot("Green.")]
  assert only(row | other) == PAIR


def test_a_column_of_parquet_that_may_be_the_prompt_is_seen(tmp_path):
  path = tmp_path / "a.parquet"
  pyarrow.parquet.write_table(
    pyarrow.Table.from_pylist([SHARED | {"context": "Which colour?"}]), path
  )
  with pytest.raises(InputError, match="row 1: .*'context' holds text too"):
    list(formats.read(path))


@pytest.mark.parametrize("key", ["prompt", "question", "instruction"])
def test_a_prompt_that_is_null_is_named(key):
  assert f"{key} is null, want a string" in refused({key: None} | ANSWERS)


def test_a_dialogue_does_not_mind_a_prompt_that_is_null():
  start = "\n\nHuman: Sky?\n\nAssistant:"
  row = {"chosen": start + " Blue.", "rejected": start + " Green."}
  assert only(row | {"prompt": None}).prompt == start


# System texts.


@pytest.mark.parametrize("key", ["system", "system_prompt"])
@pytest.mark.parametrize(
  "row",
  [
    {"prompt": "Sky?"} | ANSWERS,
    {"question": "Sky?"} | ANSWERS,
    {"instruction": "Sky?"} | ANSWERS,
    vars(PAIR),
    {"messages": PAIR.prompt} | ANSWERS,
    {k: [*PAIR.prompt, bot(text)] for k, text in ANSWERS.items()},
    {"prompt": "Sky?", "ranked": ["Blue.", "Green."]},
    {k: f"\n\nHuman: Sky?\n\nAssistant: {text}" for k, text in ANSWERS.items()},
    {"prompt": "\n\nHuman: Sky?\n\nAssistant:"} | ANSWERS,
    {"prompt": [system("S"), *PAIR.prompt]}
    | {k: [bot(text)] for k, text in ANSWERS.items()},
  ],
)
def test_a_system_text_is_a_turn_before_the_prompt(key, row):
  assert only(row | {key: "S"}) == WITH_SYSTEM


@pytest.mark.parametrize("nothing", [None, "", " \n"])
def test_a_system_text_of_nothing_is_none(nothing):
  row = {"prompt": "Sky?"} | ANSWERS
  assert only(row | {"system": nothing}) == PreferencePair(*row.values())


@pytest.mark.parametrize(
  "row, message",
  [
    (
      vars(PAIR) | {"prompt": [system("T"), user("Sky?")], "system": "S"},
      "begins with another system turn",
    ),
    (vars(PAIR) | {"system": "S", "system_prompt": "T"}, "differ; give one"),
    (vars(PAIR) | {"system": ["S"]}, "system is a list, want a string"),
    (SHARED | {"system": "S"}, "system text stands beside texts that name no"),
  ],
)
def test_a_system_text_that_has_no_place_is_refused(row, message):
  assert message in refused(row)
