# SPDX-License-Identifier: Apache-2.0
"""A column of rows that weighs the references: what is read, and refused."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from mrpo_jax.data import source
from mrpo_jax.data.reading.weights import WeightColumn
from mrpo_jax.errors import InputError

COLUMN = WeightColumn("route", ("base", "math", "code"))
ROW = dict(prompt="p", chosen="a", rejected="b")


def of(value):
  return COLUMN.of({"route": value}, "a.jsonl line 7")


def load(path, rows, column=COLUMN, **given):
  path.write_text("".join(json.dumps({**ROW, **row}) + "\n" for row in rows))
  return source.load(path, weights=column, **given)


@pytest.mark.parametrize(
  ("value", "want"),
  [
    ([1, 1, 2], (0.25, 0.25, 0.5)),
    ([0, 0.5, 0.0], (0.0, 1.0, 0.0)),
    ({"math": 3, "base": 1}, (0.25, 0.75, 0.0)),
    ({"math": 3, "base": 1, "code": None}, (0.25, 0.75, 0.0)),
    ([1e308, 1e308, 0], (0.5, 0.5, 0.0)),
    ([5e-324, 0, 5e-324], (0.5, 0.0, 0.5)),
  ],
)
def test_weights_of_a_row_sum_to_one(value, want):
  assert of(value) == pytest.approx(want, abs=0)


@pytest.mark.parametrize(
  ("value", "match"),
  [
    (None, "'route' must hold weights of the references, a list of 3 numbers"),
    ("0.5", "or an object by their names; it is '0.5'"),
    ([1, 2], r"holds 2 weights for 3 references \(base, math, code\)"),
    ([1, 2, 3, 4], "holds 4 weights"),
    ([1, -0.5, 0], "the weight of math is -0.5; want a number, not negative"),
    ([1, float("nan"), 0], "the weight of math is nan"),
    ([1, 0, float("inf")], "the weight of code is inf"),
    ([1, 0, 10**400], "the weight of code is 1000"),
    ([True, 0, 0], "the weight of base is True"),
    ([1, "2", 0], "the weight of math is '2'"),
    ([0, 0.0, 0], "all weights are 0"),
    ({}, "all weights are 0"),
    ({"maths": 1}, "'maths' is no reference of this run; did you mean math"),
  ],
)
def test_what_weighs_no_references_is_refused_with_its_row(value, match):
  with pytest.raises(InputError, match=f"a.jsonl line 7: .*{match}") as caught:
    of(value)
  assert "\n" not in str(caught.value)


def test_all_pairs_of_a_row_have_its_weights(tmp_path):
  ranked = dict(prompt="p", ranked=["a", "b", "c"], route={"code": 1})
  path = tmp_path / "ranked.jsonl"
  path.write_text(json.dumps(ranked) + "\n")
  pairs = source.load(path, weights=COLUMN)
  assert [pair.reference_weights for pair in pairs] == [(0.0, 0.0, 1.0)] * 3


def test_weights_stay_with_dialogues_that_become_turns(tmp_path):
  hh = "\n\nHuman: q\n\nAssistant:"
  row = dict(prompt=hh, chosen=" a", rejected=" b", route=[1, 0, 0])
  (pair,) = load(tmp_path / "a.jsonl", [row], conversations="hh")
  assert pair.prompt[0]["role"] == "user"
  assert pair.reference_weights == (1.0, 0.0, 0.0)


def test_a_row_without_the_column_is_named(tmp_path):
  with pytest.raises(InputError, match="a.jsonl line 2: 'route' .* is missing"):
    load(tmp_path / "a.jsonl", [{"route": [1, 0, 0]}, {}])


@pytest.mark.parametrize(
  "routes", [[[1, 0, 3], [0, 2, 2]], [{"base": 1, "code": 3}, {"math": 1}]]
)
def test_parquet_has_weights_as_json_has(tmp_path, routes):
  rows = [{**ROW, "route": one} for one in routes]
  want = load(tmp_path / "a.jsonl", rows)
  table = pyarrow.Table.from_pylist(rows)
  pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
  assert source.load(tmp_path / "a.parquet", weights=COLUMN) == want


def test_the_fingerprint_of_pairs_holds_their_weights(tmp_path):
  rows = [{"route": [1, 0, 0]}, {"route": [0, 1, 0]}]
  plain = source.fingerprint(load(tmp_path / "a.jsonl", rows, None))
  one = source.fingerprint(load(tmp_path / "b.jsonl", rows))
  other = source.fingerprint(load(tmp_path / "c.jsonl", rows[::-1]))
  assert len({plain, one, other}) == 3


def test_a_prepared_data_set_has_no_weights(tmp_path):
  path = tmp_path / "a.jsonl"
  load(path, [{"route": [1, 0, 0]}])
  prepared = source.prepare(path, tmp_path)
  with pytest.raises(InputError, match="keeps no column 'route'"):
    source.load(prepared, weights=COLUMN)
