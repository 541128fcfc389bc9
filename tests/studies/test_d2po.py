# SPDX-License-Identifier: Apache-2.0
"""The study of D2PO at debug sizes: its page says what its runs did."""

import re

import numpy as np
import pytest

from docs.studies.d2po import results, runs, study
from docs.studies.grid import models
from mrpo_jax import files
from tests.material.runs import files_of, on_one_device


@pytest.fixture(scope="module")
def grid(inputs):
  return runs.Grid(
    methods=("d2po", "gold_early", "static", "dpo"),
    seeds=(0,),
    gold=16,
    first=8,
    buy=2,
    every=2,
    rounds=8,
    start_rounds=2,
    batch=8,
    rates=(1e-3,),
    prompts=4,
    tuning_prompts=2,
    longest_prompt=10_000,
    max_prompt=64,
    max_new_tokens=8,
    row_length=128,
    reward_epochs=1,
    measured=2,
    # Of random words few are ever collected.
    reward="mrpo_jax.online.words:length",
    reward_options={"unit": "characters"},
    train=str(inputs / "pairs.jsonl"),
    held_out=str(inputs / "pairs.jsonl"),
  )


def test_all_methods_have_the_same_gold():
  grid = runs.Grid()
  assert grid.gold % grid.batch == 0 and grid.gold % grid.rounds == 0
  purchases = -(-grid.rounds // grid.every)
  assert grid.first + purchases * grid.buy == grid.gold == 2 * grid.first
  assert grid.methods == ("d2po", "gold_early", "gold_thin", "static", "dpo")


def test_the_rate_with_most_gold_is_taken_and_of_equal_ones_the_lowest():
  tuned = {("a", 0.3): 2, ("a", 0.1): 2, ("a", 0.2): 1, ("b", 0.2): 9}
  assert runs.best_rate(tuned, "a") == 0.1


def test_a_verdict_is_of_the_interval_alone():
  assert results.verdict((0.01, 0.2), 0.1) == results.HOLDS
  assert results.verdict((-0.2, 0.09), 0.1) == results.FAILS
  assert results.verdict((-0.2, 0.11), 0.1) == results.OPEN
  assert results.verdict((-0.05, 0.2), 0.1) == results.OPEN


class Rounds(results.Results):
  """Results of figures that are given."""

  def __init__(self, given):
    self._given = given

  def rounds(self, method, figure):
    return np.array(self._given[figure], float)


def test_accuracies_weigh_rounds_by_the_pairs_that_gold_orders():
  nan = float("nan")
  found = Rounds(
    {
      "discriminator/accuracy": [[1, 0.5] + [nan, 0.25] + [1] * 12],
      "discriminator/judged": [[1, 3] + [nan, 4] + [2] * 12],
    }
  )
  accuracy_RW = found.accuracies("d2po")
  np.testing.assert_allclose(accuracy_RW, [[2.5 / 4, 0.25, *[1] * 6]])
  value, _ = found.change("d2po")
  assert value == pytest.approx(1 - 2.5 / 4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, programs, inputs, grid):
  """(workdir, text of the page) of a study that was done, and done again."""
  pytest.importorskip("matplotlib")
  workdir = tmp_path_factory.mktemp("d2po")
  to = workdir / "page"
  for folder in (to, workdir / "models"):
    folder.mkdir()
  for name, model in zip(models.STARTS, ("base", "second"), strict=True):
    (workdir / "models" / name).symlink_to(inputs / model)
  with on_one_device():
    study.study(workdir, grid, to=to)
    before = files_of(workdir / "runs")
    study.study(workdir, grid, to=to)
  assert files_of(workdir / "runs") == before  # no run is repeated
  assert (to / "d2po.svg").stat().st_size
  return workdir, (to / "d2po.md").read_text()


def lines_of(workdir, name):
  return files.read_lines(workdir / "runs" / name / "metrics.jsonl")


@pytest.mark.slow
def test_the_page_has_what_the_policies_said(finished, grid):
  workdir, page = finished
  rows = [row.split(" | ") for row in re.findall(r"^\| (.*) \|$", page, re.M)]
  table = {row[0]: row for row in rows if len(row) == 9}
  for title, method, steps in (
    ("D2PO", "d2po", "8"),
    ("all gold, few rounds", "gold_early", "2"),
    ("static reward model", "static", "8"),
    ("offline DPO", "dpo", "8"),
  ):
    said = [
      [
        len(one["response"])
        for one in lines_of(workdir, f"{method},{seed}")[-1]["samples"]
      ]
      for seed in grid.seeds
    ]
    assert len(said[0]) == 4
    assert table[title][1:4] == [steps, "16", f"{np.mean(said):.2f}"]
    name = "after,dpo,0" if method == "dpo" else f"{method},0"
    kl = [one["kl"] for one in lines_of(workdir, name) if "kl" in one]
    assert table[title][6] == f"{np.mean(kl[-2:]):.1f}"
  assert [row[0] for row in rows if len(row) == 3][2:-5] == [
    "D2PO has more gold than all gold, few rounds",
    "D2PO has more gold than static reward model",
    "D2PO has more gold than offline DPO",
    "all gold, few rounds has more gold than static reward model",
    "static reward model has more gold than offline DPO",
    "the static model's accuracy decays",
    "the accuracy of D2PO's discriminator grows",
  ]


@pytest.mark.slow
def test_discriminators_start_from_gold_and_only_one_learns(finished, grid):
  workdir, _ = finished
  for method, part, pairs in (("d2po", "half", 1), ("static", "whole", 2)):
    folder = workdir / "runs" / f"{method},0"
    config = files.read_json(folder / "config.json")
    path = config["online"]["discriminator"]["path"]
    assert path == str(workdir / "models" / f"reward-{part},0")
    reward = files.read_json(workdir / "runs" / f"reward-{part},0/config.json")
    given = files.read_lines(reward["data"]["train"])
    rounds = {one["round"] for one in given}
    assert rounds == {*range(pairs)} and len(given) <= pairs * grid.first
    is_fitted = [
      "discriminator/fitted" in one for one in lines_of(workdir, f"{method},0")
    ]
    assert any(is_fitted) == (method == "d2po")
  first = lines_of(workdir, "first,0")
  assert first[-1]["gold_spent"] == grid.gold
  # The policies that are compared say the same before they are trained.
  said = [
    lines_of(workdir, f"{method},0")[0]["samples"] for method in grid.methods
  ]
  assert all(one == said[0] for one in said)
