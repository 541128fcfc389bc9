# SPDX-License-Identifier: Apache-2.0
"""Messages as objects, lists, columns, and in unions of all of these."""

import pyarrow
import pyarrow.parquet
import pytest

from mrpo_jax.data import formats
from mrpo_jax.data.formats import PreferencePair
from mrpo_jax.errors import InputError
from tests.material.rows import bot, only, user


def test_columns_of_messages_read_like_lists_of_messages():
  row = {
    "prompt": {"role": ["system", "user"], "content": ["S", "Sky?"]},
    "chosen": {"role": ["assistant"], "content": ["Blue."]},
    "rejected": {"from": ["gpt"], "value": ["Green."]},
  }
  pair = only(row)
  assert pair.prompt == [{"role": "system", "content": "S"}, user("Sky?")]
  assert (pair.chosen, pair.rejected) == ([bot("Blue.")], [bot("Green.")])
  with pytest.raises(InputError, match="^row 1: prompt is empty"):
    only(row | {"prompt": {"role": [], "content": []}})


@pytest.mark.parametrize(
  "more", [{"tool_calls": []}, {"name": None, "parts": ["a", "b"]}]
)
def test_one_message_is_one_message_whatever_lists_it_holds(more):
  row = {"prompt": "Sky?", "chosen": bot("Blue.") | more}
  row["rejected"] = {"from": "gpt", "value": "Green."} | more
  pair = PreferencePair([user("Sky?")], [bot("Blue.")], [bot("Green.")])
  assert only(row) == pair
  assert only(row | {key: [row[key]] for key in ("chosen", "rejected")}) == pair


def test_nulls_of_a_union_are_absent(tmp_path):
  rows = [
    {
      "conversations": [{"from": "human", "value": "Sky?"}],
      "chosen": {"from": "gpt", "value": "Blue."},
      "rejected": {"from": "gpt", "value": "Green."},
    },
    {
      "prompt": [user("Sky?")],
      "chosen": bot("Blue.") | {"tool_calls": []},
      "rejected": bot("Green."),
    },
    {"messages": [user("Sky?")], "responses": ["Blue.", "Green."]}
    | {"scores": [2, 1]},
  ]
  path = tmp_path / "a.parquet"
  keys = dict.fromkeys(key for row in rows for key in row)
  columns = {key: [row.get(key) for row in rows] for key in keys}
  pyarrow.parquet.write_table(pyarrow.table(columns), path)
  pair = PreferencePair([user("Sky?")], [bot("Blue.")], [bot("Green.")])
  assert list(formats.read(path)) == [pair] * 3


def test_columns_of_messages_may_be_null():
  row = {
    "prompt": {"role": ["user"], "content": ["Sky?"], "from": None},
    "chosen": {"role": None, "from": ["gpt"], "value": ["Blue."]},
    "rejected": {"role": ["assistant"], "content": ["Green."], "name": [None]},
  }
  pair = PreferencePair([user("Sky?")], [bot("Blue.")], [bot("Green.")])
  assert only(row) == pair
