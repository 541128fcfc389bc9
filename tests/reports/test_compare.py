# SPDX-License-Identifier: Apache-2.0
"""Results of several runs, from files made by hand."""

import json

import pytest

from mrpo_jax import files
from mrpo_jax.errors import InputError
from mrpo_jax.reports import compare
from mrpo_jax.training.log import Metrics
from tests.material.logged import logged


def make_run(folder, margins, beta=0.5, first=0):
  folder.mkdir()
  pairs = [
    dict(
      pair=first + i,
      policy=[-1.0 + m, -2.0],
      references=[[-1.0, -2.0]],
      tokens=[1],
    )
    for i, m in enumerate(margins)
  ]
  files.write_lines(folder / "eval_pairs.jsonl", pairs)
  files.write_json(folder / "config.json", dict(loss=dict(beta=beta)))
  lines = [
    {
      "step": s,
      "pairs": 8,
      "seconds": t,
      "tokens/real": 90,
      "tokens/slots": 100,
    }
    for s, t in ((1, 50.0), (2, 2.0), (3, 1.0), (4, 4.0))
  ]
  files.write_lines(folder / "metrics.jsonl", lines)


def test_a_run_by_hand(tmp_path):
  make_run(tmp_path / "dpo", [1.0, 3.0, -2.0, 0.0])
  text = compare.compare(tmp_path)
  results = json.loads((tmp_path / "results.json").read_text())
  dpo = results["dpo"]
  assert dpo["accuracy"] == 0.5  # 0 is not larger
  assert dpo["margin"] == pytest.approx(0.5 * 0.5)
  assert dpo["pairs_per_second"] == 4.0  # the first step is left out
  assert dpo["real_token_share"] == pytest.approx(0.9)
  low, high = dpo["interval"]
  assert 0.0 <= low < 0.5 < high <= 1.0
  assert text.splitlines()[1].split()[:2] == ["dpo", "0.500"]


def test_runs_are_compared_on_the_pairs_that_all_evaluated(tmp_path):
  make_run(tmp_path / "dpo", [1.0, 1.0, -1.0])
  make_run(tmp_path / "mrpo", [1.0, -1.0, -1.0], first=1)
  compare.compare(tmp_path)
  results = json.loads((tmp_path / "results.json").read_text())
  assert [r["held_out_pairs"] for r in results.values()] == [2, 2]
  assert [r["accuracy"] for r in results.values()] == [0.5, 0.5]


def test_runs_without_a_common_pair_are_refused(tmp_path):
  make_run(tmp_path / "dpo", [1.0])
  make_run(tmp_path / "mrpo", [1.0], first=1)
  with pytest.raises(InputError, match="share no held-out pair"):
    compare.compare(tmp_path)


def test_a_supervised_run_is_left_out(tmp_path):
  make_run(tmp_path / "dpo", [1.0])
  make_run(tmp_path / "sft", [1.0])
  pairs = files.read_lines(tmp_path / "sft" / "eval_pairs.jsonl")
  pairs = [{**pair, "references": []} for pair in pairs]
  files.write_lines(tmp_path / "sft" / "eval_pairs.jsonl", pairs)
  compare.compare(tmp_path)
  assert list(json.loads((tmp_path / "results.json").read_text())) == ["dpo"]


def test_nothing_to_report_is_said(tmp_path):
  with pytest.raises(InputError, match="no run that was evaluated"):
    compare.compare(tmp_path)


def test_the_interval_covers_as_often_as_it_says(rng):
  # 200 samples of 100 coins each: the true 0.5 lies inside about 95 %.
  inside = 0
  for seed in range(200):
    coins = rng.random(100) < 0.5
    low, high = compare.bootstrap_interval(coins, seed=seed, samples=400)
    inside += low <= 0.5 <= high
  assert 180 <= inside <= 199


def test_a_line_cut_short_is_left_out(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1}\n{"step": 2}\n{"st')
  assert [line["step"] for line in files.read_lines(path)] == [1, 2]


def test_metrics_keep_the_lines_up_to_the_restored_step(tmp_path):
  with logged() as said:
    first = Metrics(tmp_path, step=0)
    for step in (1, 2, 3):
      first.write(step, {"loss": 0.5})
    first.close()
    again = Metrics(tmp_path, step=2)
    again.write(3, {"loss": 0.25})
    again.close()
  lines = files.read_lines(tmp_path / "metrics.jsonl")
  assert [line["step"] for line in lines] == [1, 2, 3]
  assert lines[-1]["loss"] == 0.25
  assert list(tmp_path.glob("events.out.tfevents.*"))
  assert not said


def test_a_file_is_replaced_whole(tmp_path, monkeypatch):
  path = tmp_path / "results.json"
  files.write_json(path, {"a": 1})

  def fail(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(files.os, "fsync", fail)
  with pytest.raises(OSError, match="No space"):
    files.write_json(path, {"a": 2})
  assert json.loads(path.read_text()) == {"a": 1}
