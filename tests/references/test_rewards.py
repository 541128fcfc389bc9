# SPDX-License-Identifier: Apache-2.0
"""Columns of rewards in the store: filled once, found by the pair alone."""

import errno
import json

import numpy as np
import pytest

from mrpo_jax import cli, files
from mrpo_jax.data import source
from mrpo_jax.data.formats import PreferencePair
from mrpo_jax.errors import InputError
from mrpo_jax.references import maintenance, rewards
from mrpo_jax.references.store import MissingRows
from tests.references.test_store import filled, names

MATERIAL = {"reward": "own:length", "script": "ab", "options": {}}
PAIRS = [PreferencePair(f"q{n}", "a" * n, "b") for n in range(7)]
IDS = [source.pair_id(pair) for pair in PAIRS]


def length(prompts, responses):
  length.asked += [*zip(prompts, responses, strict=True)]
  return [float(len(one)) for one in responses]


@pytest.fixture
def column(tmp_path, monkeypatch):
  monkeypatch.setattr(rewards, "BLOCK", 3)
  length.asked = []
  return rewards.RewardColumn(tmp_path, MATERIAL)


def test_what_is_filled_is_read_in_any_order_and_asked_for_once(column):
  assert rewards.fill(column, length, PAIRS, IDS) == 7
  assert length.asked[:2] == [("q0", ""), ("q0", "b")]
  order = [6, 0, 6]
  got = column.read([IDS[n] for n in order])
  # Pair n: n letters and one.
  np.testing.assert_array_equal(got, [[6, 1], [0, 1], [6, 1]])
  assert got.dtype == np.float64
  count = len(length.asked)
  assert rewards.fill(column, length, PAIRS, IDS) == 0
  assert len(length.asked) == count == 14


def test_blocks_are_whole_and_shares_divide_them(column):
  assert rewards.fill(column, length, PAIRS, IDS, part=(1, 2)) == 3
  assert column.known() == {*IDS[3:6]}
  assert rewards.fill(column, length, PAIRS, IDS, part=(0, 2)) == 4
  assert len(list(column.folder.glob("*.parquet"))) == 3


def test_a_pair_that_recurs_is_asked_for_once(column):
  twice = [*PAIRS, *PAIRS]
  assert rewards.fill(column, length, twice, [*IDS, *IDS]) == 7


def test_what_fails_keeps_the_blocks_before_it(column):
  def dies(prompts, responses):
    if "q4" in prompts:
      raise InputError("tired")
    return length(prompts, responses)

  with pytest.raises(InputError, match="tired"):
    rewards.fill(column, dies, PAIRS, IDS)
  assert column.known() == {*IDS[:3]}
  assert rewards.fill(column, length, PAIRS, IDS) == 4
  # The same neighbours as if nothing had happened.
  assert [prompt for prompt, _ in length.asked[6:12:2]] == ["q3", "q4", "q5"]


def test_nothing_is_asked_where_nothing_can_be_written(column, monkeypatch):
  def read_only(*_, **__):
    raise OSError(errno.EROFS, "Read-only file system")

  with monkeypatch.context() as patch:
    patch.setattr(files, "write_atomically", read_only)
    with pytest.raises(OSError, match="Read-only"):
      rewards.fill(column, length, PAIRS, IDS)
  assert not length.asked
  assert rewards.fill(column, length, PAIRS[:3], IDS[:3]) == 3
  length.asked = []
  monkeypatch.setattr(files, "refuse_read_only", read_only)  # it has rows now
  with pytest.raises(OSError, match="Read-only"):
    rewards.fill(column, length, PAIRS, IDS)
  assert not length.asked
  assert rewards.fill(column, length, PAIRS[:3], IDS[:3]) == 0


def test_a_pair_without_a_reward_is_named(column):
  rewards.fill(column, length, PAIRS[:2], IDS[:2])
  with pytest.raises(MissingRows) as error:
    column.read(IDS[:4])
  assert error.value.indices == [2, 3]


@pytest.mark.parametrize("name", MATERIAL)
def test_another_program_is_another_column(column, name):
  other = rewards.RewardColumn(column.root, {**MATERIAL, name: "other"})
  rewards.fill(column, length, PAIRS, IDS)
  assert other.known() == set()


@pytest.mark.parametrize(
  ("pair", "match"),
  [
    (PreferencePair("q", "a", None), "pair 0 has no rejected response"),
    (PreferencePair("q", "a", "b", tools=[{}]), "pair 0 has tools"),
    (
      PreferencePair([], [{"role": "assistant", "content": "a"}] * 2, []),
      "pair 0: the chosen response is more than one turn",
    ),
  ],
)
def test_pairs_that_no_reward_is_for_are_refused(column, pair, match):
  with pytest.raises(InputError, match=match):
    rewards.fill(column, length, [pair], ["id"])
  assert not column.folder.exists()


def test_no_number_that_is_none_is_written(column):
  with pytest.raises(ValueError, match="not finite"):
    column.write(IDS[:1], [[np.nan, 1.0]])
  with pytest.raises(ValueError, match="1 pairs, rewards .1, 3."):
    column.write(IDS[:1], [[0.0, 1.0, 2.0]])
  assert not column.folder.exists()


# Beside scores in one store.


def test_maintenance_knows_columns(column, tmp_path, capsys):
  rewards.fill(column, length, PAIRS, IDS)
  scores = filled(tmp_path)
  assert scores.known() == {*names((1, 2, 3))}
  entries = {one["key"]: one for one in maintenance.entries(tmp_path)}
  assert entries[column.folder.name]["pairs"] == 7
  assert entries[scores.key]["pairs"] == 3
  assert maintenance.verify(tmp_path) == []
  to = tmp_path / "rows.jsonl"
  maintenance.export(tmp_path, column.folder.name, to)
  rows = [json.loads(line) for line in to.read_text().splitlines()]
  assert [row["pair"] for row in rows] == sorted(IDS)
  by_pair = {row["pair"]: row for row in rows}
  assert by_pair[IDS[5]]["reward_chosen"] == 5.0
  assert cli.main(["store", "ls", f"--store={tmp_path}"]) == 0
  assert "own:length" in capsys.readouterr().out


def test_a_broken_file_of_rewards_is_found_and_removed(column, tmp_path):
  rewards.fill(column, length, PAIRS, IDS)
  first = sorted(column.folder.glob("*.parquet"))[0]
  first.write_bytes(first.read_bytes()[:-1] + b"x")
  (problem,) = maintenance.verify(tmp_path)
  assert first.name in problem
  with pytest.raises(InputError, match="mrpo store prune removes them"):
    column.read(IDS)
  assert maintenance.prune(tmp_path) == [first]
  assert 0 < rewards.fill(column, length, PAIRS, IDS) <= 3


def test_scores_in_the_folder_of_a_column_are_not_read_as_rewards(column):
  rewards.fill(column, length, PAIRS[:3], IDS[:3])
  one = filled(column.root, weights="other")
  (shard,) = one.folder.glob("*.parquet")
  shard.rename(column.folder / shard.name)
  assert column.known() == {*IDS[:3]}
