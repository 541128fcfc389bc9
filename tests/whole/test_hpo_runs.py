# SPDX-License-Identifier: Apache-2.0
"""Whole runs that follow rewards of the responses, scored once."""

import json
import shutil
import sys

import numpy as np
import pytest

from mrpo_jax import files
from mrpo_jax.data import formats
from mrpo_jax.references import maintenance
from tests.material.config import CONFIG
from tests.material.runs import assert_equal_runs, lines_of, mrpo, state_of

pytestmark = [pytest.mark.usefixtures("one_device"), pytest.mark.slow]
# Answers with the length in characters, and keeps count of its questions.
PROGRAM = """
import json, pathlib, sys
for line in sys.stdin:
  asked = json.loads(line)
  with open("asked", "a") as file:
    file.write(".")
  print(json.dumps({"reward": len(asked["response"]) / 1000}), flush=True)
"""
REWARD = "--config.data.rewards.words.reward"


def command(name, inputs, workdir, *flags, loss="hpo", code=0):
  done = mrpo(
    name,
    f"--config={CONFIG}:{loss},inputs={inputs}",
    f"--workdir={workdir}",
    "--config.checkpoint_every=2",
    *flags,
  )
  assert done == code
  return workdir


@pytest.fixture
def program(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "judge.py").write_text(PROGRAM)
  return f"command:{sys.executable} judge.py"


def asked(folder):
  path = folder / "asked"
  return len(path.read_text()) if path.exists() else 0


def test_a_run_scores_its_rewards_and_resumes_bit_for_bit(inputs, tmp_path):
  held_out = (f"--config.data.eval={inputs}/few.jsonl", "--config.eval_every=2")
  one = command("train", inputs, tmp_path / "one", *held_out)
  two = shutil.copytree(one, tmp_path / "two")
  for step in (4, 5):
    shutil.rmtree(two / f"checkpoints/{step}", ignore_errors=True)
  command("train", inputs, two, *held_out)
  assert_equal_runs(one, two, 5)
  state = state_of(one, 5)["method_state"]
  assert state["steps"] == 5
  weights = state["value"]["params"]["layer_2"]["weight"]
  assert weights.shape == (16, 1) and np.abs(weights).max() > 0
  lines = lines_of(one)
  assert {"auxiliary/chosen", "auxiliary/value"} <= lines[0].keys()
  assert lines[0]["auxiliary/value"] == 0.0 != lines[-1]["auxiliary/value"]
  assert "eval/auxiliary/rejected" in lines[1]
  pairs = list(formats.read(inputs / "few.jsonl"))
  words = [
    np.mean([len(getattr(pair, side).split()) for pair in pairs])
    for side in ("chosen", "rejected")
  ]
  # The shipped reward counts words; the config weighs them by 0.001.
  got = [lines[1][f"eval/auxiliary/{side}"] for side in ("chosen", "rejected")]
  np.testing.assert_allclose(got, 0.001 * np.array(words), rtol=1e-5)


def test_the_model_folder_has_no_value_network(inputs, tmp_path):
  run = command("train", inputs, tmp_path / "run", "--config.steps=2")
  assert mrpo("export", f"--workdir={run}", f"--to={tmp_path / 'm'}") == 0
  names = files.read_json(tmp_path / "m" / "config.json")
  assert names["architectures"] == ["LlamaForCausalLM"]


