# SPDX-License-Identifier: Apache-2.0
"""The grid of a sweep: its values, and folders that no two runs share."""

import pytest

from mrpo_jax.errors import InputError
from mrpo_jax.sweeps.grid import axes_of, runs_of, safe


def names(*varied, order=()):
  return [run.name for run in runs_of(axes_of(varied), order)]


def test_values_stand_between_commas_and_ranges_lack_their_end():
  assert axes_of(["loss.beta=0.1,1", "seed=0:3,7", "config.steps=-1:1"]) == {
    "loss.beta": ["0.1", "1"],
    "seed": ["0", "1", "2", "7"],
    "steps": ["-1", "0"],
  }
  assert axes_of(["policy.quantize=,int8"]) == {"policy.quantize": ["", "int8"]}


def test_commas_in_brackets_and_quotes_separate_nothing():
  given = ["loss.weights=(1.0,0.0),(0.5,0.5)", "data.train='a,b',c"]
  assert axes_of(given) == {
    "loss.weights": ["(1.0,0.0)", "(0.5,0.5)"],
    "data.train": ["'a,b'", "c"],
  }


def test_the_grid_is_every_combination_and_the_last_key_is_the_fastest():
  assert names("loss.name=dpo,mrpo", "seed=0:2") == [
    "loss.name=dpo,seed=0",
    "loss.name=dpo,seed=1",
    "loss.name=mrpo,seed=0",
    "loss.name=mrpo,seed=1",
  ]
  (one, *_) = runs_of(axes_of(["config=dpo,mrpo", "seed=3"]))
  assert one.argument == "dpo" and one.flags == ("--config.seed=3",)


def test_the_folders_of_the_first_command_count_whatever_the_order():
  assert names("seed=1", "loss.beta=2", order=("loss.beta", "seed")) == [
    "loss.beta=2,seed=1"
  ]


@pytest.mark.parametrize(
  "value", ["/data/a.jsonl", "..", "a,b=c", "a b", "%2F", "ü", "", "*?", "\n"]
)
def test_a_value_is_a_part_of_one_name_and_can_be_read_back(value):
  from urllib.parse import unquote

  assert unquote(safe(value)) == value
  assert not {*safe(value)} & {*"/\\,=* ?:\n\"'<>|"}


def test_values_that_differ_in_odd_characters_have_folders_of_their_own():
  found = names('data.train="a/b","a%2Fb","a_b","a b",a')
  assert len({*found}) == 5


@pytest.mark.parametrize(
  "varied,match",
  [
    ([], "--vary is missing"),
    (["seed"], "want KEY=V1,V2"),
    (["=1,2"], "want KEY=V1,V2"),
    (["a b=1"], "want KEY=V1,V2"),
    (["../x=1"], "want KEY=V1,V2"),
    (["seed=1", "seed=2"], "seed is varied twice"),
    (["seed=1,2,1"], "the value '1' stands there twice"),
    (["seed=0:3,2"], "the value '2' stands there twice"),
    (["seed=3:3"], "holds 0 numbers"),
    (["seed=0:10001"], "holds 10,001 numbers"),
    (["seed=5:3"], "holds 0 numbers"),
    (["seed=0:99999999999999999"], "holds 99,999,999,999,999,999 numbers"),
    (["seed=0:" + "9" * 5000], "is no range of numbers that fit"),
    (["loss.weights=(1,2"], "[)] is missing"),
    (["data.train='a"], "' is missing"),
  ],
)
def test_what_is_no_grid_is_refused(varied, match):
  with pytest.raises(InputError, match=match):
    axes_of(varied)


@pytest.mark.parametrize(
  "varied,match",
  [
    (["seed=0:200", "steps=1:100"], "makes 19,800 runs; at most 10,000"),
    (["policy.path=" + "x" * 300], "too long for a folder"),
    (["policy.path=a,A"], "differ in case alone"),
  ],
)
def test_folders_that_a_disk_cannot_hold_are_refused(varied, match):
  with pytest.raises(InputError, match=match):
    names(*varied)
