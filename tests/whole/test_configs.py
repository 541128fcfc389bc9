# SPDX-License-Identifier: Apache-2.0
"""Every config runs with `:debug`, and every preference config runs alone."""

import importlib
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from mrpo_jax import cli, configs, files
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
  if path.stem != "__init__"
)
# Their parts run in tests of their own; all of them is planned here.
PAPER = {
  "llama31_long": ("",),
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
  lines = [line for line in lines if "loss" in line]  # not looks before it
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
  arg = configs.parse_arg("p=0.5,debug,long", p=1.0, debug=False, run="short")
  assert (arg.p, arg.debug, arg.run) == (0.5, True, "long")
  with pytest.raises(ValueError, match="unknown config argument 'q=1'"):
    configs.parse_arg("q=1", p=1.0)
  with pytest.raises(ValueError, match="unknown config argument 'fast'"):
    configs.parse_arg("fast", p=1.0)


@pytest.mark.parametrize("said", ["true", "True", "false", "False"])
def test_an_argument_may_say_that_it_is_false(said):
  assert configs.parse_arg(f"p={said}", p=False).p is (said[0] in "tT")
  assert configs.parse_arg(f"p={said}", p=True).p is (said[0] in "tT")


@pytest.mark.parametrize(
  "arg, default, kind",
  [("p=no", False, "true or false"), ("p=", True, "true or false")]
  + [("p=two", 1, "int"), ("p=0.5", 1, "int"), ("p=x", 1.0, "float")],
)
def test_an_argument_of_another_type_is_named(arg, default, kind):
  with pytest.raises(ValueError, match=f"config argument '{arg}': want {kind}"):
    configs.parse_arg(arg, p=default)


@pytest.fixture
def outside(tmp_path):
  """outside(code): run where this package is found, the repository not."""
  (tmp_path / "site").mkdir()
  (tmp_path / "site" / "mrpo_jax").symlink_to(ROOT / "mrpo_jax")
  (tmp_path / "mine").mkdir()
  there = {"PYTHONPATH": f"{tmp_path}/site", "JAX_PLATFORMS": "cpu"}

  def run(code):
    return subprocess.run(
      [sys.executable, "-P", "-c", code],
      cwd=tmp_path,
      env={**os.environ, **there},
      capture_output=True,
      text=True,
    )

  return run


LOAD = "from mrpo_jax.runs.config import load; print(load({given!r}).steps)"


def test_configs_work_outside_the_repository(tmp_path, outside):
  for path in (ROOT / "configs").glob("*.py"):
    shutil.copy(path, tmp_path / "mine")
  given = [f"mine/{name}.py:debug" for name in NAMES]
  code = "from mrpo_jax.runs.config import load\nfor one in {}: load(one)"
  done = outside(code.format([*given, "mine/quickstart.py:mrpo"]))
  assert done.returncode == 0, done.stderr


def test_a_config_imports_its_neighbours(tmp_path, outside):
  text = (ROOT / "configs" / "quickstart.py").read_text()
  (tmp_path / "mine" / "base.py").write_text(text)
  for line in ("import base", "from mine import base"):
    text = f"{line}\ndef get_config(arg):\n  c = base.get_config(arg)\n"
    (tmp_path / "mine" / "own.py").write_text(
      text + "  c.steps = 7\n  return c"
    )
    done = outside(LOAD.format(given="mine/own.py:dpo,debug"))
    assert done.stdout == "7\n", done.stderr


def test_a_config_that_imports_what_is_gone_says_from_where(tmp_path, outside):
  (tmp_path / "mine" / "old.py").write_text("from configs import common\n")
  done = outside(LOAD.format(given="mine/old.py"))
  said = done.stderr.strip().split("\n")[-1]
  assert said.endswith("is `from mrpo_jax import configs`"), said


def test_a_file_beside_a_config_hides_no_package(tmp_path, outside):
  (tmp_path / "mine" / "optax.py").write_text("raise SystemExit(3)")
  text = "import optax\ndef get_config():\n  raise KeyError(optax.__name__)"
  (tmp_path / "mine" / "own.py").write_text(text)
  done = outside(LOAD.format(given="mine/own.py"))
  assert "KeyError: 'optax'" in done.stderr
