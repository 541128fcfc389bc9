# SPDX-License-Identifier: Apache-2.0
"""Pairs of a policy's own responses: who wins, and what is known of them."""

import json
import math

import pytest

from mrpo_jax.online.pairs import (
  Answered,
  Pair,
  Response,
  agreement,
  distinct,
  figures,
  pair_of,
  reward_figures,
)

TURNS = [{"role": "user", "content": "Which bird?"}]


def answered(*texts, prompt="Which bird?", finish="stop"):
  responses = [
    Response(text, [n, 7], [-1.5 * n, -1.0], [-1.0, -1.0], finish)
    for n, text in enumerate(texts)
  ]
  return Answered(3, prompt, [5, 6], responses)


def test_the_best_and_the_worst_of_several_are_the_pair():
  found = pair_of(answered("a", "b", "c", "d"), [1.0, 3.0, 0.5, 3.0], "gold")
  assert (found.chosen.text, found.rejected.text) == ("b", "c")
  assert (found.chosen.reward, found.rejected.reward) == (3.0, 0.5)


def test_equal_rewards_are_no_pair():
  assert pair_of(answered("a", "b"), [2.0, 2.0], "gold") is None


@pytest.mark.parametrize("prompt", ["Which bird?", TURNS])
def test_a_line_says_who_said_and_who_labelled_and_reads_back(prompt):
  pair = pair_of(answered("an owl", "a gull", prompt=prompt), [0.1, 2.0], "r")
  line = json.loads(json.dumps(pair.line(4)))
  assert line["round"] == 4 and line["index"] == 3
  assert line["labelled_by"] == "r" and line["chosen_ids"] == [1, 7]
  assert line["prompt_ids"] == [5, 6] and line["rejected_reward"] == 0.1
  if prompt is TURNS:
    assert line["chosen"] == [{"role": "assistant", "content": "a gull"}]
  again = Pair.of(line)
  assert again.line(4) == line and again.encoded() == pair.encoded()
  assert again.texts() == pair.texts()


def test_the_policys_own_ids_are_trained_on():
  found = pair_of(answered("x", "y"), [1.0, 0.0], "r").encoded()
  assert found.prompt_ids == [5, 6]
  assert (found.chosen_ids, found.rejected_ids) == ([0, 7], [1, 7])
  assert found.characters == (1, 1)


def test_a_response_that_had_to_end_has_no_end_for_other_tokenizers():
  cut = pair_of(answered("ab", "c", finish="length"), [1.0, 0.0], "r").cut()
  assert (cut.chosen, cut.rejected) == (2, 1)
  assert not pair_of(answered("ab", "c"), [1.0, 0.0], "r").cut()


def test_a_line_of_something_else_is_refused():
  line = pair_of(answered("x", "y"), [1.0, 0.0], "r").line(0)
  for key in line.keys() - {"round"}:
    with pytest.raises(KeyError):
      Pair.of({name: one for name, one in line.items() if name != key})


def test_distinct_counts_neighbours_over_all_texts():
  # a b, b a, a b | a b: two of four.
  assert distinct(["a b a b", "A B"], 2) == 0.5
  assert distinct(["a b a b", "A B"], 1) == 2 / 6
  assert distinct(["a", ""], 2) == 1.0


def test_figures_are_means_over_responses():
  found = figures(
    [answered("a b c", "a b"), answered("d", "", finish="length")]
  )
  assert found["length/mean"] == 2.0 and found["ended"] == 0.5
  assert found["distinct_2"] == 2 / 3
  assert reward_figures([1.0, 3.0]) == {"reward/mean": 2.0, "reward/sd": 1.0}


def test_agreement_leaves_out_what_the_other_ties():
  mine = [(1.0, 0.0), (0.0, 1.0), (2.0, 2.0), (1.0, 0.0)]
  gold = [(5.0, 1.0), (5.0, 1.0), (1.0, 0.0), (3.0, 3.0)]
  assert agreement(mine, gold) == (0.5, 3)
  share, count = agreement([], [])
  assert not count and not math.isnan(share)
