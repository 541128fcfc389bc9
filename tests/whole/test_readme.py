# SPDX-License-Identifier: Apache-2.0
"""README and a first run go as they are printed, and say what tables say."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from mrpo_jax.cli.parser import parse
from mrpo_jax.reports import paired
from mrpo_jax.reports.comparison import HEADER, LEGEND

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LEARN = ROOT / "docs" / "learn"
FIRST, PRETRAINED = (
  (LEARN / name).read_text(encoding="utf-8")
  for name in ("first_run.md", "pretrained.md")
)
TESTED = (ROOT / "docs" / "tested.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README + FIRST, re.DOTALL)
# Of the commands, what needs the network: this environment stands in for what
# is installed, but for the extras, which must be there.
STAND_INS = """\
set -euo pipefail
python3() {
  [ "$*" = "-m venv .venv" ]
  cp -r "$SOURCE"/{mrpo_jax,configs,launch,tests,setup.py} .  # as it is now
  mkdir -p .venv/bin
  echo "export VIRTUAL_ENV=$PWD/.venv PYTHONPATH=$PWD" > .venv/bin/activate
  for extra in tensorboard,plot test; do
    cat setup.py launch/constraints.txt > ".venv/installed-$extra"
  done
}
pip() { [ "$*" = "install -e . --constraint launch/constraints.txt" ]; }
"""


def lines(block):
  """The commands of a block, those over several lines joined."""
  return block.replace("\\\n", " ").strip().split("\n")


COMMANDS = [line.partition("  #")[0] for b in BLOCKS for line in lines(b)]


def test_shell_blocks_are_found_and_hold_nothing_else():
  assert len(BLOCKS) == 6
  for command in COMMANDS:
    assert shlex.split(command)[0] in (
      *("git", "python3", "pip", "source", "bash", "mrpo"),
    ), command


@pytest.mark.parametrize(
  "command", [line for line in COMMANDS if line.startswith("mrpo ")]
)
def test_flags_and_files_of_a_command_are_there(command):
  words = shlex.split(command)[1:]
  parse(words)
  for word in words:
    value = word.rpartition("=")[2].partition(":")[0]
    if value.startswith("configs/"):
      assert (ROOT / value).exists(), word


@pytest.mark.slow
def test_the_commands_run_from_top_to_bottom_in_a_fresh_shell(tmp_path):
  script = STAND_INS + "\n".join(COMMANDS)
  script = script.replace("/tmp/", f"{tmp_path}/")
  script = script.replace("<this repository>", str(ROOT))
  programs = pathlib.Path(sys.executable).parent
  done = subprocess.run(
    ["bash", "-c", script],
    cwd=tmp_path,
    env={
      "PATH": f"{programs}:{os.environ['PATH']}",
      "HOME": str(tmp_path / "home"),
      "SOURCE": str(ROOT),
      "JAX_PLATFORMS": "cpu",
    },
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  results = (tmp_path / "quickstart" / "results.json").read_text()
  for run in ("sft-base", "sft-second", "dpo", "mrpo"):
    assert f'"{run}": {{' in results
  assert (tmp_path / "mrpo_model" / "config.json").exists()
  assert (tmp_path / "common" / "metrics.jsonl").exists()


def test_the_table_that_is_shown_has_the_columns_of_the_report():
  for page in (README, FIRST, PRETRAINED):
    shown = re.findall(r"^run  .*$", page, re.MULTILINE)
    columns = [tuple(re.split(r"  +", line)) for line in shown]
    assert columns == [HEADER, paired.HEADER]
  assert LEGEND in FIRST and paired.LEGEND in FIRST


def test_the_front_page_shows_lines_of_the_first_run():
  block = README.partition("```\n...\nrun ")[2].partition("```")[0]
  lines = [line for line in block.split("\n")[1:] if line and line != "..."]
  assert len(lines) == 7
  assert not [line for line in lines if line not in FIRST]


def test_extras_that_are_shown_are_those_of_setup():
  setup = (ROOT / "setup.py").read_text(encoding="utf-8")
  shown = re.findall(r'pip install -e "\.\[(\w+)\]"', README)
  assert shown == ["tpu", "cuda", "cuda12"]
  for extra, package in (
    *(("tpu", "jax[tpu]"), ("cuda", "jax[cuda13]"), ("cuda12", "jax[cuda12]")),
  ):
    assert f'"{extra}": ["{package}' in setup


# "What has been run" names what ran.


def test_tests_and_programs_of_the_table_are_there():
  rows = README.partition("## What has been run")[2] + TESTED
  named = re.findall(r"`([^`]+)`", rows)
  for command in named:
    words = shlex.split(command)
    if "launch/test.sh" in words[0]:
      for path in words[1:]:
        assert path.startswith("--") or (ROOT / path).exists(), command
    elif words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):
      assert (ROOT / f"{words[2].replace('.', '/')}.py").exists(), command


def test_speeds_are_those_of_the_tables():
  page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
  table = page.partition("Llama shape A")[2].partition("Shape B")[0]
  online = re.search(
    r"^\| mrpo_jax online \| .*? \| .*? \| (\S+) ", table, re.M
  )
  cached = re.search(r"Scored against cached is (\S+)\.\s", table)
  said = re.search(
    r"(\S+) times the pairs a second of TRL .* online reference, (\S+) with",
    README,
  )
  assert float(said[1]) == pytest.approx(float(online[1]), abs=0.05)
  assert float(said[2]) == pytest.approx(float(cached[1]), abs=0.05)
