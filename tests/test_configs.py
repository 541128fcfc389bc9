# SPDX-License-Identifier: Apache-2.0
"""Every config runs with `:debug`, and every preference config runs alone."""

import importlib
import pathlib

import numpy as np
import pytest

from configs import common
from mrpo_jax import cli, settings, writer

ROOT = pathlib.Path(__file__).parents[1]
NAMES = sorted(
  path.stem
  for path in (ROOT / "configs").glob("*.py")
  if path.stem not in ("__init__", "common")
)
RUNS = [(name, "debug") for name in NAMES]
RUNS += [
  ("quickstart", f"{run},debug") for run in ("sft-base", "sft-second", "dpo")
]


@pytest.mark.parametrize("name,arg", RUNS)
def test_every_config_runs_with_debug(tmp_path, name, arg):
  config = f"--config={ROOT}/configs/{name}.py:{arg}"
  short = ("--config.steps=2", "--config.eval_every=0")
  assert cli.main(["train", config, f"--workdir={tmp_path}/w", *short]) == 0
  lines = writer.read_lines(tmp_path / "w" / "metrics.jsonl")
  assert [line["step"] for line in lines] == [1, 2]
  assert np.isfinite([line["loss"] for line in lines]).all()


@pytest.mark.parametrize("arg", ["", "sft-base", "sft-second", "dpo", "mrpo"])
def test_the_full_config_is_valid(arg):
  module = importlib.import_module("configs.quickstart")
  config = module.get_config(*filter(None, [arg]))
  assert settings.read(config.to_dict())["batch"] == 64


def test_arguments_take_the_type_of_their_default():
  arg = common.parse_arg("p=0.5,debug,long", p=1.0, debug=False, run="short")
  assert (arg.p, arg.debug, arg.run) == (0.5, True, "long")
  with pytest.raises(ValueError, match="unknown config argument 'q=1'"):
    common.parse_arg("q=1", p=1.0)
  with pytest.raises(ValueError, match="unknown config argument 'fast'"):
    common.parse_arg("fast", p=1.0)
