# SPDX-License-Identifier: Apache-2.0
"""Methods by name train on human preferences through the command.

Every name takes steps in tests/training/test_every_method.py; here is one of
each kind: one reference, several, a divergence, a memory, none.
"""

import json
import math
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest

from mrpo_jax import files
from mrpo_jax.data import source
from tests.material.config import CONFIG
from tests.material.runs import lines_of, mrpo, untimed

pytestmark = pytest.mark.usefixtures("one_device")


def train(name, inputs, workdir, *overrides):
  config = f"--config={CONFIG}:{name},inputs={inputs}"
  return mrpo("train", config, f"--workdir={workdir}", *overrides)


def assert_five_steps(name, workdir):
  lines = lines_of(workdir)
  assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
  for line in lines:
    assert all(math.isfinite(value) for value in line.values()), line
    assert line["grad_norm"] > 0
    assert name == "nll" or "rewards/accuracies" in line


@pytest.mark.parametrize("name", ["dpo", "nll"])
def test_five_steps_of_a_method(inputs, tmp_path, name):
  assert train(name, inputs, tmp_path / "w") == 0
  assert_five_steps(name, tmp_path / "w")


def test_supervised_rows_train_as_the_chosen_responses_of_pairs(
  inputs, tmp_path, capsys
):
  pairs = source.load(inputs / "few.jsonl")
  rows = [{"prompt": p.prompt, "completion": p.chosen} for p in pairs]
  (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
  for name, data in (("pairs", inputs / "few.jsonl"), ("a", "a.jsonl")):
    data = f"--config.data.train={tmp_path / data}"
    assert train("nll", inputs, tmp_path / name, data) == 0
  one, two = (lines_of(tmp_path / name) for name in ("pairs", "a"))
  assert [line["loss"] for line in one] == pytest.approx(
    [line["loss"] for line in two], rel=1e-6
  )
  capsys.readouterr()
  assert train("dpo", inputs, tmp_path / "dpo", data) == 2
  assert "8 of 8 pairs have no rejected response" in capsys.readouterr().err
  assert not (tmp_path / "dpo").exists()


@pytest.mark.slow
def test_a_memory_outlives_the_run(inputs, tmp_path):
  every = "--config.checkpoint_every=2"
  whole, resumed = tmp_path / "whole", tmp_path / "resumed"
  assert train("beta_dpo", inputs, whole, every) == 0
  assert_five_steps("beta_dpo", whole)
  shutil.copytree(whole, resumed)
  shutil.rmtree(resumed / "checkpoints" / "5")  # as if killed before step 5
  assert train("beta_dpo", inputs, resumed, every) == 0
  assert untimed(resumed) == untimed(whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tdpo", "bmc", "aot"])
def test_evaluation_of_what_needs_more_than_sums(inputs, tmp_path, name):
  more = (f"--config.data.eval={inputs}/pairs.jsonl", "--config.eval_every=5")
  assert train(name, inputs, tmp_path / "w", *more) == 0
  assert_five_steps(name, tmp_path / "w")
  last = lines_of(tmp_path / "w")[-1]
  assert math.isfinite(last["eval/loss"])
  pairs = files.read_lines(tmp_path / "w" / "eval_pairs.jsonl")
  policy = np.array([pair["policy"] for pair in pairs])
  assert np.all(policy < 0)
  # Plain sums of all tokens, whatever the loss weighs them by.
  np.testing.assert_allclose(
    policy[:, 0].mean(), last["eval/logps/chosen"], rtol=1e-5
  )


@pytest.mark.slow
def test_one_reference_at_a_time_by_held_out_accuracy(inputs, tmp_path):
  more = (
    "--config.loss.weights=thompson",
    f"--config.data.eval={inputs}/pairs.jsonl",
    "--config.eval_every=1",
  )
  assert train("mrpo", inputs, tmp_path / "w", *more) == 0
  assert_five_steps("mrpo", tmp_path / "w")
  lines = lines_of(tmp_path / "w")
  weights = [line["references/base/weight"] for line in lines]
  assert set(weights) <= {0.0, 1.0}
  step = tmp_path / "w" / "checkpoints" / "5" / "state"
  with ocp.PyTreeCheckpointer() as checkpointer:
    arms = checkpointer.restore(step)["method_state"]["weights"]
  # Judged at every evaluation but the first, which has none before it.
  assert np.sum(arms["won_K"]) + np.sum(arms["lost_K"]) == 2 * 2 * 5 + 4


@pytest.mark.parametrize(
  "name,override,message",
  [
    ("d2po", "--config.references.base.path={}/second", "policy's tokenizer"),
    ("tdpo", "--config.references.base.path={}/second", "policy's tokenizer"),
    ("robust_dpo", "--config.loss.label_smoothing=0.5", "in [0, 0.5)"),
    ("dpo", "--config.loss.token_weight=decay", "unknown token_weight"),
    ("mrpo", "--config.loss.weights=thompson", "set config.data.eval"),
    ("mrpo", "--config.loss.weights=best", "unknown weights 'best'"),
    ("simpo", "--config.loss.dispersion=3.4", "there is no reference"),
    ("dpo", "--config.loss.scale=tokens", "unknown scale"),
    ("dpo", "--config.loss.label_smoothing=much", "label_smoothing"),
  ],
)
def test_what_cannot_be_trained_is_one_line(
  inputs, tmp_path, capsys, name, override, message
):
  override = override.format(inputs)
  assert train(name, inputs, tmp_path / "w", override) == 2
  error = capsys.readouterr().err.strip()
  assert error.startswith("error: ") and "\n" not in error
  assert message in error
  assert not (tmp_path / "w").exists()
