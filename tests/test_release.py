# SPDX-License-Identifier: Apache-2.0
"""A wheel has all that `mrpo` needs, and runs where there is no clone."""

import os
import pathlib
import subprocess
import sys

import pytest
import yaml

import mrpo_jax

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
  """The folder that a wheel has, built anew."""
  folder = tmp_path_factory.mktemp("build")
  build = ["build", f"--build-base={folder}", f"--build-lib={folder}/lib"]
  # It leaves a folder of its own beside setup.py, so in a copy.
  for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
    (folder / name).write_bytes((ROOT / name).read_bytes())
  for name in ("mrpo_jax", "configs"):
    (folder / name).symlink_to(ROOT / name)
  done = subprocess.run(
    [sys.executable, "setup.py", "-q", *build],
    cwd=folder,
    capture_output=True,
    text=True,
  )
  assert not done.returncode, done.stderr
  return folder / "lib"


def test_configs_and_their_data_are_in_the_wheel(installed):
  names = {
    str(path.relative_to(installed))
    for path in installed.rglob("*")
    if path.is_file()
  }
  shipped = {
    f"mrpo_jax/shipped/{path.relative_to(ROOT / 'configs')}"
    for path in (ROOT / "configs").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
  }
  assert len(shipped) > 30 and shipped <= names
  assert {"mrpo_jax/py.typed", "mrpo_jax/evaluation/tasks/gsm8k.yaml"} <= names
  assert not [one for one in names if "__pycache__" in one]
  assert {one.partition("/")[0] for one in names} == {"mrpo_jax"}


@pytest.mark.slow  # a run in a process of its own
def test_the_packaged_quickstart_runs_from_an_empty_folder(installed, tmp_path):
  empty = tmp_path / "empty"
  empty.mkdir()
  command = [sys.executable, "-P", "-m", "mrpo_jax", "train"]
  done = subprocess.run(
    [*command, "quickstart:sft-base,debug", "--workdir=run", "steps=2"],
    cwd=empty,
    env={**os.environ, "PYTHONPATH": str(installed)},
    capture_output=True,
    text=True,
  )
  assert not done.returncode, done.stderr
  assert "finished: run stands at step 2" in done.stdout
  data = yaml.safe_load((empty / "run/config.yaml").read_text())["data"]
  shipped = installed / "mrpo_jax/shipped/hh_harmless/eval.jsonl.gz"
  assert data["train"] == str(shipped)


def test_versions_agree():
  cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
  assert cited == mrpo_jax.__version__


def test_every_extra_is_read_by_code_or_by_a_script():
  """An extra that nothing imports, runs or asks for is not offered."""
  text = (ROOT / "setup.py").read_text()
  extras = text.partition("extras_require={")[2].partition("\n  },")[0]
  names = [
    line.split('"')[1]
    for line in extras.split("\n")
    if line.startswith('    "') and ":" in line
  ]
  assert {"eval", "gguf", "docs", "tpu"} <= {*names}
  files = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "launch").glob("*")]
  files += [*(ROOT / "mrpo_jax").rglob("*.py"), ROOT / "README.md"]
  files += [*(ROOT / ".github").rglob("*.yml"), ROOT / "CONTRIBUTING.md"]
  said = "\n".join(path.read_text("utf-8") for path in files if path.is_file())
  for name in names:
    ways = (f"[{name}]", f"environment.sh {name}", f",{name}]", f",{name}")
    assert any(way in said for way in ways), name
