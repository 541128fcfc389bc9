# SPDX-License-Identifier: Apache-2.0
"""What is checked before the first run of a sweep, and where runs stand."""

import json

import pytest

from mrpo_jax import files
from mrpo_jax.cli.flags import changed_config, changed_values
from mrpo_jax.errors import InputError
from mrpo_jax.sweeps import sweep as sweeps
from tests.material.runs import QUICKSTART, mrpo

CONFIG = f"{QUICKSTART}:dpo,debug"


@pytest.fixture
def checked(tmp_path):
  def checked(*varied, config=CONFIG, keys=(), part=(0, 1), workdir=tmp_path):
    return sweeps.checked(
      varied,
      workdir,
      config=config,
      keys=[*keys],
      part=part,
      values_of=changed_values,
    )

  return checked


def test_a_run_is_trained_by_the_command_that_one_would_type(checked, tmp_path):
  sweep = checked("loss.beta=0.1,1", "seed=0:2", keys=["--config.steps=4"])
  assert sweep.command(sweep.runs[1]) == [
    "train",
    f"--config={CONFIG}",
    "--config.steps=4",
    "--config.loss.beta=0.1",
    "--config.seed=1",
    f"--workdir={tmp_path}/loss.beta=0.1,seed=1",
    f"--store={tmp_path}/store",
  ]
  assert [*sweep.steps.values()] == [4] * 4
  assert not [*tmp_path.iterdir()]  # nothing is written


def test_an_argument_of_the_config_can_vary(checked):
  sweep = checked("config=dpo,mrpo", config=f"{QUICKSTART}:debug")
  assert [sweep.command(run)[1] for run in sweep.runs] == [
    f"--config={QUICKSTART}:debug,dpo",
    f"--config={QUICKSTART}:debug,mrpo",
  ]


def test_parts_share_the_runs(checked):
  whole = checked("seed=0:7").runs
  parts = [checked("seed=0:7", part=(i, 3)).runs for i in range(3)]
  assert sorted(run for part in parts for run in part) == sorted(whole)
  assert [len(part) for part in parts] == [3, 2, 2]


@pytest.mark.parametrize(
  "varied,given,match",
  [
    (["loss.beta=1,-1"], {}, "run loss.beta=-1: config.loss.beta must be pos"),
    (["loss.name=dpo,dpoo"], {}, "run loss.name=dpoo: config.loss: .*dpo"),
    (["los.name=dpo"], {}, "run los.name=dpo: config has no section 'los'"),
    (["seed=0,x"], {}, "run seed=x: config.seed must be of type int"),
    (["policy.path=/none"], {}, "run policy.path=%2Fnone: /none"),
    (["seed=0"], {"keys": ["--config.seed=1"]}, "are both given"),
    (["seed=0"], {"keys": ["-config.seed=1"]}, "are both given"),
    (
      ["optimizer.end_lr=0"],
      {"keys": ["--config.optimizer.end_lr_share=1"]},
      "are both given",
    ),
    (["loss.beta=1,1.0"], {}, "are the same run"),
    (["config=dpo,what"], {"config": f"{QUICKSTART}:debug"}, "unknown run"),
    (
      ["bandit.lr=1,2"],
      {"config": QUICKSTART.replace("quickstart", "mallows_bandit")},
      "only runs of language models are swept",
    ),
  ],
)
def test_a_run_that_cannot_be_is_named_before_the_first(
  checked, varied, given, match
):
  with pytest.raises(InputError, match=match):
    checked(*varied, **given)


def test_more_values_of_the_same_keys_join_and_keep_the_names(checked):
  checked("loss.beta=0.1", "seed=0").claim()
  more = checked("seed=5:7", "loss.beta=1")
  names = [run.name for run in more.runs]
  assert names == ["loss.beta=1,seed=5", "loss.beta=1,seed=6"]


def test_another_sweep_in_the_folder_is_refused(checked, tmp_path):
  checked("seed=0:2").claim()
  before = (tmp_path / "sweep.json").read_bytes()
  with pytest.raises(InputError, match="another sweep: steps: 8 -> 9"):
    checked("seed=0:2", keys=["--config.steps=9"])
  with pytest.raises(InputError, match="which varies seed; vary the same keys"):
    checked("loss.beta=1")
  assert (tmp_path / "sweep.json").read_bytes() == before


def test_a_sweep_of_before_a_key_was_there_goes_on(checked, tmp_path):
  checked("seed=0:2").claim()
  content = json.loads((tmp_path / "sweep.json").read_text())
  del content["config"]["data"]["limit"]
  files.write_json(tmp_path / "sweep.json", content)
  checked("seed=0:2")


@pytest.mark.parametrize(
  "key,value",
  [
    *(("vary", one) for one in (None, 1, "seed", [1], {"seed": 1})),
    *(("config", one) for one in (None, 1, "x", [])),
  ],
)
def test_a_sweep_whose_file_was_changed_is_refused_by_the_key(
  checked, tmp_path, key, value
):
  checked("seed=0:2").claim()
  content = json.loads((tmp_path / "sweep.json").read_text())
  files.write_json(tmp_path / "sweep.json", content | {key: value})
  with pytest.raises(InputError, match=f"sweep.json: '{key}' is not as it was"):
    checked("seed=0:2")


def test_a_folder_of_a_run_is_no_sweep(checked, tmp_path):
  files.write_json(tmp_path / "config.json", {})
  with pytest.raises(InputError, match="holds a run, no sweep"):
    checked("seed=0")


def test_a_folder_of_another_run_is_refused_by_name(checked, tmp_path):
  other = changed_config(CONFIG, ["--config.seed=1"]).to_dict()
  (tmp_path / "seed=0").mkdir()
  files.write_json(tmp_path / "seed=0" / "config.json", other)
  with pytest.raises(InputError, match="run seed=0: .*another run: seed: 1"):
    checked("seed=0")
  (tmp_path / "seed=0").rename(tmp_path / "seed=01")
  with pytest.raises(InputError, match="seed=1 and seed=01 are the same run"):
    checked("seed=1")


def test_a_run_that_is_longer_already_is_refused_by_name(checked, tmp_path):
  meta = tmp_path / "steps=4" / "checkpoints" / "30" / "meta"
  meta.mkdir(parents=True)
  files.write_json(meta / "metadata", {"step": 30})
  config = changed_config(CONFIG, ["--config.steps=4"]).to_dict()
  files.write_json(tmp_path / "steps=4" / "config.json", config)
  with pytest.raises(InputError, match="run steps=4: .* stands at step 30"):
    checked("steps=4")


def test_a_dry_run_lists_the_runs_and_writes_nothing(tmp_path, capsys):
  folder = tmp_path / "sweep"
  command = ("sweep", f"--config={CONFIG}", "--vary", "seed=0:2", "--dry-run")
  assert mrpo(*command, f"--workdir={folder}") == 0
  lines = capsys.readouterr().out.splitlines()
  assert [line.split() for line in lines[1:]] == [
    ["seed=0", "not", "begun"],
    ["seed=1", "not", "begun"],
  ]
  assert not folder.exists()


def test_a_sweep_without_a_grid_ends_with_2(tmp_path, capsys):
  workdir = f"--workdir={tmp_path}"
  assert mrpo("sweep", f"--config={CONFIG}", workdir) == 2
  assert "--vary is missing" in capsys.readouterr().err
