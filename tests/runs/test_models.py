# SPDX-License-Identifier: Apache-2.0
"""The ids that a model must know, and those that no pair uses."""

import copy
from types import SimpleNamespace as Stand

import pytest

from mrpo_jax.data.encode import Encoded
from mrpo_jax.data.tokenizer import id_count, train_tokenizer
from mrpo_jax.errors import InputError
from mrpo_jax.runs.data import Unread
from mrpo_jax.runs.models import check_ids

SIZE = 259


@pytest.fixture
def tokenizer():
  tokenizer = copy.deepcopy(train_tokenizer([], SIZE))
  tokenizer.add_tokens(["<new>"], special_tokens=True)
  return tokenizer


def test_ids_are_counted_to_the_largest(tokenizer):
  assert id_count(tokenizer) == len(tokenizer) == SIZE + 1
  # A tokenizer whose ids have holes has more of them than tokens.
  holed = Stand(get_vocab=lambda: {"a": 0, "b": 7})
  assert id_count(holed) == 8
  assert (id_count(Unread(12)), id_count(Unread())) == (12, 0)


@pytest.mark.parametrize("side", ["prompt_ids", "chosen_ids", "rejected_ids"])
def test_only_an_id_that_a_pair_uses_must_be_known(tokenizer, side):
  def check(size, **ids):
    pair = {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}
    views = [[None] * 2, [Encoded(**pair), Encoded(**pair)]]
    table = Stand(places=[4, 7], views=views)
    table.views[1][1] = Encoded(**(pair | ids))
    model = Stand(view=1, config=Stand(vocab_size=size))
    one = Stand(model=model, section=Stand(key="references.first"))
    tokenizers = Stand(views=[None, tokenizer])
    check_ids({"first": one}, tokenizers, {"train": table})

  check(SIZE)
  check(SIZE, **{side: []})  # supervised training reads no rejected ones
  check(SIZE, **{side: [0, SIZE - 1]})
  with pytest.raises(InputError) as info:
    check(SIZE, **{side: [0, SIZE]})
  for word in (
    "config.references.first: pair 7 of config.data.train",
    f"'<new>', id {SIZE}",
    f"only {SIZE} ids",
  ):
    assert word in str(info.value)
  check(SIZE + 1, **{side: [0, SIZE]})
