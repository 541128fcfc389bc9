# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of our own steps still run: what they build on may have moved."""

import os
import subprocess
import sys

import pytest

from benchmarks import sharing
from benchmarks.turns import ROOT

pytestmark = pytest.mark.slow  # each compiles several steps


def rows_of(name, *arguments):
  """Cells of the lines that a benchmark prints, by itself on one device."""
  flags = os.environ["XLA_FLAGS"].replace("count=8", "count=1")
  done = subprocess.run(
    [sys.executable, "-m", f"benchmarks.{name}", "--shape=tiny", *arguments],
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": flags},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return [line.split() for line in done.stdout.splitlines() if line]


def test_every_layout_takes_its_turns_and_has_the_same_losses(tmp_path):
  rows = rows_of(
    "sharing", f"--workdir={tmp_path}", "--rounds=1", "--steps=1"
  )  # fails where losses are apart
  found = [" ".join(row).split(" | ")[0][2:] for row in rows if row[0] == "|"]
  assert found[1:] == list(sharing.variants())


def test_step_memory_says_what_the_step_takes():
  rows = rows_of("step_memory")
  ratios = [float(row[4]) for row in rows if row[1] in ("dots", "full")]
  assert len(ratios) == 4 and min(ratios) > 1
