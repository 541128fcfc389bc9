# SPDX-License-Identifier: Apache-2.0
"""Rows of one response with a label: read, kept, given another's response."""

import dataclasses
import json
import types

import pytest

from mrpo_jax import configs
from mrpo_jax.data import encode, formats, mismatched, source
from mrpo_jax.data.formats import PreferencePair
from mrpo_jax.data.table import encode_table
from mrpo_jax.data.tokenizer import load_tokenizer
from mrpo_jax.errors import InputError
from tests.material.rows import bot, only, user

LIMITS = dict(max_prompt=99, max_response=99)
Q, OWL = user("Name a bird."), bot("Owl.")
TURNS = PreferencePair([Q], [OWL], None, desirable=False)


@pytest.fixture(scope="module")
def tokenizer():
  return load_tokenizer(configs.TOKENIZERS / "unigram-512")


@pytest.mark.parametrize(
  "row, pair",
  [
    (
      {"prompt": "Name:", "completion": " owl", "label": True},
      PreferencePair("Name:", " owl", None, desirable=True),
    ),
    ({"prompt": [Q], "completion": [OWL], "label": False}, TURNS),
    ({"messages": [Q, OWL], "label": False}, TURNS),
    ({"messages": [Q, OWL], "label": False, "rating": 4, "model": "m"}, TURNS),
    ({"instruction": "Name", "input": "a bird.", "output": "Owl."}, None),
    (
      {
        "conversations": [
          {"from": "human", "value": Q["content"]},
          {"from": "gpt", "value": "Owl."},
        ],
        "kto_tag": False,
      },
      TURNS,
    ),
    ({"messages": [Q, OWL], "label": False, "kto_tag": False}, TURNS),
    (
      {"system": "S", "messages": [Q, OWL], "label": True},
      PreferencePair(
        [{"role": "system", "content": "S"}, Q], [OWL], None, desirable=True
      ),
    ),
  ],
)
def test_a_label_says_whether_a_response_is_good(row, pair):
  found = only(**row)
  if pair is None:
    assert found.desirable is None
    return
  assert found == pair
  nulls = dict.fromkeys(("chosen", "rejected", "kto_tag", "label"))
  assert only(**nulls | row) == pair


def test_parts_system_and_tools_stand_beside_a_label():
  part = {"type": "text", "text": "Name a bird."}
  tools = [{"type": "function", "function": {"name": "look"}}]
  found = only(
    messages=[user([part]), OWL],
    system="S",
    tools=json.dumps(tools),
    label=True,
  )
  assert found == PreferencePair(
    [{"role": "system", "content": "S"}, user("Name a bird.")],
    [OWL],
    None,
    tools=tools,
    desirable=True,
  )


@pytest.mark.parametrize(
  "label, message",
  [
    ({"label": 1}, "label is 1, want true (a good response) or false"),
    ({"label": "true"}, "label is a string, want true"),
    ({"kto_tag": [True]}, "kto_tag is a list, want true"),
    ({"label": True, "kto_tag": False}, "label and kto_tag contradict each"),
    ({"label": True, "rejected_response": "x"}, "'rejected_response' stands"),
    ({"desirable": True}, "give a label, true or false, or leave the column"),
  ],
)
def test_what_is_no_label_is_refused(label, message):
  with pytest.raises(InputError, match="^row 1: ") as refusal:
    formats.pairs_of({"messages": [Q, OWL], **label}, "row 1")
  assert message in str(refusal.value)


def test_a_label_beside_a_pair_stays_its_own_matter():
  assert (
    only(prompt="p", chosen="a", rejected="b", label=True).desirable is None
  )


def test_dialogues_keep_their_label():
  pair = PreferencePair("Human: Hi\n\nAssistant:", " Ho", None, desirable=True)
  turns = formats.in_turns(pair, "pair 1")
  assert turns.prompt == [user("Hi")] and turns.desirable is True


def test_a_label_is_a_part_of_the_data_and_not_of_the_text():
  good = dataclasses.replace(TURNS, desirable=True)
  none = dataclasses.replace(TURNS, desirable=None)
  assert len({source.pair_id(pair) for pair in (good, TURNS, none)}) == 3
  assert source.prompt_id(good) == source.prompt_id(none)


def test_labels_survive_tfds(tmp_path):
  rows = [
    {"messages": [Q, OWL], "label": True},
    {"prompt": "p", "completion": "c", "label": False},
  ]
  path = tmp_path / "a.jsonl"
  path.write_text("\n".join(map(json.dumps, rows)))
  pairs = source.load(path)
  assert [pair.desirable for pair in pairs] == [True, False]
  assert source.load(source.prepare(path, tmp_path)) == pairs
  del rows[1]["label"]
  path.write_text("\n".join(map(json.dumps, rows)))
  with pytest.raises(InputError, match="1 of 2 pairs have a label; prepare"):
    source.prepare(path, tmp_path / "other")


