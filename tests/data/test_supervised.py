# SPDX-License-Identifier: Apache-2.0
"""Rows with one response: for supervised training, and for no other."""

import dataclasses
import json
import types

import pytest

from mrpo_jax import configs
from mrpo_jax.data import encode, formats, pack, source, truncate
from mrpo_jax.data.formats import PreferencePair
from mrpo_jax.data.table import encode_table
from mrpo_jax.data.tokenizer import load_tokenizer
from mrpo_jax.errors import InputError
from tests.material.rows import bot, only, user

LIMITS = dict(max_prompt=99, max_response=99)


@pytest.fixture(scope="module")
def tokenizer():
  return load_tokenizer(configs.TOKENIZERS / "unigram-512")


Q, OWL = user("Name a bird."), bot("Owl.")
TURNS = PreferencePair([Q], [OWL], None)


@pytest.mark.parametrize(
  "row, pair",
  [
    (
      {"prompt": "Name:", "completion": " owl"},
      PreferencePair("Name:", " owl", None),
    ),
    (
      {"prompt": "Name a bird:", "completion": "Name a bird: owl"},
      PreferencePair("Name a bird:", " owl", None),
    ),
    ({"prompt": [Q], "completion": [OWL]}, TURNS),
    ({"prompt": [Q], "completion": OWL}, TURNS),
    ({"prompt": [Q], "completion": [Q, OWL]}, TURNS),
    ({"messages": [Q, OWL]}, TURNS),
    ({"messages": [Q, OWL], "prompt": "Name a bird.", "prompt_id": "x"}, TURNS),
    (
      {
        "conversations": [
          {"from": "human", "value": Q["content"]},
          {"from": "gpt", "value": "Owl."},
        ]
      },
      TURNS,
    ),
    ({"instruction": "Name a bird.", "input": "", "output": "Owl."}, TURNS),
    (
      {"instruction": "Name", "input": "a bird.", "output": "Owl."},
      PreferencePair([user("Name\na bird.")], [OWL], None),
    ),
    ({"question": "Name a bird.", "response": "Owl."}, TURNS),
    (
      {"system": "S", "messages": [Q, OWL]},
      PreferencePair([{"role": "system", "content": "S"}, Q], [OWL], None),
    ),
    (
      {"messages": [Q, OWL, user("More."), bot("Emu.")]},
      PreferencePair([Q, OWL, user("More.")], [bot("Emu.")], None),
    ),
    (
      {"messages": [Q, OWL, user("More.")]},
      PreferencePair([Q, OWL, user("More.")], [bot("")], None),
    ),
  ],
)
def test_the_layouts_of_one_response(row, pair):
  assert only(**row) == pair
  nulls = dict.fromkeys(("chosen", "rejected", "prompt", "messages"))
  assert only(**nulls | row) == pair


@pytest.mark.parametrize(
  "row, message",
  [
    (
      {"prompt": "p", "completion": "c", "is_good": True},
      "'is_good' stands besid",
    ),
    ({"messages": [Q, OWL], "rejected_response": "x"}, "'rejected_response' s"),
    ({"prompt": "p", "response": "c", "score": 3}, "'score' stands beside 're"),
    ({"prompt": "p", "completion": "c", "output": "d"}, "are two; give one"),
    ({"prompt": "p", "completion": "c", "rejected": "d"}, "a key is missing"),
    ({"completion": "c"}, "a key is missing"),
    ({"messages": []}, "messages has no turn before an answer"),
    ({"messages": [OWL]}, "messages has no turn before an answer"),
    ({"messages": [Q, OWL], "prompt": "Name a fish."}, "are not the prompt's"),
    ({"prompt": "p", "completion": [OWL]}, ""),
    ({"prompt": [Q], "completion": "c"}, "mix strings and message lists"),
    (
      {"prompt": [Q], "completion": [OWL, user("More.")]},
      "the last turn of completion is none of the assistant's; end it with",
    ),
    (
      {"question": "Name a bird.", "output": [Q], "label": True},
      "the last turn of output is none of the assistant's",
    ),
  ],
)
def test_what_is_not_certainly_one_response_is_refused(row, message):
  if not message:
    assert only(**row) == PreferencePair([user("p")], [OWL], None)
    return
  with pytest.raises(InputError, match="^row 1: ") as refusal:
    formats.pairs_of(row, "row 1")
  assert message in str(refusal.value)


# Token ids.


@pytest.mark.parametrize(
  "pair", [PreferencePair("Name:", " an owl", None), TURNS]
)
def test_one_response_has_the_ids_of_a_chosen_one(tokenizer, pair):
  beside = " zzz" if isinstance(pair.prompt, str) else [bot("Cat.")]
  two = dataclasses.replace(pair, rejected=beside)
  alone = encode.encode(tokenizer, pair, **LIMITS)
  assert alone.dropped is None and alone.rejected_ids == []
  both = encode.encode(tokenizer, two, **LIMITS)
  assert (
    alone.prompt_ids + alone.chosen_ids == both.prompt_ids + both.chosen_ids
  )
  assert pack.size(alone) == len(alone.prompt_ids) + len(alone.chosen_ids)


def test_one_response_is_cut_as_a_chosen_one(tokenizer):
  pair = PreferencePair("Name: " + "bird " * 50, " an owl" * 50, None)
  limits = dict(max_prompt=8, max_response=9)
  (cut,) = truncate.cut_to_fit([tokenizer], [pair], **limits)
  one = encode.encode(tokenizer, pair, cut=cut, **limits)
  assert 0 < len(one.prompt_ids) <= 8 and 0 < len(one.chosen_ids) <= 9
  assert one.truncated and one.rejected_ids == []


@pytest.mark.parametrize("answer", ["", " \n"])
def test_one_response_that_is_empty_is_dropped(tokenizer, answer):
  pair = only(prompt="p", completion=answer)
  assert encode.encode(tokenizer, pair, **LIMITS).dropped == "empty response"


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


def test_a_loss_of_pairs_refuses_one_response(tokenizer):
  pairs = [PreferencePair("p", " a", " b"), TURNS, TURNS]
  message = (
    "a.jsonl: 2 of 3 pairs have no rejected response, the first is pair 1"
  )
  with pytest.raises(InputError, match=message):
    table(tokenizer, pairs)
  found = table(tokenizer, pairs, chosen_only=True)
  assert [one.rejected_ids for one in found.views[0]] == [[]] * 3


def test_one_response_survives_tfds(tmp_path):
  rows = [{"messages": [Q, OWL]}, {"prompt": "p", "completion": "c"}]
  path = tmp_path / "a.jsonl"
  path.write_text("\n".join(map(json.dumps, rows)))
  pairs = source.load(path)
  assert source.load(source.prepare(path, tmp_path)) == pairs
  rows.append({"prompt": "p", "chosen": "a", "rejected": "b"})
  path.write_text("\n".join(map(json.dumps, rows)))
  with pytest.raises(
    InputError, match="2 of 3 pairs have no rejected response"
  ):
    source.prepare(path, tmp_path / "other")
