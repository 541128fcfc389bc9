# SPDX-License-Identifier: Apache-2.0
"""Whole runs through the command: what they leave, resume and refuse."""

import json
import os
import random
import re
import shutil
import signal

import jax
import numpy as np
import pytest

from benchmarks import kill_training
from mrpo_jax import files, hub
from mrpo_jax.training import checkpoints
from mrpo_jax.training import step as steps
from mrpo_jax.training.held_out import HeldOut
from mrpo_jax.training.log import Log
from tests.material.config import CONFIG
from tests.material.runs import (
  ROOT,
  assert_equal_runs,
  files_of,
  lines_of,
  mrpo,
  on_one_device,
  state_of,
)

PROMISED = {
  "step",
  "loss",
  "rewards/chosen",
  "rewards/rejected",
  "rewards/accuracies",
  "rewards/margins",
  "logps/chosen",
  "logps/rejected",
  "tokens/real",
  "tokens/slots",
  "pairs",
  "dropped",
  "truncated",
  "seconds",
}


pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def train(inputs):
  """train(workdir, *overrides, run): exit code of eight steps on one device."""

  def command(workdir, *overrides, run="mrpo"):
    given = ("steps=8", "eval_every=4", "checkpoint_every=4")
    return mrpo(
      "train",
      f"--config={CONFIG}:{run},inputs={inputs}",
      f"--workdir={workdir}",
      f"--config.data.eval={inputs}/pairs.jsonl",
      *(f"--config.{one}" for one in given),
      *overrides,
    )

  return command


@pytest.fixture(scope="module")
def finished(train, shared):
  """An uninterrupted run of eight steps."""

  def run(folder):
    with on_one_device():
      assert train(folder / "mrpo") == 0

  return shared("finished", run) / "mrpo"


@pytest.mark.quick
def test_a_run_leaves_what_is_promised(finished):
  lines = lines_of(finished)
  assert [line["step"] for line in lines] == list(range(1, 9))
  for line in lines:
    assert line.keys() >= PROMISED
    assert all(np.isfinite(value) for value in line.values())
    assert 0 < line["tokens/real"] <= line["tokens/slots"]
    assert line["pairs"] == 8
  evaluated = [line["step"] for line in lines if "eval/loss" in line]
  assert evaluated == [4, 8]
  for kind in ("", "virtual/", "policy/", "policy_mean/"):
    assert f"eval/{kind}rewards/accuracies" in lines[-1]
  for name in ("base", "second"):
    assert f"references/{name}/responsibility" in lines[-1]
  assert json.loads((finished / "config.json").read_text())["steps"] == 8
  assert checkpoints.steps(finished) == [8, 4]
  assert list(finished.glob("events.out.tfevents.*"))


def test_every_figure_is_on_the_page_of_metrics(finished):
  page = (ROOT / "docs" / "guide" / "metrics.md").read_text("utf-8")
  for name in lines_of(finished)[-1]:
    own = re.sub("^(eval/)?((virtual|policy(_mean)?)/)?", "", name)
    if own.startswith("references/"):  # the page names their table
      own = "references/<name>/..."
    own = re.sub("^gradient_scale[_/].*", "gradient_scale", own)
    assert f"`{own}`" in page, name


def test_a_checkpoint_restores_without_a_target(finished):
  state = state_of(finished, 8)
  assert int(state["step"]) == 8
  assert state["params"]["embed"].shape[1] == 32


def test_a_finished_run_started_again_changes_nothing(
  train, finished, tmp_path, capsys
):
  workdir = shutil.copytree(finished, tmp_path / "run")
  before = files_of(workdir)
  assert train(workdir) == 0
  assert files_of(workdir) == before
  assert "finished before" in capsys.readouterr().out


def test_sigterm_saves_and_the_same_command_resumes_bit_equal(
  train, finished, tmp_path, monkeypatch, capsys
):
  workdir = tmp_path / "stopped"
  recorded = Log._record

  def record(self, step, *rest):
    if step == 2:  # step 3 is already on its way
      os.kill(os.getpid(), signal.SIGTERM)
    return recorded(self, step, *rest)

  monkeypatch.setattr(Log, "_record", record)
  assert train(workdir) == 0
  stopped_at = checkpoints.steps(workdir)[0]
  assert stopped_at in (2, 3)
  assert len(lines_of(workdir)) == stopped_at
  assert "the same command resumes" in capsys.readouterr().out
  monkeypatch.undo()
  assert train(workdir) == 0
  assert "resuming at step" in capsys.readouterr().out
  assert_equal_runs(finished, workdir, step=8)


