# SPDX-License-Identifier: Apache-2.0
"""Every config runs with `:debug`, and every preference config runs alone."""

import importlib
import pathlib

import jax
import numpy as np
import pytest

from configs import common
from mrpo_jax import cli, files
from mrpo_jax.models import parameters
from mrpo_jax.performance.abstract import (
  assume,
  scored_names,
)
from mrpo_jax.performance.topology import read_shape
from mrpo_jax.runs.config import load, read
from mrpo_jax.runs.program import abstract_train_step
from mrpo_jax.runs.setup import abstract_setup, mesh_of

ROOT = pathlib.Path(__file__).parents[2]
NAMES = sorted(
  path.stem
  for path in (ROOT / "configs").glob("*.py")
  if path.stem not in ("__init__", "common")
)
# Their parts run in tests of their own; all of them is planned here.
PAPER = {
  "llama3_70b": ("",),
  "llama3_ultrafeedback": ("online", "scored"),
  "mallowspo_llama3": ("",),
  "mrpo_llama2_mistral": ("",),
  "seven_references": ("vaw", "vdw,multi", "arwc", "window"),
}
# One of them is enough to see a break early.
QUICK = ("mallows_bandit", "quickstart")
RUNS = [
  pytest.param(
    *(name, "debug"), marks=[] if name in QUICK else [pytest.mark.slow]
  )
  for name in NAMES
  if name not in PAPER
]
RUNS += [
  pytest.param("quickstart", f"{run},debug", marks=pytest.mark.slow)
  for run in ("sft-base", "sft-second", "dpo")
]


@pytest.mark.parametrize("name,arg", RUNS)
def test_every_config_runs_with_debug(tmp_path, name, arg):
  config = f"--config={ROOT}/configs/{name}.py:{arg}"
  short = ("--config.steps=2", "--config.eval_every=0")
  assert cli.main(["train", config, f"--workdir={tmp_path}/w", *short]) == 0
  lines = files.read_lines(tmp_path / "w" / "metrics.jsonl")
  assert [line["step"] for line in lines] == [1, 2]
  assert np.isfinite([line["loss"] for line in lines]).all()


@pytest.mark.parametrize("debug", ["", "debug"])
@pytest.mark.parametrize(
  "name,arg", [(name, arg) for name, args in PAPER.items() for arg in args]
)
def test_every_config_at_paper_scale_has_a_step(name, arg, debug):
  arg = ",".join(filter(None, [arg, debug]))
  given = f"{ROOT}/configs/{name}.py" + (f":{arg}" if arg else "")
  config = load(given)
  mesh = mesh_of(config, jax.devices())
  setup = abstract_setup(config, mesh, read_shape)
  lengths = [
    getattr(config.data, f"max_{part}") // 2 for part in ("prompt", "response")
  ]
  rows = assume(setup, lengths).rows
  _, abstract, adapter = abstract_train_step(setup, rows)
  policy = setup.described["policy"].model.config
  state = abstract[0]
  trained = sum(array.size for array in jax.tree.leaves(state.params))
  assert trained == (adapter or parameters.count_parameters(policy))
  names = config.references.names
  assert len(setup.objective.references) == len(names)
  scored = sum(len(group) for group in scored_names(setup))
  assert scored >= sum(one.scored for one in setup.objective.references)


@pytest.mark.parametrize("arg", ["", "sft-base", "sft-second", "dpo", "mrpo"])
def test_the_full_config_is_valid(arg):
  module = importlib.import_module("configs.quickstart")
  config = module.get_config(*filter(None, [arg]))
  assert read(config.to_dict()).batch == 64


def test_arguments_take_the_type_of_their_default():
  arg = common.parse_arg("p=0.5,debug,long", p=1.0, debug=False, run="short")
  assert (arg.p, arg.debug, arg.run) == (0.5, True, "long")
  with pytest.raises(ValueError, match="unknown config argument 'q=1'"):
    common.parse_arg("q=1", p=1.0)
  with pytest.raises(ValueError, match="unknown config argument 'fast'"):
    common.parse_arg("fast", p=1.0)
