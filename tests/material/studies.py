# SPDX-License-Identifier: Apache-2.0
"""Studies at debug sizes, their pages, and held-out records as arrays."""

import re

import numpy as np
import pytest

from docs.studies.grid import models, pair_sets
from docs.studies.grid.study import run
from tests.material.runs import files_of, on_one_device


def done(study, workdir, inputs):
  """(folder of the page, PairSet) of a Study that was run, and run again.

  Args:
    study: grid.study.Study.
    workdir: its folder, empty.
    inputs: folder of the fixture `inputs`, whose models are its starts.
  """
  pytest.importorskip("matplotlib")
  to = workdir / "page"
  for folder in (to, workdir / "models"):
    folder.mkdir()
  for name, model in zip(models.STARTS, ("base", "second"), strict=True):
    (workdir / "models" / name).symlink_to(inputs / model)
  few = pair_sets.divided(workdir, inputs / "pairs.jsonl", "somewhere")
  few = few._replace(name="few", title="Few")
  with on_one_device():
    run(study, workdir, [few], to)
    before = files_of(workdir / "runs")
    run(study, workdir, [few], to)
  assert files_of(workdir / "runs") == before  # no run is repeated
  assert (to / f"{study.name}.svg").stat().st_size
  return to, few


def rows_of(page, heading, width):
  """The cells of each table row of that width, in a section of the page."""
  text = page.split(f"\n## {heading}\n")[1]
  rows = re.findall(r"^\| (.*) \|$", text.split("\n## ")[0], re.MULTILINE)
  return [cells for row in rows if len(cells := row.split(" | ")) == width]


def column(pairs, name):
  """[pairs, ...] of a key of records."""
  return np.array([one[name] for one in pairs])
