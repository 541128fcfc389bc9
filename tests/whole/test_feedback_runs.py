# SPDX-License-Identifier: Apache-2.0
"""Runs on single responses with labels, through the command."""

import json
import math
import shutil

import pytest

from mrpo_jax import files
from tests.material.config import CONFIG
from tests.material.runs import lines_of, mrpo, untimed

pytestmark = pytest.mark.usefixtures("one_device")


def train(name, inputs, workdir, *overrides):
  config = f"--config={CONFIG}:{name},inputs={inputs}"
  return mrpo("train", config, f"--workdir={workdir}", *overrides)


def evaluated(inputs):
  return f"data.eval={inputs}/labelled.jsonl", "eval_every=5"


def test_kto_on_single_responses(inputs, tmp_path, capsys):
  workdir = tmp_path / "w"
  assert train("kto_unpaired", inputs, workdir, *evaluated(inputs)) == 0
  lines = lines_of(workdir)
  for line in lines:
    assert all(map(math.isfinite, line.values())), line
  assert lines[0]["loss"] == pytest.approx(0.5, abs=1e-5)
  assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-3)
  last = lines[-1]
  assert last["eval/desirable"] == 0.5
  assert 0.0 <= last["eval/rewards/auc"] <= 1.0
  assert last["eval/rewards/margins"] == pytest.approx(
    last["eval/rewards/chosen"] - last["eval/rewards/rejected"]
  )
  assert not any(name.startswith("eval/policy") for name in last)
  records = files.read_lines(workdir / "eval_pairs.jsonl")
  assert [one["desirable"] for one in records] == [True] * 40 + [False] * 40
  for one in records:
    assert one["tokens"][0] > 0 and one["tokens"][1] == 0
    assert one["policy"][1] == one["references"][0][1] == 0
  good = [one["policy"][0] for one in records[:40]]
  assert sum(good) / 40 == pytest.approx(last["eval/logps/chosen"], rel=1e-5)
  capsys.readouterr()
  # What ranks pairs says nothing of it.
  assert mrpo("report", f"--workdir={workdir}") == 0
  assert files.read_json(workdir / "results.json") != {}


@pytest.mark.parametrize(
  "name, data, message",
  [
    ("kto_unpaired", "pairs", "40 of 40 pairs have no label, true or false"),
    ("dpo", "labelled", "80 of 80 pairs have one response with a label"),
    ("kto", "labelled", "'kto_unpaired', 'apo_zero_unpaired' or 'bco_unpaire"),
    ("nll", "labelled", "80 of 80 pairs have one response with a label"),
    ("bco_unpaired", "both", "40 of 120 pairs have no label"),
    ("dpo", "both", "80 of 120 pairs have one response with a label"),
  ],
)
def test_rows_of_another_kind_are_refused(
  inputs, tmp_path, capsys, name, data, message
):
  given = f"{inputs}/{data}.jsonl"
  if data == "both":
    given = f"{inputs}/pairs.jsonl,{inputs}/labelled.jsonl"
  assert train(name, inputs, tmp_path / "w", f"data.train={given}") == 2
  error = capsys.readouterr().err.strip().splitlines()[-1]
  assert error.startswith("error: ") and message in error
  assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
  "override, message",
  [
    ("loss.weights=adaptive", "compare those of pairs"),
    ("data.weights=1,1", "are of 2 files"),
    ("data.fraction=0.01", "rows have one prompt"),
  ],
)
def test_what_single_responses_cannot_do_is_one_line(
  inputs, tmp_path, capsys, override, message
):
  assert train("kto_unpaired", inputs, tmp_path / "w", override) == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / "w").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kto_unpaired", "apo_zero_unpaired"])
def test_scored_references_give_the_losses_of_those_online(
  inputs, tmp_path, name
):
  other = (f"references.base.path={inputs}/second",)
  scored = ("references.base.mode=scored",)
  assert train(name, inputs, tmp_path / "online", *other) == 0
  assert train(name, inputs, tmp_path / "scored", *other, *scored) == 0
  online, found = (
    [line["loss"] for line in lines_of(tmp_path / kind)]
    for kind in ("online", "scored")
  )
  assert online == pytest.approx(found, abs=1e-5)
  assert online[0] != pytest.approx(0.5, abs=1e-4)


def test_a_pair_is_two_rows(inputs, tmp_path):
  pairs = (f"data.train={inputs}/pairs.jsonl", "data.unpair=True")
  once = ("steps=1", "batch=80")  # all rows, in whatever order
  for name, more in (("pairs", pairs), ("rows", ())):
    workdir = tmp_path / name
    assert train("apo_zero_unpaired", inputs, workdir, *more, *once) == 0
  one, two = (lines_of(tmp_path / name)[0] for name in ("pairs", "rows"))
  for figure in ("loss", "desirable", "logps/chosen", "grad_norm"):
    assert one[figure] == pytest.approx(two[figure], rel=1e-4), figure


def test_a_single_response_is_no_pair_to_split(inputs, tmp_path, capsys):
  assert train("kto_unpaired", inputs, tmp_path / "w", "data.unpair=True") == 2
  assert "pair 0 is a single response" in capsys.readouterr().err


@pytest.mark.slow
def test_a_mixture_of_references_with_other_tokenizers(inputs, tmp_path):
  workdir = tmp_path / "w"
  more = ("loss.mixture=harmonic", "loss.weights=1,2")
  assert train("kto_unpaired", f"{inputs},several", workdir, *more) == 0
  for line in lines_of(workdir):
    assert line["references/second/weight"] == pytest.approx(2 / 3)
    assert "references/base/distance/second" in line


@pytest.mark.slow
def test_the_mean_of_rewards_outlives_a_kill(inputs, tmp_path):
  every = "checkpoint_every=2"
  whole, resumed = tmp_path / "whole", tmp_path / "resumed"
  assert train("bco_unpaired", inputs, whole, every) == 0
  shutil.copytree(whole, resumed)
  shutil.rmtree(resumed / "checkpoints" / "5")  # as if killed before step 5
  assert train("bco_unpaired", inputs, resumed, every) == 0
  assert untimed(resumed) == untimed(whole)


def test_other_labels_are_other_data(inputs, tmp_path, capsys):
  rows = files.read_lines(inputs / "labelled.jsonl")
  rows[0]["label"] = not rows[0]["label"]
  path = tmp_path / "other.jsonl"
  path.write_text("\n".join(map(json.dumps, rows)))
  workdir, more = tmp_path / "w", (f"data.train={path}",)
  assert train("apo_zero_unpaired", inputs, workdir, "steps=1", *more) == 0
  rows[0]["label"] = not rows[0]["label"]
  path.write_text("\n".join(map(json.dumps, rows)))
  assert train("apo_zero_unpaired", inputs, workdir, "steps=1", *more) == 2
  assert "data.train" in capsys.readouterr().err


def test_weights_that_do_not_balance_the_labels_are_told(
  inputs, tmp_path, capsys
):
  more = ("steps=1", "loss.desirable_weight=2.0")
  assert train("apo_zero_unpaired", inputs, tmp_path / "w", *more) == 0
  said = capsys.readouterr().out
  assert "train: 40 of 80 responses are desirable" in said
  assert "80 to 40; between 1 and 4/3" in said
  assert "desirable_weight from 1 to 1.33, or undesirable_weight" in said
