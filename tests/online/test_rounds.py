# SPDX-License-Identifier: Apache-2.0
"""Files of rounds: whole or not there, and whose they are."""

import shutil

import pytest

from mrpo_jax import files
from mrpo_jax.data import formats
from mrpo_jax.errors import InputError, StoppedRun
from mrpo_jax.online.pairs import Answered, Pair, Response, pair_of
from mrpo_jax.online.rounds import Rounds
from tests.material.logged import logged


def some(count=2):
  return [
    pair_of(
      Answered(
        n,
        f"\n\nHuman: question {n}?\n\nAssistant:",
        [1, n],
        [
          Response(f" answer {n}.", [2, 0], [-1.0, -2.0], [-1.0] * 2, "stop"),
          Response(" no.", [3, 0], [-2.0, -0.5], [-1.0] * 2, "stop"),
        ],
      ),
      [1.0, 0.25],
      "gold",
    )
    for n in range(count)
  ]


def test_a_round_reads_back_as_it_was_written(tmp_path):
  rounds = Rounds(tmp_path, "mark", Pair)
  assert rounds.read(0) is None
  rounds.write(0, some(), {"kl": 0.1})
  assert rounds.read(0) == (some(), {"kl": 0.1})
  rounds.write(0, some(1), {"kl": 0.2})
  assert rounds.read(0) == (some(1), {"kl": 0.2})
  assert [one.name for one in (tmp_path / "rounds").iterdir()] == ["0"]


def test_a_round_without_pairs_is_one_too(tmp_path):
  rounds = Rounds(tmp_path, "mark", Pair)
  rounds.write(0, [], {"ties": 1.0})
  assert rounds.read(0) == ([], {"ties": 1.0})


def test_the_pairs_of_a_round_are_a_data_set(tmp_path):
  Rounds(tmp_path, "mark", Pair).write(3, some(), {})
  pairs = [*formats.read(tmp_path / "rounds" / "3" / "pairs.jsonl")]
  assert [one.chosen for one in pairs] == [" answer 0.", " answer 1."]
  assert pairs[0].prompt.startswith("\n\nHuman: question 0?")


def test_rounds_of_another_run_are_made_anew_and_said(tmp_path):
  Rounds(tmp_path, "one", Pair).write(0, some(), {})
  with logged() as lines:
    assert Rounds(tmp_path, "other", Pair).read(0) is None
  assert "is of other settings; the round is made anew" in lines[0]


def test_a_round_that_is_gone_stops_a_run_within_it(tmp_path):
  with pytest.raises(
    StoppedRun, match="step 5, within round 2, whose pairs.jsonl is not"
  ):
    Rounds(tmp_path, "mark", Pair).require(2, 5)


@pytest.mark.parametrize("damage", ["cut", "word", "key"])
def test_a_damaged_round_is_refused(tmp_path, damage):
  rounds = Rounds(tmp_path, "mark", Pair)
  rounds.write(0, some(), {})
  path = tmp_path / "rounds" / "0" / "pairs.jsonl"
  text = path.read_text()
  if damage == "cut":
    path.write_text(text.split("\n")[0] + "\n")
  elif damage == "word":
    path.write_text("what?\n" + text)
  else:
    lines = files.read_lines(path)
    del lines[1]["chosen_ids"]
    files.write_lines(path, lines)
  with pytest.raises(InputError, match="pairs.jsonl is another"):
    rounds.read(0)


def test_a_round_in_the_place_of_another_is_refused(tmp_path):
  rounds = Rounds(tmp_path, "mark", Pair)
  rounds.write(0, some(), {})
  shutil.copytree(tmp_path / "rounds" / "0", tmp_path / "rounds" / "2")
  with pytest.raises(InputError, match="rounds/2 is not as it was written"):
    rounds.require(2, 5)
  (tmp_path / "rounds" / "0" / "round.json").write_text("{")
  with pytest.raises(InputError, match="put its files back, or remove it"):
    rounds.read(0)


def test_within_a_round_its_pairs_count_whatever_has_changed(tmp_path):
  Rounds(tmp_path, "one", Pair).write(1, some(), {"kl": 0.0})
  other = Rounds(tmp_path, "other", Pair)
  assert other.require(1, 3) == (some(), {"kl": 0.0})


def test_figures_of_a_round_can_be_completed(tmp_path):
  rounds = Rounds(tmp_path, "mark", Pair)
  rounds.write(0, some(), {"kl": 0.1})
  rounds.note(0, {"kl": 0.1, "gold_spent": 2})
  assert rounds.read(0) == (some(), {"kl": 0.1, "gold_spent": 2})
