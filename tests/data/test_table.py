# SPDX-License-Identifier: Apache-2.0
"""A split as token ids: what is said of it, and what it refuses."""

import copy
import dataclasses
import logging

import pytest

from mrpo_jax.data.formats import PreferencePair
from mrpo_jax.data.table import encode_table
from mrpo_jax.data.tokenizer import train_tokenizer, with_template
from mrpo_jax.errors import InputError


@dataclasses.dataclass
class Tokenizers:
  """Those of a run whose models have one each."""

  views: list

  def users(self, index):
    return [["policy", "references.first"][index]]


@pytest.fixture(scope="module")
def tokenizer():
  return train_tokenizer([], 259)


def turns(role, text):
  return [{"role": role, "content": text}]


CHAT = PreferencePair(
  turns("user", "a"), turns("assistant", "b"), turns("assistant", "c")
)
TEXT = PreferencePair("a", "b", "c")


@pytest.fixture
def table_of(caplog):
  def table_of(tokenizers, pairs):
    with caplog.at_level(logging.INFO, "mrpo_jax"):
      table = encode_table(
        "train",
        pairs,
        Tokenizers(tokenizers),
        origin="pairs.jsonl",
        row_length=512,
        max_prompt=256,
        max_response=256,
      )
    return table, [record.getMessage() for record in caplog.records]

  return table_of


def test_the_template_of_a_tokenizer_that_has_none_is_said(tokenizer, table_of):
  chatml = with_template(tokenizer, "chatml")
  _, said = table_of([tokenizer, chatml], [CHAT, TEXT, CHAT])
  assert said[0] == (
    "train: the tokenizer of policy has no chat template: its 2 conversations "
    "are written as 'transcript'; name another in `template`"
  )
  assert said[1] == (
    "train: 1 of 3 pairs are plain text, so the chat template of "
    "references.first is not used for them"
  )
  assert len(said) == 3 and "train: 3 of 3 pairs" in said[2]


def test_nothing_is_said_of_a_template_that_nothing_needs(tokenizer, table_of):
  _, said = table_of([copy.copy(tokenizer)], [TEXT])
  assert len(said) == 1


def test_a_template_that_does_not_compile_is_refused_where_it_is_needed(
  tokenizer, table_of
):
  broken = copy.copy(tokenizer)
  broken.chat_template = "a\n{% if %}"
  with pytest.raises(InputError) as info:
    table_of([tokenizer, broken], [TEXT, CHAT])
  assert str(info.value).startswith(
    "the chat template of references.first (name another in `template`) line 2:"
  )
  assert table_of([tokenizer, broken], [TEXT])[0].dropped == 0


START = "\n\nHuman: Bird?\n\nAssistant:"
DIALOGUE = PreferencePair(START, " Owl", " Cat")


def test_plain_dialogues_on_a_chat_model_are_said_with_what_helps(
  tokenizer, table_of
):
  chatml = with_template(tokenizer, "chatml")
  _, said = table_of([chatml], [DIALOGUE, TEXT, CHAT])
  assert said[0] == (
    "train: 2 of 3 pairs are plain text, so the chat template of policy is not "
    "used for them; config.data.conversations='hh' makes turns of Human: and "
    "Assistant:, which 1 have"
  )


def test_nothing_is_said_of_text_without_a_template_nor_of_chats_with_one(
  tokenizer, table_of
):
  chatml = with_template(tokenizer, "chatml")
  assert len(table_of([chatml], [CHAT])[1]) == 1


def words():
  """Two words, and no token for what is neither."""
  from tokenizers import Tokenizer, models, pre_tokenizers
  from transformers import PreTrainedTokenizerFast

  backend = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="<unk>"))
  backend.pre_tokenizer = pre_tokenizers.Whitespace()
  return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_a_pair_that_a_tokenizer_cannot_encode_is_said_with_both(
  tokenizer, table_of
):
  why = "the tokenizer of references.first cannot encode {}: WordLevel error"
  odd = PreferencePair("a", " b", " c")
  fits = PreferencePair("a", " b", " a")
  tokenizers = [tokenizer, words()]
  table, said = table_of(tokenizers, [odd, fits, odd])
  assert (table.dropped, table.places) == (2, [1])
  said = [line for line in said if "cannot encode" in line]
  assert len(said) == 1
  assert said[0].startswith(
    "train: " + why.format("2 of 3 pairs, from pair 0 on")
  )
  with pytest.raises(InputError) as info:
    table_of(tokenizers, [odd])
  assert str(info.value).startswith(
    "pairs.jsonl: none of its 1 pairs is left: 1 not encodable; "
    + why.format("the first")
  )


def test_responses_without_an_end_are_said(tokenizer, table_of):
  endless = copy.copy(tokenizer)
  endless.eos_token = None
  want = (
    "train: the tokenizer of policy has no eos_token: {} of 2 pairs have "
    "responses without an end; set it in tokenizer_config.json"
  )
  assert want.format(2) in table_of([endless], [TEXT, CHAT])[1]
  endless = with_template(endless, "chatml")
  assert want.format(1) in table_of([endless], [TEXT, CHAT])[1]
  before = len(table_of([endless], [CHAT])[1])
  assert len(table_of([endless], [CHAT])[1]) == before + 1  # its count alone
