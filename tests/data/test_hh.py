# SPDX-License-Identifier: Apache-2.0
"""The embedded human preferences, from rows to packed batches."""

import gzip
import itertools
import json

import numpy as np
import pytest

from mrpo_jax import configs
from mrpo_jax.data import encode, formats, pack, source
from mrpo_jax.data.batches import Packing, training_batches
from mrpo_jax.data.tokenizer import train_tokenizer
from mrpo_jax.rows import token_counts

EVAL = configs.HH_HARMLESS / "eval.jsonl.gz"
TRAIN = configs.HH_HARMLESS / "train.jsonl.gz"


@pytest.fixture(scope="module")
def encoded():
  pairs = list(formats.read(EVAL))
  texts = (text for pair in pairs for text in formats.texts(pair))
  tokenizer = train_tokenizer(texts, 2048)
  limits = dict(max_prompt=192, max_response=128)
  views = encode.encode_all(tokenizer, pairs, **limits)
  return [one for one in views if not one.dropped]


def test_no_dialogue_stands_on_both_sides():
  def first_turns(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
      rows = [json.loads(line)["chosen"] for line in file]
    return {row.split("\n\nAssistant:")[0] for row in rows}

  train, held_out = first_turns(TRAIN), first_turns(EVAL)
  assert len(train) > 1000 and len(held_out) > 300
  assert not train & held_out


def test_every_dialogue_is_turns_that_begin_with_a_question():
  plain, turns = source.load(EVAL), source.load(EVAL, conversations="hh")
  assert len(plain) == len(turns) == 428
  for before, pair in zip(plain, turns, strict=True):
    said = [turn["content"] for turn in pair.prompt]
    assert all(before.prompt.count(content) for content in said)
    assert (
      len(said)
      == before.prompt.count("\n\nHuman:")
      + before.prompt.count("\n\nAssistant:")
      - 1
    )
    assert pair.prompt[0]["role"] == pair.prompt[-1]["role"] == "user"
    for side in (pair.chosen, pair.rejected):
      assert side[0]["role"] == "assistant"


@pytest.mark.parametrize(
  "length,rows", [(512, 1), (1024, 1), (2048, 1), (512, 2)]
)
def test_rows_of_sixty_four_pairs_are_nearly_full(encoded, length, rows):
  packing = Packing(batch=64, length=length, rows=rows)
  batches = training_batches([encoded], packing, seed=0)
  batches = itertools.islice(batches, 20)
  counts = [token_counts(view) for _, ((view,), _) in batches]
  real, slots = np.sum(counts, axis=0)
  assert real / slots >= 0.95


def test_the_shared_prompt_saves_what_it_should(encoded):
  shared = sum(pack.size(one) for one in encoded)
  apart = shared + sum(len(one.prompt_ids) for one in encoded)
  assert apart / shared > 1.4  # prompts are long: 2(P + R) / (P + 2R)