# Who takes them.


def table(tokenizer, pairs, **given):
  tokenizers = types.SimpleNamespace(
    views=[tokenizer], users=lambda i: ["policy"]
  )
  return encode_table(
    "train",
    pairs,
    tokenizers,
    origin="a.jsonl",
    row_length=99,
    **LIMITS,
    **given,
  )


PAIR = PreferencePair("p", " a", " b")
ALONE = PreferencePair("p", " a", None)
GOOD = PreferencePair("p", " a", None, desirable=True)


@pytest.mark.parametrize(
  "pairs, given, message",
  [
    ([PAIR, GOOD], {}, "1 of 2 pairs have one response with a label, the firs"),
    ([PAIR, GOOD], {"chosen_only": True}, "have one response with a label"),
    ([GOOD, PAIR], {"labelled": True}, "1 of 2 pairs have no label, true or"),
    ([GOOD, ALONE], {"labelled": True}, "the first is pair 1; config.loss.nam"),
  ],
)
def test_each_kind_of_row_has_its_losses(tokenizer, pairs, given, message):
  with pytest.raises(InputError, match=message):
    table(tokenizer, pairs, **given)


def test_labels_stand_with_their_rows(tokenizer):
  pairs = [TURNS, PreferencePair([Q], [bot("")], None, desirable=True), GOOD]
  found = table(tokenizer, pairs, labelled=True)
  assert found.labels == [False, True] and found.places == [0, 2]
  assert found.ids == [source.pair_id(TURNS), source.pair_id(GOOD)]
  assert [one.rejected_ids for one in found.views[0]] == [[], []]


# Mismatched responses.


def rows(*numbers):
  """Rows of prompts by number, whose responses are all different."""
  return [
    PreferencePair(f"p{number}", f" r{n}", None, desirable=n % 2 == 0)
    for n, number in enumerate(numbers)
  ]


@pytest.mark.parametrize("numbers", [(1, 2), (1, 1, 2, 2, 3, 4), (1, 2, 3, 1)])
def test_every_response_is_given_once_to_another_prompt(numbers):
  pairs = rows(*numbers)
  found = mismatched.with_mismatched(pairs, "a.jsonl")
  prompt_of = {pair.chosen: pair.prompt for pair in pairs}
  assert sorted(one.rejected for one in found) == sorted(prompt_of)
  for pair, one in zip(pairs, found, strict=True):
    assert prompt_of[one.rejected] != pair.prompt
    assert dataclasses.replace(one, rejected=None) == pair
  # In another order of the rows each has the same.
  assert mismatched.with_mismatched(pairs[::-1], "a.jsonl") == found[::-1]


def test_texts_go_to_texts_and_turns_to_turns():
  turns = [
    PreferencePair([user(f"q{n}")], [bot(f"a{n}")], None, desirable=True)
    for n in range(3)
  ]
  mixed = [*turns, *rows(1, 2, 3)]
  for one in mismatched.with_mismatched(mixed, "a.jsonl"):
    assert isinstance(one.prompt, str) is isinstance(one.rejected, str)


def test_more_than_half_of_one_prompt_is_refused():
  message = "a.jsonl: 2 of 3 rows have one prompt"
  with pytest.raises(InputError, match=message):
    mismatched.with_mismatched(rows(1, 1, 2), "a.jsonl")


def test_an_empty_response_is_nobodys(tokenizer):
  pairs = [*rows(1, 2), PreferencePair("p", " ", None, desirable=True)]
  found = mismatched.with_mismatched(pairs, "a.jsonl")
  assert [one.rejected for one in found] == [" r1", " r0", None]
  kept = table(tokenizer, pairs, labelled=True, mismatched=True)
  assert kept.places == [0, 1] and kept.dropped == 1
  assert kept.ids == [source.pair_id(pair) for pair in pairs[:2]]


def test_a_mismatched_response_may_be_the_same_text(tokenizer):
  pairs = [
    PreferencePair(f"p{n}", " yes", None, desirable=bool(n)) for n in range(2)
  ]
  found = table(tokenizer, pairs, labelled=True, mismatched=True)
  for one in found.views[0]:
    assert one.chosen_ids == one.rejected_ids != []
  beside = mismatched.with_mismatched(pairs, "a.jsonl")[0]
  unlabelled = dataclasses.replace(beside, desirable=None)
  one = encode.encode(tokenizer, unlabelled, **LIMITS)
  assert one.dropped == "equal responses"
