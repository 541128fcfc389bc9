# SPDX-License-Identifier: Apache-2.0
"""The study of dispersion at debug sizes: its page says what its runs did."""

import re

import numpy as np
import pytest

from docs.studies.dispersion import runs, study
from mrpo_jax import files, losses
from tests.material.runs import on_one_device
from tests.material.studies import done

GRID = runs.Grid(
  methods=("dpo",),
  seeds=(0, 1),
  steps=2,
  batch=4,
  max_tokens=32,
  row_length=128,
)


def test_every_method_is_run_with_and_without():
  variants = study.study().variants
  assert len(variants) * len(runs.Grid().seeds) == 30
  assert {method for method, _ in variants} == {"dpo", "simpo", "mrpo"}
  assert {kind for _, kind in variants} == {"plain", "dispersed"}


def test_its_dpo_with_the_factor_is_mallows_theta(rng):
  policy_BC, ref_BCK = -50 + rng.normal(size=(3, 2)), rng.normal(size=(3, 2, 1))
  entropy_BC = rng.uniform(0.1, 0.9, (3, 2)).astype(np.float32)
  method = losses.build(**runs.METHODS["dpo"], dispersion=0.8)
  given = policy_BC.astype(np.float32), -50 + ref_BCK.astype(np.float32)
  scale_B = losses.dispersion_scale(
    losses.neg_log_dispersion(entropy_BC), mean=0.8
  )
  want = losses.mallows_theta(given[0] - given[1][..., 0], scale_B, beta=0.1)
  got = method(*given, normalised_entropy_BC=entropy_BC)
  np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, programs, inputs):
  """(workdir, folder of the page) of a study that was done."""
  workdir = tmp_path_factory.mktemp("dispersion")
  to, few = done(study.study(GRID), workdir, inputs)
  with on_one_device():
    factors = runs.factors_of(workdir, few, "dpo", GRID)
  return workdir, to, factors


@pytest.mark.slow
def test_runs_differ_in_the_factor_alone_and_its_mean_is_one(finished):
  workdir, _, factors = finished
  for method in GRID.methods:
    plain, dispersed = (
      files.read_json(workdir / "runs" / f"few,{method},{kind},0/config.json")
      for kind in ("plain", "dispersed")
    )
    mean = dispersed["loss"].pop("dispersion")
    assert mean == pytest.approx(factors.mean(), rel=1e-3)  # of one cut
    plain["loss"].pop("dispersion", None)
    assert plain == dispersed


def right(workdir, method, kind):
  """[seeds, pairs], by hand, of what the runs left."""
  found = []
  for seed in GRID.seeds:
    folder = workdir / "runs" / f"few,{method},{kind},{seed}"
    pairs = files.read_lines(folder / "eval_pairs.jsonl")
    ratio = np.array([one["policy"] for one in pairs]) - np.array(
      [one["references"][0] for one in pairs]
    )
    found.append(ratio[:, 0] > ratio[:, 1])
  return np.array(found, float)


@pytest.mark.slow
def test_the_page_has_the_gains_of_the_runs(finished):
  workdir, to, _ = finished
  text = (to / "dispersion.md").read_text()
  found = re.findall(r"^\| (.*) \|$", text, re.MULTILINE)
  rows = [row.split(" | ") for row in found]
  for method in GRID.methods:
    verdict, row = (row for row in rows if row[0] == method)
    plain, dispersed = (
      right(workdir, method, kind).mean() for kind in ("plain", "dispersed")
    )
    assert row[1:3] == [f"{plain:.3f}", f"{dispersed:.3f}"]
    assert verdict[1].startswith(f"{dispersed - plain:+.3f} [")
    assert row[3].startswith(f"{dispersed - plain:+.3f} [")
  assert (to / "dispersion.svg").stat().st_size
