# SPDX-License-Identifier: Apache-2.0
"""Prompts without a response have the ids that pairs with one have."""

import json
import pathlib

import pytest

from mrpo_jax import configs
from mrpo_jax.data import formats
from mrpo_jax.data.encode import encode_all
from mrpo_jax.data.formats import PreferencePair, prompt_of
from mrpo_jax.data.prompts import encode_prompts
from mrpo_jax.data.templates import TEMPLATES
from mrpo_jax.data.tokenizer import (
  load_tokenizer,
  train_tokenizer,
  with_template,
)
from mrpo_jax.errors import InputError
from tests.data import test_encode as of_pairs
from tests.material.rows import bot, system, user

LIMITS = dict(max_prompt=10**9, max_response=10**9)
SAMPLE = pathlib.Path(__file__).parents[1] / "material/hh_sample.jsonl"


@pytest.fixture(scope="module")
def pairs():
  found = list(formats.read(SAMPLE))
  assert len(found) > 10
  return found


@pytest.fixture(scope="module", params=["bpe", "unigram", "unigram-1536"])
def tokenizer(request):
  if request.param == "bpe":
    return train_tokenizer(of_pairs.TEXTS, 500)
  name = "unigram-512" if request.param == "unigram" else request.param
  return load_tokenizer(configs.TOKENIZERS / name)


def prompts_of(tokenizer, pairs):
  """Each prompt by itself, as from a file with nothing else."""
  rows = [json.loads(json.dumps({"prompt": one.prompt})) for one in pairs]
  alone = [prompt_of(row, "row") for row in rows]
  return encode_prompts(tokenizer, alone)


def assert_as_in_pairs(tokenizer, pairs, crosses=False):
  whole = encode_all(tokenizer, pairs, **LIMITS)
  found = prompts_of(tokenizer, pairs)
  compared = 0
  for one, encoded in zip(found, whole, strict=True):
    if encoded.dropped is None:
      assert one.dropped is None
      if crosses:  # the last token may belong to this answer alone
        shorter = min(len(one.ids), len(encoded.prompt_ids))
        assert abs(len(one.ids) - len(encoded.prompt_ids)) <= 1
        assert one.ids[:shorter] == encoded.prompt_ids[:shorter]
      else:
        assert one.ids == encoded.prompt_ids
      assert one.left_out == encoded.left_out
      compared += 1
  assert compared


def test_texts_have_the_ids_of_pairs(tokenizer, pairs):
  assert_as_in_pairs(tokenizer, pairs)


OURS = ("CHATML", "INST", "ROLES", "SYSTEM_LAST", "THOUGHTS_LAST")
ENDS_IN_SPACE = ("ROLES", "THOUGHTS_LAST")


@pytest.mark.parametrize("name", [*TEMPLATES, *OURS])
def test_conversations_have_the_ids_of_pairs(tokenizer, pairs, name, tmp_path):
  crosses = name in ENDS_IN_SPACE
  if name in OURS:
    path = tmp_path / "one.jinja"
    path.write_text(getattr(of_pairs, name))
    name = str(path)
  turns = [formats.in_turns(pair, "pair") for pair in pairs]
  assert_as_in_pairs(with_template(tokenizer, name), turns, crosses)


def test_a_system_turn_is_as_in_pairs(tokenizer):
  turns = [system("Be brief."), user("Sky?")]
  pair = PreferencePair(turns, [bot("Blue.")], [bot("Green.")])
  for template in ("transcript", "chatml"):
    assert_as_in_pairs(with_template(tokenizer, template), [pair])
  row = {"prompt": "Sky?", "system": "Be brief."}
  assert prompt_of(row, "row").prompt == turns


def test_a_prompt_that_ends_in_an_answer_goes_on_with_it(tokenizer):
  turns = [user("Sky?"), bot("It is")]
  pair = PreferencePair(turns, [bot(" blue.")], [bot(" The end.")])
  assert_as_in_pairs(with_template(tokenizer, "chatml"), [pair])


def test_tools_go_to_the_template(tmp_path):
  path = tmp_path / "tools.jinja"
  path.write_text(
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{{ m.role + ': ' + m.content + ';' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
  )
  tokenizer = with_template(train_tokenizer(of_pairs.TEXTS, 500), str(path))
  tools = [{"type": "function", "function": {"name": "weather"}}]
  row = {"prompt": [user("Sky?")], "tools": json.dumps(tools)}
  (one,) = encode_prompts(tokenizer, [prompt_of(row, "row")])
  assert tokenizer.decode(one.ids).startswith('[{"type": "function"')
  (text,) = encode_prompts(
    tokenizer, [prompt_of({"prompt": "Sky?", "tools": tools}, "row")]
  )
  assert text.dropped == "tools beside plain text"


def test_a_text_has_one_bos_and_no_end():
  for ends in ("", "<eos>"):
    tokenizer = of_pairs.small(ends=ends)
    for text in ("ab c", "<bos>ab c", "<bos><bos>ab c"):
      (one,) = encode_prompts(tokenizer, [prompt_of({"prompt": text}, "row")])
      assert one.ids == [of_pairs.BOS, of_pairs.AB, of_pairs.SPACE, of_pairs.C]


def test_a_conversation_that_no_pair_can_be_made_of_is_as_written(tmp_path):
  path = tmp_path / "swapped.jinja"
  path.write_text(of_pairs.SWAPPED)
  tokenizer = with_template(train_tokenizer(of_pairs.TEXTS, 500), str(path))
  row = {"prompt": [user("sky"), bot("blue"), user("why")]}
  (one,) = encode_prompts(tokenizer, [prompt_of(row, "row")])
  assert tokenizer.decode(one.ids) == "whysky"


def test_a_row_of_training_is_asked_as_it_is_trained_on():
  turns = [user("Sky?"), bot("Blue.")], [user("Sky?"), bot("Green.")]
  row = {"prompt": "Sky?", "chosen": turns[0], "rejected": turns[1]}
  (pair,) = formats.pairs_of(row, "row")
  assert prompt_of(row, "row").prompt == pair.prompt == [user("Sky?")]
  row = {"prompt": "Sky?", "completion": [bot("Blue.")]}
  (pair,) = formats.pairs_of(row, "row")
  assert prompt_of(row, "row").prompt == pair.prompt == [user("Sky?")]


@pytest.mark.parametrize(
  "row,match",
  [
    ([], "row 1: is a list, want one object"),
    ({"question": "Sky?"}, "row 1: there is no prompt; the row's keys are 'qu"),
    ({"prompt": None}, "row 1: there is no prompt"),
    ({"prompt": ""}, "row 1: the prompt is empty"),
    ({"prompt": []}, "row 1: the prompt is empty"),
    ({"prompt": 3}, "row 1: prompt is a number, want a string or a list of m"),
    ({"prompt": [{"role": "user"}]}, r"row 1: prompt\[0\] is an object"),
  ],
)
def test_what_is_no_prompt_is_refused(row, match):
  with pytest.raises(InputError, match=match):
    prompt_of(row, "row 1")


def test_a_template_that_cuts_answers_still_asks(tokenizer):
  tokenizer = with_template(tokenizer, "chatml")
  tokenizer.chat_template = of_pairs.FIRST_TWO
  (one,) = encode_prompts(tokenizer, [prompt_of({"prompt": [user("Hi")]}, "")])
  assert (one.dropped, one.ids) == (
    None,
    tokenizer("userHi;", add_special_tokens=False).input_ids,
  )