def test_runs_share_a_column_and_a_changed_program_has_its_own(
  inputs, tmp_path, program, capsys
):
  flags = (f"{REWARD}={program}", f"--store={tmp_path / 'store'}")
  command("score", inputs, tmp_path / "a", *flags)
  assert asked(tmp_path) == 2 * 40
  # Another tokenizer cuts the texts elsewhere; the rewards are of the whole.
  other = f"--config.policy.path={inputs}/second"
  command("train", inputs, tmp_path / "b", *flags, other, "--config.steps=2")
  assert asked(tmp_path) == 2 * 40
  (column,) = maintenance.entries(tmp_path / "store")
  assert column["pairs"] == 40
  assert maintenance.verify(tmp_path / "store") == []
  changed = PROGRAM.replace("1000", "500")
  (tmp_path / "judge.py").write_text(changed)
  command(
    "train", inputs, tmp_path / "b", *flags, other, "--config.steps=2", code=2
  )
  said = capsys.readouterr().err
  assert "identity.data.rewards.words.script: '" in said
  command("score", inputs, tmp_path / "c", *flags)
  columns = maintenance.entries(tmp_path / "store")
  assert [one["pairs"] for one in columns] == [40, 40]


def test_a_column_of_files_is_that_of_a_run(inputs, tmp_path, program):
  store = f"--store={tmp_path / 'store'}"
  pairs = f"--pairs={inputs}/pairs.jsonl"
  assert mrpo("score", f"--reward={program}", pairs, store) == 0
  count = asked(tmp_path)
  command("score", inputs, tmp_path / "a", f"{REWARD}={program}", store)
  assert asked(tmp_path) == count
  # The same by the config's own files.
  argv = [f"--config={CONFIG}:dpo,inputs={inputs}", f"--reward={program}"]
  assert mrpo("score", *argv, store) == 0
  assert asked(tmp_path) == count


def test_without_autoscore_the_missing_reward_is_named(
  inputs, tmp_path, capsys
):
  command("train", inputs, tmp_path / "a", "--no-autoscore", code=2)
  said = capsys.readouterr().err
  assert "40 pairs of train have no reward 'words'; run first: mrpo sc" in said
  assert not (tmp_path / "a").exists() or not lines_of(tmp_path / "a")


def test_a_reward_that_dies_keeps_what_it_gave(
  inputs, tmp_path, program, monkeypatch, capsys
):
  monkeypatch.setattr("mrpo_jax.references.rewards.BLOCK", 8)
  (tmp_path / "judge.py").write_text(
    PROGRAM.replace(
      "print(", "assert open('asked').read() < 21 * '.', 'tired'\n  print("
    )
  )
  store = f"--store={tmp_path / 'store'}"
  pairs = f"--pairs={inputs}/pairs.jsonl"
  argv = ["score", f"--reward={program}", pairs, store]
  assert mrpo(*argv) == 2
  said = capsys.readouterr().err
  assert "ends with exit code 1 before it answers prompt 4" in said
  assert "tired" in said
  (column,) = maintenance.entries(tmp_path / "store")
  assert column["pairs"] == 8  # 16 answers; the next block died at its fifth
  (tmp_path / "asked").unlink()
  assert mrpo(*argv) == 2  # the same command goes on
  (column,) = maintenance.entries(tmp_path / "store")
  assert column["pairs"] == 16


def test_a_response_of_several_turns_is_refused_by_its_place(
  inputs, tmp_path, capsys
):
  turns = [{"role": "assistant", "content": "a"}]
  row = {
    "prompt": [{"role": "user", "content": "q"}],
    "chosen": turns,
    "rejected": [*turns, {"role": "user", "content": "b"}, *turns],
  }
  (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
  argv = ["--reward=mrpo_jax.online.words:length", f"--store={tmp_path / 's'}"]
  assert mrpo("score", *argv, f"--pairs={tmp_path / 'p.jsonl'}") == 2
  assert "pair 0: the rejected response is more" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("argv", "match"),
  [
    (["--pairs=p"], "--pairs goes with --reward"),
    (["--reward=r"], "give --reward one of --pairs=FILE and --config=FILE"),
    (["--reward=r", "--pairs=p"], "--store is missing"),
    (["--reward=r", "--pairs=p", "--config.a=1", "--store=s"], "has no config"),
    ([], "--config is missing"),
  ],
)
def test_flags_that_do_not_go_together(argv, match, capsys):
  assert mrpo("score", *argv) == 2
  assert match in capsys.readouterr().err
