# SPDX-License-Identifier: Apache-2.0
"""What a run says where the policy's weights are too coarse to learn."""

import pytest

from mrpo_jax import hub
from mrpo_jax.runs.config import read
from mrpo_jax.runs.models import warn_of_lost_steps
from tests.material.config import CONFIG, get_config
from tests.material.runs import mrpo


def config_of(inputs, dtype, rate):
  config = read(get_config(f"dpo,inputs={inputs}").to_dict())
  return config.changed({"policy.dtype": dtype, "optimizer.peak_lr": rate})


@pytest.mark.parametrize(
  "dtype,rate,lost",
  [
    ("bfloat16", 1e-6, True),
    ("float16", 1e-6, True),
    ("bfloat16", 3e-2, False),
    ("float32", 1e-6, False),
  ],
)
def test_a_learning_rate_below_the_rounding_of_the_weights_is_said(
  inputs, caplog, dtype, rate, lost
):
  config = config_of(inputs, dtype, rate)
  _, params = hub.load(inputs / "base", dtype=dtype)
  warn_of_lost_steps(config, params)
  assert ("policy.compute='bfloat16' trains them" in caplog.text) == lost
  assert (f"policy.dtype='{dtype}'" in caplog.text) == lost


@pytest.mark.slow
def test_a_run_says_so(inputs, tmp_path, capsys, one_device):
  argv = [
    *("train", f"--config={CONFIG}:nll,inputs={inputs}"),
    *(f"--workdir={tmp_path}/w", f"--config.data.train={inputs}/few.jsonl"),
    *("--config.steps=1", "--config.policy.dtype=bfloat16"),
    "--config.optimizer.peak_lr=1e-7",
  ]
  assert mrpo(*argv) == 0
  said = capsys.readouterr().out
  assert said.count("warning: in policy.dtype='bfloat16' a step of") == 1
