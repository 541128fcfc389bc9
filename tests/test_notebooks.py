# SPDX-License-Identifier: Apache-2.0
"""Notebooks run from top to bottom, and print what they show."""

import json
import pathlib
import subprocess
import sys

import pytest

LEARN = pathlib.Path(__file__).parents[1] / "docs" / "learn"
MARK = "@@ cell @@"


def cells(name):
  """The code cells of a notebook."""
  notebook = json.loads((LEARN / name).read_text(encoding="utf-8"))
  return [one for one in notebook["cells"] if one["cell_type"] == "code"]


def shown(cell):
  """The lines that the notebook shows of a cell."""
  outputs = cell["outputs"]
  assert not [one for one in outputs if one["output_type"] == "error"]
  texts = ["".join(one.get("text", "")) for one in outputs]
  return "".join(texts).splitlines()


def printed(name, folder):
  """The lines that each cell prints now, the notebook run as one program."""
  pytest.importorskip("matplotlib")
  sources = ["".join(one["source"]) for one in cells(name)]
  program = "".join(f"print({MARK!r})\n{source}\n" for source in sources)
  done = subprocess.run(
    [sys.executable, "-c", program],
    cwd=folder,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return [one.splitlines()[1:] for one in done.stdout.split(MARK)[1:]]


def test_the_notebook_of_losses_prints_what_it_shows(tmp_path, monkeypatch):
  monkeypatch.setenv("MPLBACKEND", "agg")
  name = "losses.ipynb"
  assert printed(name, tmp_path) == [shown(one) for one in cells(name)]


@pytest.mark.slow
def test_the_notebook_of_a_run_goes_through(tmp_path, monkeypatch):
  monkeypatch.setenv("MPLBACKEND", "agg")
  name = "whole_run.ipynb"
  monkeypatch.setenv("TMPDIR", str(tmp_path))
  now = printed(name, tmp_path)
  there = [shown(one) for one in cells(name)]
  # Speeds, folders and the last digits are of a machine.
  assert now[1] == there[1] and now[-1][-1] == there[-1][-1]