@pytest.mark.slow
def test_killed_anywhere_the_same_command_ends_bit_equal(tmp_path, monkeypatch):
  # In processes of their own; `benchmarks/kill_training.py` has more of it.
  flags = os.environ["XLA_FLAGS"].replace("count=8", "count=1")
  monkeypatch.setenv("XLA_FLAGS", flags)
  steps, rng = 12, random.Random(0)
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  kill_training.write_pairs(tmp_path)
  assert kill_training.start(whole, steps).wait() == 0
  for kind, target in (("save", 2), ("step", 7)):
    kill_training.kill(killed, steps, kind, target, rng)
  assert kill_training.start(killed, steps).wait() == 0
  kill_training.compare(whole, killed, steps)


def test_a_broken_checkpoint_is_set_aside_and_the_older_one_used(
  train, finished, tmp_path, capsys
):
  workdir = tmp_path / "broken"
  shutil.copytree(finished, workdir)
  for path in (workdir / "checkpoints" / "8" / "state").rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  assert train(workdir) == 0
  said = capsys.readouterr().out
  assert "checkpoints/8 cannot be read" in said and "using step 4" in said
  assert_equal_runs(finished, workdir, step=8)


def test_one_flipped_bit_of_a_weight_is_noticed(
  train, finished, tmp_path, capsys
):
  workdir = tmp_path / "flipped"
  shutil.copytree(finished, workdir)
  # In `state/d` alone: what each process wrote holds parts nobody reads.
  data = (workdir / "checkpoints" / "8" / "state" / "d").iterdir()
  path = max(data, key=lambda path: path.stat().st_size)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 16
  path.write_bytes(content)
  assert train(workdir) == 0
  said = capsys.readouterr().out
  assert "checkpoints/8 cannot be read" in said
  assert_equal_runs(finished, workdir, step=8)


def test_weights_that_differ_from_their_checksum_are_not_exported(
  finished, tmp_path, monkeypatch, capsys
):
  meta = checkpoints.read_meta(finished / "checkpoints" / "8")
  meta["checksum"]["params"][0] ^= 1
  monkeypatch.setattr(checkpoints, "read_meta", lambda path: meta)
  to = tmp_path / "model"
  assert mrpo("export", f"--workdir={finished}", f"--to={to}") == 2
  error = capsys.readouterr().err
  assert "checkpoints/8: checkpoint cannot be read (its params" in error
  assert not to.exists()


def test_when_no_checkpoint_can_be_read_the_newest_is_named(
  train, finished, tmp_path, capsys
):
  workdir = tmp_path / "broken"
  shutil.copytree(finished, workdir)
  for path in (workdir / "checkpoints").rglob("*"):
    if path.is_file():
      path.write_bytes(b"")
  assert train(workdir) == 2
  assert "checkpoints/8" in capsys.readouterr().err
  assert checkpoints.steps(workdir) == [8, 4]


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_checkpoint(
  train, tmp_path, monkeypatch, capsys
):
  honest = steps.train_step

  def poisoned(state, *given, **more):
    state, metrics = honest(state, *given, **more)
    bad = state.step == 6
    metrics["loss"] = jax.numpy.where(bad, jax.numpy.nan, metrics["loss"])
    return state, metrics

  monkeypatch.setattr(steps, "train_step", poisoned)
  assert train(tmp_path, run="dpo") == 1
  error = capsys.readouterr().err
  assert error.startswith("error: loss is nan at step 6; the last checkpoint")
  assert error.endswith("is kept, of step 4\n")
  assert checkpoints.steps(tmp_path) == [4]
  assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_state_that_is_not_a_number_is_not_saved(
  train, tmp_path, monkeypatch, capsys
):
  """At the last step no loss shows it any more."""
  honest = steps.train_step

  def poisoned(state, *given, **more):
    state, metrics = honest(state, *given, **more)
    bad = jax.numpy.where(state.step == 8, jax.numpy.nan, 1.0)
    params = jax.tree.map(lambda x: x * bad.astype(x.dtype), state.params)
    return state.replace(params=params), metrics

  monkeypatch.setattr(steps, "train_step", poisoned)
  override = ("--config.data.eval=", "--config.eval_every=0")
  assert train(tmp_path, *override, run="dpo") == 1
  error = capsys.readouterr().err
  assert error.startswith("error: the state after step 8 has params[")
  assert error.endswith("the last checkpoint is kept, of step 4\n")
  assert checkpoints.steps(tmp_path) == [4]


