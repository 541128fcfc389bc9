# SPDX-License-Identifier: Apache-2.0
"""Shares of the training pairs: nested, by the seed, whatever their order."""

import json
import logging

import pytest

from mrpo_jax.data.formats import PreferencePair
from mrpo_jax.errors import InputError
from mrpo_jax.runs.config import read
from mrpo_jax.runs.data import subset
from mrpo_jax.runs.setup import set_up
from tests.material.config import get_config

PAIRS = [PreferencePair(f"prompt {i}", "yes", f"no {i}") for i in range(200)]
FRACTIONS = (0.005, 0.01, 0.013, 0.1, 0.1234, 0.25, 0.5, 0.777, 0.99, 1.0)


def config_of(seed=0, **data):
  values = get_config("inputs=none").to_dict()
  return read({**values, "seed": seed, "data": {**values["data"], **data}})


def places(pairs=PAIRS, **given):
  return subset(config_of(**given), pairs)


@pytest.mark.parametrize("seed", range(5))
def test_a_smaller_share_lies_in_a_larger_one(seed):
  found = [places(seed=seed, fraction=share) for share in FRACTIONS]
  for small, large in zip(found, found[1:], strict=False):
    assert {*small} < {*large} and large == sorted(large)
  assert [len(one) for one in found] == [round(200 * f) for f in FRACTIONS]
  assert {*places(seed=seed, limit=7)} < {*places(seed=seed, limit=8)}


def test_a_limit_and_a_share_take_from_one_sequence():
  assert places(limit=20) == places(fraction=0.1)
  assert places(limit=20, fraction=0.5) == places(limit=20)
  assert places(limit=150, fraction=0.5) == places(fraction=0.5)
  assert places(limit=1000) == list(range(200))


def test_another_seed_has_other_pairs():
  found = {tuple(places(seed=seed, fraction=0.1)) for seed in range(20)}
  assert len(found) == 20
  # Each pair is as likely as any other: 20 seeds of 20 of 200 are 2 a pair.
  assert len({place for one in found for place in one}) > 150


def test_the_order_of_the_file_does_not_matter():
  chosen = {PAIRS[place].prompt for place in places(fraction=0.1)}
  turned = PAIRS[::-1]
  again = {turned[p].prompt for p in places(pairs=turned, fraction=0.1)}
  assert chosen == again


def test_pairs_that_stand_twice_count_twice():
  assert len(places(pairs=PAIRS[:10] * 2, fraction=0.5)) == 10


def test_the_share_is_said(caplog):
  with caplog.at_level(logging.INFO, "mrpo_jax"):
    places(pairs=PAIRS * 10, fraction=0.01)
    places()
  said = [record.getMessage() for record in caplog.records]
  assert said == ["training on 20 of 2,000 pairs"]


def test_a_share_without_a_pair_is_refused():
  with pytest.raises(InputError, match="0.002 of the 200 pairs of .* none"):
    places(fraction=0.002)


@pytest.mark.parametrize(
  "key,value,match",
  [
    ("fraction", 0.0, "fraction must be more than 0 and at most 1"),
    ("fraction", 1.01, "fraction must be more than 0 and at most 1"),
    ("fraction", float("nan"), "fraction must be a finite number"),
    ("limit", -1, "limit must not be negative"),
  ],
)
def test_what_is_no_share_is_refused(key, value, match):
  with pytest.raises(InputError, match=f"config.data.{match}"):
    config_of(**{key: value})


def test_all_of_them_is_the_config_of_before():
  whole = config_of().to_dict()
  assert {"fraction", "limit"}.isdisjoint(whole["data"])
  assert config_of(fraction=1.0, limit=0).to_dict() == whole
  part = config_of(fraction=0.1, limit=3)
  assert part.to_dict()["data"]["fraction"] == 0.1
  assert part.to_dict()["data"]["limit"] == 3
  assert read(part.to_dict()) == part


def set_up_of(inputs, tmp_path, **data):
  values = get_config(f"inputs={inputs}").to_dict()
  values["data"] |= data
  return set_up(read(values), tmp_path)


@pytest.mark.usefixtures("one_device")
def test_a_run_reads_its_share_under_the_numbers_of_the_file(inputs, tmp_path):
  whole = set_up_of(inputs, tmp_path)
  same = set_up_of(inputs, tmp_path, fraction=1.0)
  assert same.identity == whole.identity
  assert same.tables["train"] == whole.tables["train"]
  part = set_up_of(inputs, tmp_path, fraction=0.25)
  table, all_of_it = part.tables["train"], whole.tables["train"]
  assert len(table.places) <= 10 and {*table.places} < {*all_of_it.places}
  for place, mark in zip(table.places, table.fingerprints, strict=True):
    assert all_of_it.fingerprints[all_of_it.places.index(place)] == mark
  assert part.identity["data.train"] != whole.identity["data.train"]
  assert part.identity["policy.tokenizer"] == whole.identity["policy.tokenizer"]


@pytest.mark.usefixtures("one_device")
def test_an_epoch_is_of_the_pairs_that_are_kept(inputs, tmp_path):
  rows = (inputs / "pairs.jsonl").read_text().splitlines()[:20]
  empty = json.dumps({**json.loads(rows[0]), "chosen": "", "rejected": ""})
  path = tmp_path / "pairs.jsonl"
  path.write_text("\n".join([*rows, *[empty] * 20]))
  values = get_config(f"inputs={inputs}").to_dict()
  values["data"] |= dict(train=str(path))
  values |= dict(steps=0, epochs=2.0, batch=8)
  setup = set_up(read(values), tmp_path / "w")
  kept, dropped = len(setup.tables["train"].places), 20
  assert setup.tables["train"].dropped == dropped and kept == 20
  assert setup.config.steps == 2 * kept // 8 and setup.config.epochs == 0
