# SPDX-License-Identifier: Apache-2.0
"""Runs of rounds: the policy's own responses, labelled, trained on, resumed."""

import shutil

import numpy as np
import pytest

from mrpo_jax import files
from mrpo_jax.online.rounds import Rounds
from mrpo_jax.runs.inference.sampler import Sampler
from mrpo_jax.runs.rounds.labels import Labels
from mrpo_jax.training import checkpoints
from tests.material.runs import (
  ROOT,
  assert_equal_runs,
  lines_of,
  mrpo,
  on_one_device,
  untimed,
)

SIZES = (
  *("--config.steps=6", "--config.online.rounds=3"),
  *("--config.checkpoint_every=1", "--config.online.max_new_tokens=16"),
  # Of random words few are ever collected.
  *("--config.online.reward=mrpo_jax.online.words:length",),
  "--config.online.reward_options={'unit': 'characters'}",
)


def train(workdir, *overrides, name="online_dpo"):
  config = f"--config={ROOT}/configs/{name}.py:debug"
  with on_one_device():
    return mrpo("train", config, f"--workdir={workdir}", *SIZES, *overrides)


@pytest.fixture(scope="module")
def done(shared):
  def run(folder):
    assert train(folder / "run") == 0

  return shared("online", run) / "run"


@pytest.mark.quick
def test_a_round_samples_labels_and_trains(done):
  lines = lines_of(done)
  assert [line["round"] for line in lines] == [0, 0, 1, 1, 2, 2]
  assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
  for name in ("reward/mean", "kl", "length/mean", "distinct_2", "ties"):
    assert name in lines[-1]
  # The policy that samples first is the reference.
  assert abs(lines[0]["kl"]) < 1e-4 < abs(lines[-1]["kl"])
  # 16 prompts with two responses are 16 labelled pairs a round.
  assert [line["gold_spent"] for line in lines] == [16, 16, 32, 32, 48, 48]
  pairs = files.read_lines(done / "rounds" / "1" / "pairs.jsonl")
  trained = sum(line["labelled"] for line in lines if line["round"] == 1)
  assert trained == len(pairs) and {one["round"] for one in pairs} == {1}
  for one in pairs:
    assert one["chosen_reward"] == len(one["chosen"])
    assert one["chosen_reward"] > one["rejected_reward"]


class Killed(BaseException):
  pass


MOMENTS = [
  *((Sampler, "__call__", n) for n in (0, 1)),
  *((Labels, "__call__", n) for n in (0, 2)),
  *((Rounds, "write", n) for n in (0, 1)),
  *((Labels, "learned", n) for n in (1, 2)),
  *((checkpoints, "save", n) for n in (0, 3)),
]


@pytest.mark.parametrize("owner,name,number", MOMENTS)
def test_a_run_that_is_killed_goes_on_bit_for_bit(
  done, tmp_path, monkeypatch, owner, name, number
):
  function, calls = getattr(owner, name), []

  def dies(*args, **given):
    calls.append(None)
    if len(calls) == number + 1:
      raise Killed
    return function(*args, **given)

  with monkeypatch.context() as patch, pytest.raises(Killed):
    patch.setattr(owner, name, dies)
    train(tmp_path / "run")
  assert train(tmp_path / "run") == 0
  assert_equal_runs(done, tmp_path / "run", 6)
  for number in range(3):
    here, there = (
      one / "rounds" / str(number) / "pairs.jsonl"
      for one in (done, tmp_path / "run")
    )
    assert here.read_bytes() == there.read_bytes()


def test_a_run_within_a_round_needs_its_pairs(done, tmp_path, capsys):
  workdir = shutil.copytree(done, tmp_path / "run")
  for step in (4, 6):
    shutil.rmtree(workdir / "checkpoints" / str(step), ignore_errors=True)
  shutil.rmtree(workdir / "rounds" / "2")
  assert train(workdir) == 1
  said = capsys.readouterr().err
  assert "the run stands at step 5, within round 2, whose pairs" in said


def test_the_pairs_of_a_round_train_a_run_of_their_own(done, tmp_path):
  pairs = done / "rounds" / "0" / "pairs.jsonl"
  config = f"--config={ROOT}/configs/quickstart.py:dpo,debug"
  with on_one_device():
    assert not mrpo(
      *("train", config, f"--workdir={tmp_path / 'w'}"),
      *(f"--config.data.train={pairs}", "--config.steps=2"),
      "--config.data.eval=",
    )
  assert len(untimed(tmp_path / "w")) == 2
