# SPDX-License-Identifier: Apache-2.0
"""What may change when a run goes on, what may not, and what is recorded."""

import shutil

import pytest

from mrpo_jax import files
from mrpo_jax.errors import InputError
from mrpo_jax.runs.workdir import claim, refuse_other
from mrpo_jax.training import checkpoints
from mrpo_jax.training.step import VERSION
from tests.material.inputs import write_pairs
from tests.material.runs import (
  files_of,
  lines_of,
  mrpo,
  train_debug,
  untimed,
)


def train(workdir, *overrides):
  return train_debug(
    workdir,
    *(f"--config.data.train={workdir.parent}/pairs.jsonl", "--config.steps=4"),
    *("--config.data.eval=", "--config.checkpoint_every=2"),
    *overrides,
    run="dpo",
  )


def copy_of(done, folder):
  """The run again, as if its pairs had always been in that folder."""
  shutil.copy(done.parent / "pairs.jsonl", folder)
  workdir = shutil.copytree(done, folder / "run")
  config = workdir / "config.json"
  moved = config.read_text().replace(str(done.parent), str(folder))
  config.write_text(moved)
  return workdir


@pytest.fixture(scope="module")
def done(shared):
  """A run of four steps, saved after two and after four."""

  def run(folder):
    write_pairs(folder / "pairs.jsonl")
    assert train(folder / "run") == 0

  return shared("done", run) / "run"


@pytest.mark.parametrize(
  "override,match",
  [
    (
      ["--config.loss.beta=0.2", "--config.steps=9", "--config.log_every=2"],
      "run: loss.beta: 0.1 -> 0.2; steps: 4 -> 9; --allow-changed goes on",
    ),
    (["--config.seed=1"], "run: seed: 0 -> 1; seed cannot change"),
    (["--config.seed=1", "--allow-changed"], "seed cannot change"),
    (["--config.policy.new.layers=3", "--allow-changed"], "new.layers cannot"),
    (["--config.steps=3", "--allow-changed"], "stands at step 4"),
    (
      ["--config.loss.adaptive_beta=0.6", "--allow-changed"],
      ".method_state['margin'] is None there, float32[3] here",
    ),
  ],
)
def test_a_workdir_of_another_config_is_refused(
  done, tmp_path, capsys, override, match
):
  workdir = copy_of(done, tmp_path)
  before = files_of(workdir)
  assert train(workdir, *override) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and match in error
  assert files_of(workdir) == before


def test_other_data_in_the_same_place_is_refused(done, tmp_path, capsys):
  workdir = copy_of(done, tmp_path)
  write_pairs(tmp_path / "pairs.jsonl", skip=1)
  before = files_of(workdir)
  assert train(workdir) == 2
  assert "run: identity.data.train: '" in capsys.readouterr().err
  assert files_of(workdir) == before


def test_a_step_that_computes_something_else_is_refused(
  done, monkeypatch, capsys
):
  monkeypatch.setattr("mrpo_jax.runs.setup.VERSION", 0)
  assert train(done) == 2
  said = capsys.readouterr().err
  assert f"identity.code.steps: {VERSION} -> 0; --allow" in said


def test_what_changes_no_number_is_no_other_run(done, tmp_path, capsys):
  workdir = copy_of(done, tmp_path)
  before = files_of(workdir)
  unread = ("--config.log_every=2", "--config.checkpoints.keep=1")
  assert train(workdir, *unread) == 0
  assert "finished before" in capsys.readouterr().out
  assert files_of(workdir) == before


def test_a_damaged_tokenizer_is_not_exported_and_is_made_again(
  done, tmp_path, capsys
):
  workdir = copy_of(done, tmp_path)
  (workdir / "tokenizer-policy" / "tokenizer_config.json").unlink()
  to = tmp_path / "model"
  assert mrpo("export", f"--workdir={workdir}", f"--to={to}") == 2
  error = capsys.readouterr().err
  assert "tokenizer-policy: not the tokenizer that" in error
  assert not to.exists()
  assert train(workdir) == 0
  assert "tokenizer-policy is not used" in capsys.readouterr().out
  assert mrpo("export", f"--workdir={workdir}", f"--to={to}") == 0


@pytest.mark.slow
def test_a_change_that_is_allowed_is_recorded(done, tmp_path, capsys):
  workdir = copy_of(done, tmp_path)
  known = files.read_json(workdir / "config.json")
  override = ("--config.steps=6", "--config.loss.beta=0.2")
  assert train(workdir, *override, "--allow-changed") == 0
  said = capsys.readouterr().out
  for change in ("loss.beta: 0.1 -> 0.2", "steps: 4 -> 6"):
    assert f"from step 4 on {change}\n" in said
  assert [line["step"] for line in lines_of(workdir)] == [1, 2, 3, 4, 5, 6]
  assert untimed(workdir)[:4] == untimed(done)
  config = files.read_json(workdir / "config.json")
  before = files.read_json(workdir / "config-4.json")
  assert (config["steps"], config["loss"]["beta"]) == (6, 0.2)
  assert before == known
  meta = checkpoints.read_meta(workdir / "checkpoints" / "6")
  assert meta["config"] == config and meta["pairs"] == 6 * 8
  assert train(workdir, *override) == 0
  assert "finished before" in capsys.readouterr().out
  assert train(workdir) == 2
  assert "steps: 6 -> 4" in capsys.readouterr().err


@pytest.mark.slow
def test_another_mesh_goes_on_with_the_same_numbers(done, tmp_path, capsys):
  workdir = copy_of(done, tmp_path)
  shutil.rmtree(workdir / "checkpoints" / "4")
  assert train(workdir, "--config.mesh.fsdp=4") == 0
  said = capsys.readouterr().out
  for change in ("mesh.fsdp: 1 -> 4", "identity.mesh.data: 8 -> 2"):
    assert f"from step 2 on {change} (changes numbers by rounding" in said
  for one, other in zip(lines_of(done), lines_of(workdir), strict=True):
    assert one["step"] == other["step"]
    for name in ("loss", "grad_norm"):
      assert other[name] == pytest.approx(one[name], rel=1e-5, abs=1e-5)
  assert (workdir / "config-2.json").exists()


def test_changes_before_the_next_checkpoint_keep_the_first_config(tmp_path):
  for value in (1, 2, 3):
    claim(tmp_path, {"log_every": value}, step=5)
  assert files.read_json(tmp_path / "config.json") == {"log_every": 3}
  assert files.read_json(tmp_path / "config-5.json") == {"log_every": 1}


def test_how_a_reference_is_split_is_no_other_run(tmp_path):
  def run(rules, mode="online"):
    return {"references": {"base": {"rules": rules, "mode": mode}}}

  known = run({})
  refuse_other(tmp_path, run({"embed": "data"}), known, False)
  with pytest.raises(InputError, match="references.base.mode"):
    refuse_other(tmp_path, run({}, "scored"), known, False)
