# SPDX-License-Identifier: Apache-2.0
"""Runs of a reward model, from pairs to a folder that is read again."""

import json
import pathlib

import numpy as np
import pytest

from mrpo_jax import cli, files, hub
from mrpo_jax.data import source
from mrpo_jax.data.encode import encode
from mrpo_jax.data.pack import pack
from mrpo_jax.data.tokenizer import load_tokenizer
from mrpo_jax.errors import InputError
from mrpo_jax.models import packed
from mrpo_jax.rows import micro_batch
from mrpo_jax.runs.inference.reward import RewardModel
from tests.material.folders import GOLDEN
from tests.material.runs import (
  ROOT,
  assert_equal_runs,
  lines_of,
  mrpo,
  on_one_device,
)

pytestmark = pytest.mark.slow
CONFIG = f"--config={ROOT}/configs/reward_model.py:debug"
ADAPTER = (
  "--config.policy.adapter.rank=2",
  "--config.policy.adapter.alpha=4",
  "--config.optimizer.peak_lr=0.01",
)
PAIRS = ROOT / "configs/hh_harmless/eval.jsonl.gz"


def train(workdir, *overrides):
  with on_one_device():
    return mrpo("train", CONFIG, f"--workdir={workdir}", *ADAPTER, *overrides)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("reward")
  assert train(workdir) == 0
  return workdir


def rewards_of(folder, records):
  """reward_PC of the pairs of the records, by the model of a folder."""
  config, params = hub.load(folder)
  tokenizer, pairs = load_tokenizer(folder), source.load(PAIRS)
  limits = dict(max_prompt=64, max_response=64)
  encoded = [encode(tokenizer, pairs[one["pair"]], **limits) for one in records]
  rows = micro_batch(pack(encoded, length=256, rows=len(encoded)), 0)
  return np.asarray(packed.rewards(config, params, rows, len(encoded)))


def test_the_exported_model_says_what_the_evaluation_said(run, tmp_path):
  lines = lines_of(run)
  assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
  assert lines[-1]["eval/rewards/accuracies"] > 0
  command = ("export", f"--workdir={run}", f"--to={tmp_path / 'm'}")
  assert mrpo(*command, "--merge-adapters") == 0
  values = json.loads((tmp_path / "m/config.json").read_text())
  assert values["architectures"] == ["LlamaForSequenceClassification"]
  records = [
    json.loads(line)
    for line in (run / "eval_pairs.jsonl").read_text().splitlines()[:6]
  ]
  want = [one["rewards"] for one in records]
  found = rewards_of(tmp_path / "m", records)
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-6)
  assert np.ptp(want) > 1e-3


def test_its_folder_is_a_function_of_texts(run, tmp_path):
  command = ("export", f"--workdir={run}", f"--to={tmp_path / 'm'}")
  assert mrpo(*command, "--merge-adapters") == 0
  reward = RewardModel(tmp_path / "m")
  pairs = source.load(PAIRS)
  # As many as to need a second batch, and short enough to be cut nowhere.
  texts = [
    (pair.prompt[-60:], getattr(pair, side)[:20] + " no.")
    for pair in pairs[:20]
    for side in ("chosen", "rejected")
  ]
  prompts, responses = zip(*texts, strict=True)
  found = reward(prompts, responses)
  assert len(found) == 40 and np.ptp(found) > 1e-3
  alone = [reward([one], [other])[0] for one, other in texts[:5]]
  np.testing.assert_allclose(found[:5], alone, rtol=1e-5)
  chat = [[{"role": "user", "content": prompts[0]}]]
  (told,) = reward(chat, [responses[0]])
  assert np.isfinite(told) and told != found[0]
  # What says nothing is read at the end token alone.
  blank, empty, fine = reward([prompts[0]] * 3, [" ", "", "fine"])
  assert np.isfinite(empty) and abs(fine - empty) > 1e-4
  np.testing.assert_allclose(blank, empty, rtol=1e-5)
  with pytest.raises(InputError, match="no reward: is longer than"):
    reward(prompts[:1], ["long " * 5000])


def test_a_report_has_rewards_and_no_log_probabilities(run):
  assert mrpo("report", f"--workdir={run}") == 0
  (found,) = files.read_json(run / "results.json").values()
  last = lines_of(run)[-1]
  want = last["eval/rewards/accuracies"]
  assert found["policy_accuracy"] == pytest.approx(want)
  for name in ("accuracy", "policy_mean_accuracy", "nll", "margin_nats"):
    assert found[name] is None


def test_it_judges_answers(run, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  command = ("export", f"--workdir={run}", "--to=m", "--merge-adapters")
  assert mrpo(*command) == 0
  prompts = [{"prompt": f"Is {n} odd?"} for n in range(3)]
  answers = {"a": ["no", "Never.", "I see"], "b": ["yes", "Often", "I see"]}
  files.write_lines("p.jsonl", prompts)
  for name, said in answers.items():
    files.write_lines(f"{name}.jsonl", [{"response": one} for one in said])
  asked = ("--responses=a.jsonl", "--responses=b.jsonl", "--prompts=p.jsonl")
  assert mrpo("compare", *asked, "--judge=m", "--to=out") == 0
  reward = RewardModel("m")
  texts = [one["prompt"] for one in prompts]
  first, second = (reward(texts, answers[name]) for name in "ab")
  wins = sum(b > a for a, b in zip(first, second, strict=True))
  assert files.read_json("out/results.json")["wins"] == wins
  hub.save("lm", *hub.load(GOLDEN / "llama_theta"))
  capsys.readouterr()
  assert mrpo("compare", *asked, "--judge=lm", "--to=other") == 2
  assert "lm: its model has no scalar head" in capsys.readouterr().err


def test_a_run_that_was_stopped_ends_the_same(run, tmp_path):
  workdir = tmp_path / "w"
  stopped = "--config.steps=8", "--config.checkpoint_every=3"
  assert train(workdir, *stopped) == 0
  (workdir / "checkpoints/8").rename(tmp_path / "8")
  assert train(workdir, *stopped) == 0
  assert_equal_runs(run, workdir, 8)


def test_a_reward_model_says_nothing(run, tmp_path, capsys):
  prompts = tmp_path / "p.txt"
  prompts.write_text("Hello\n")
  to = f"--to={tmp_path / 's.jsonl'}"
  code = cli.main(["generate", f"--workdir={run}", f"--prompts={prompts}", to])
  assert code == 2
  assert "is a reward model: it says nothing" in capsys.readouterr().err
  assert not pathlib.Path(tmp_path / "s.jsonl").exists()


@pytest.mark.parametrize(
  "override,match",
  [
    ("--config.policy.head=tokens", "set policy.head"),
    ("--config.samples.prompts=p.txt", "a reward model says nothing"),
    (
      "--config.checkpoints.best=eval/policy/rewards/accuracies",
      "a reward model has no such figure",
    ),
  ],
)
def test_what_does_not_go_together_is_refused(
  override, match, tmp_path, capsys
):
  argv = ["train", CONFIG, f"--workdir={tmp_path / 'w'}", override]
  assert cli.main(argv) == 2
  assert match in capsys.readouterr().err
  assert not (tmp_path / "w").exists()
