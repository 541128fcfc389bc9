# SPDX-License-Identifier: Apache-2.0
"""The study of Diffusion-DPO: its measures, and a page from tiny runs."""

import numpy as np
import pytest

from docs.studies.diffusion_dpo.measure import Judge, squared_mmd
from docs.studies.diffusion_dpo.runs import Grid
from docs.studies.diffusion_dpo.study import study
from mrpo_jax.data.images.labelled import load_images

pytest.importorskip("sklearn")
from configs.diffusion_digits import DIGITS  # noqa: E402

GRID = Grid(
  betas=(200, 2_000),
  seeds=(0,),
  draws=2,
  samples=40,
  config="debug",
  changes={
    "steps": 3,
    "batch": 8,
    "eval_draws": 2,
    "start.steps": 3,
    "start.batch": 16,
    "drawn.pairs": 24,
    "drawn.held_out": 8,
    "denoiser.new": dict(patch=4, width=16, layers=1, heads=2, mlp_width=32),
  },
)


def test_distance_by_hand():
  # Two points each; kernels exp(-d^2 / 2) of the distances 1; 2; 0, 1, 2, 1.
  one, other = np.array([[0.0], [1.0]]), np.array([[0.0], [2.0]])
  k = np.exp(-np.array([0.5, 2.0]))
  want = k[0] + k[1] - 2 * np.mean([1.0, k[1], k[0], k[0]])
  assert squared_mmd(one, other, 1.0) == pytest.approx(want)


def test_distance_of_one_distribution_is_nothing():
  rng = np.random.default_rng(0)
  draws = rng.normal(size=(40, 2, 50, 3))
  found = [squared_mmd(one, other, 2.0) for one, other in draws]
  error = np.std(found) / np.sqrt(len(found))
  assert abs(np.mean(found)) < 3 * error
  assert squared_mmd(draws[0, 0], draws[0, 1] + 1.0, 2.0) > 0.1


def test_judge_reads_real_digits():
  judge = Judge(DIGITS)
  assert judge.accuracy > 0.975
  held_out = load_images("digits:held_out", classes=DIGITS)
  wrong = (held_out.class_N + 1) % 10
  right = judge(held_out.image_NHWX, held_out.class_N)
  assert right.read == judge.accuracy
  assert judge(held_out.image_NHWX, wrong).read < 0.05
  brighter = np.minimum(held_out.image_NHWX + 0.5, 1.0)
  found = judge(brighter, held_out.class_N)
  assert found.ink > right.ink and found.distance > right.distance
  low = judge(held_out.image_NHWX, held_out.class_N, among=(0, 1))
  assert low.read >= 0.98


@pytest.mark.slow  # a dozen runs
def test_the_page_has_the_numbers_of_the_runs(tmp_path):
  study(tmp_path / "w", GRID, to=tmp_path)
  page = (tmp_path / "diffusion_dpo.md").read_text()
  for name in ("start", "dpo, beta 200", "supervised on winners", "low (no"):
    assert f"| {name}" in page
  assert (tmp_path / "diffusion_dpo.png").read_bytes()[:4] == b"\x89PNG"
  # Started again it trains nothing, and says the same.
  runs = tmp_path / "w" / "runs"
  before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
  study(tmp_path / "w", GRID, to=tmp_path)
  assert (tmp_path / "diffusion_dpo.md").read_text() == page
  after = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
  assert before == after