def test_an_evaluation_that_is_not_a_number_stops_and_writes_nothing(
  train, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(
    HeldOut, "__call__", lambda *_: ({"loss": float("nan")}, [{}])
  )
  assert train(tmp_path, run="dpo") == 1
  error = capsys.readouterr().err
  assert error == (
    "error: eval/loss is nan at step 4; there is no checkpoint yet\n"
  )
  assert not (tmp_path / "eval_pairs.jsonl").exists()
  assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
  assert checkpoints.steps(tmp_path) == []


def test_a_wrong_start_stops_with_an_explanation(
  train, tmp_path, monkeypatch, capsys
):
  honest = steps.reference_figures

  def shifted(*given):
    figures = honest(*given)
    shift_BCK = jax.numpy.array([0.5, 0.0])[None, :, None]
    return figures.replace(ref_logp_BCK=figures.ref_logp_BCK + shift_BCK)

  monkeypatch.setattr(steps, "reference_figures", shifted)
  assert train(tmp_path, run="dpo") == 1
  error = capsys.readouterr().err
  assert "must be 0.693147" in error and "log-probabilities disagree" in error
  assert not lines_of(tmp_path)


def test_export_writes_the_trained_policy(finished, tmp_path, capsys):
  to = tmp_path / "model"
  assert mrpo("export", f"--workdir={finished}", f"--to={to}") == 0
  _, params = hub.load(to)
  want = state_of(finished, 8)["params"]
  for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(want), strict=True):
    np.testing.assert_array_equal(a, b)
  assert (to / "tokenizer.json").exists()
  card = (to / "README.md").read_text()
  assert card.startswith("---\nlibrary_name: transformers\ntags:\n- mrpo_jax\n")
  _, metrics, _, config, _ = re.split("```(?:json)?\n", card)
  assert json.loads(config) == json.loads(
    (finished / "config.json").read_text()
  )
  last = lines_of(finished)[-1]
  assert json.loads(metrics)["step"] == last["step"] == 8
  assert json.loads(metrics)["eval/loss"] == last["eval/loss"]
  assert mrpo("export", f"--workdir={finished}", f"--to={to}") == 2
  assert "exists" in capsys.readouterr().err


def test_export_takes_the_step_or_the_best(finished, tmp_path, capsys):
  workdir = tmp_path / "run"
  shutil.copytree(finished, workdir)
  config = files.read_json(workdir / "config.json")
  config["checkpoints"]["best"] = "eval/rewards/margins"
  files.write_json(workdir / "config.json", config)
  judged = {
    line["step"]: line.get("eval/rewards/margins", -1.0)
    for line in lines_of(workdir)
  }
  best = max(judged, key=judged.get)
  for which, step in (("4", 4), ("best", best)):
    to = tmp_path / which
    argv = ("export", f"--workdir={workdir}", f"--to={to}", f"--step={which}")
    assert mrpo(*argv) == 0
    assert f"step {step} of {workdir} is now {to}" in capsys.readouterr().out
    _, params = hub.load(to)
    want = state_of(finished, step)["params"]
    np.testing.assert_array_equal(params["embed"], want["embed"])
    assert f", step {step}\n" in (to / "README.md").read_text()
  assert mrpo("export", f"--workdir={workdir}", "--to=x", "--step=5") == 2
  assert "--step 5: no such checkpoint" in capsys.readouterr().err


def test_report_reads_the_runs_of_a_folder(finished, tmp_path, capsys):
  shutil.copytree(finished, tmp_path / "mrpo")
  assert mrpo("report", f"--workdir={tmp_path}") == 0
  results = json.loads((tmp_path / "results.json").read_text())
  last = lines_of(finished)[-1]
  assert results["mrpo"]["accuracy"] == pytest.approx(
    last["eval/rewards/accuracies"]
  )
  assert results["mrpo"]["margin"] == pytest.approx(
    last["eval/rewards/margins"], abs=1e-5
  )


def test_exported_models_train_as_paths(train, finished, tmp_path):
  model = tmp_path / "model"
  assert mrpo("export", f"--workdir={finished}", f"--to={model}") == 0
  workdir = tmp_path / "run"
  overrides = (
    f"--config.policy.path={model}",
    f"--config.references.base.path={model}",
    f"--config.references.second.path={model}",
    "--config.references.second.mode=online",
    "--config.steps=2",
  )
  assert train(workdir, *overrides) == 0
  # Both references are the policy's start: ln 2, checked at run time too.
  assert lines_of(workdir)[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
