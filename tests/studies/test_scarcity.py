# SPDX-License-Identifier: Apache-2.0
"""The study of scarce pairs at debug sizes: its page says what its runs did."""

import numpy as np
import pytest

from docs.studies.grid import pair_sets, results
from docs.studies.grid.study import run
from docs.studies.scarcity import study
from mrpo_jax import files, losses
from mrpo_jax.data import source
from mrpo_jax.errors import InputError
from tests.material.runs import on_one_device
from tests.material.studies import column, done, rows_of

GRID = study.Grid(
  fractions=(0.1, 1.0),
  methods=("dpo", "mrpo_adaptive"),
  seeds=(0, 1),
  batch=4,
  least_steps=2,
  max_tokens=32,
  row_length=128,
)


def test_no_dialogue_of_a_file_stands_on_both_sides(tmp_path, inputs):
  found = pair_sets.divided(tmp_path, inputs / "pairs.jsonl", "somewhere")
  train, held_out = (
    source.load(path) for path in (found.train, found.held_out)
  )
  assert found.pairs == len(train)
  assert len(train) + len(held_out) == 40
  assert 0 < len(held_out) < 20
  first = [
    {pair_sets.first_turn(one.prompt) for one in s} for s in (train, held_out)
  ]
  assert not set.intersection(*first)


def test_a_pass_over_few_pairs_has_the_least_steps():
  grid = study.Grid()
  assert [grid.steps(one, 1884) for one in grid.fractions] == [
    30,
    30,
    30,
    36,
    118,
  ]


def test_its_dpo_is_dpo(rng):
  policy_BC, ref_BCK = -50 + rng.normal(size=(3, 2)), rng.normal(size=(3, 2, 2))
  method = losses.build(beta=0.1, **study.METHODS["dpo"])
  given = policy_BC.astype(np.float32), -50 + ref_BCK.astype(np.float32)
  np.testing.assert_allclose(
    method(*given), losses.dpo(given[0] - given[1][..., 0], beta=0.1), 1e-6
  )


@pytest.mark.parametrize(
  "intervals,said",
  [
    ([(0.01, 0.03), (0.001, 0.1)], "**holds**"),
    ([(-0.01, 0.01), (-0.02, 0.019)], "**does not hold**"),
    ([(0.01, 0.03), (-0.001, 0.1)], "**cannot be told at this size**"),
    ([(0.01, 0.03)], "cannot be told from one pair set"),
  ],
)
def test_the_verdict_follows_the_rule(intervals, said):
  assert results.verdict(intervals) == said


@pytest.fixture(scope="module")
def finished(tmp_path_factory, programs, inputs):
  """(workdir, folder of the page, pairs) of a study that was done."""
  workdir = tmp_path_factory.mktemp("scarcity")
  with on_one_device():
    yield workdir, *done(study.study(GRID), workdir, inputs)


def right(workdir, fraction, method):
  """[seeds, pairs], by hand, of what the runs left."""
  found = []
  for seed in GRID.seeds:
    name = f"few,{fraction},{method},{seed}"
    pairs = files.read_lines(workdir / "runs" / name / "eval_pairs.jsonl")
    ratio = column(pairs, "policy") - column(pairs, "references")[:, 0]
    found.append(ratio[:, 0] > ratio[:, 1])
  return np.array(found, float)


@pytest.mark.slow
def test_the_page_has_the_numbers_of_the_runs(finished):
  workdir, page, _ = finished
  text = (page / "scarcity.md").read_text()
  rows = rows_of(text, "Few", 7)[2:]
  assert [row[:2] for row in rows] == [
    [share, method]
    for share in ("10%", "100%")
    for method in ("dpo", "mrpo_adaptive")
  ]
  for row, (fraction, method) in zip(
    rows, [(f, m) for f in ("0.1", "1") for m in GRID.methods], strict=True
  ):
    mine = right(workdir, fraction, method)
    assert row[2] == f"{mine.mean():.3f}"
    if method == "dpo":
      assert row[3:] == ["-"] * 4
      continue
    lead = mine - right(workdir, fraction, "dpo")
    assert row[3].startswith(f"{lead.mean():+.3f} [")
  # Scarce pairs are the smaller share here: its lead is the verdict's.
  scarce = right(workdir, "0.1", "mrpo_adaptive") - right(workdir, "0.1", "dpo")
  most = right(workdir, "1", "mrpo_adaptive") - right(workdir, "1", "dpo")
  first, other = (
    row for row in rows_of(text, "Conclusion", 3) if row[0] == "mrpo_adaptive"
  )
  assert first[1].startswith(f"{scarce.mean():+.3f} [")
  assert other[1].startswith(f"{(scarce - most).mean():+.3f} [")
  assert (page / "scarcity.svg").stat().st_size


@pytest.mark.slow
def test_a_study_with_other_settings_does_not_take_these_runs(finished):
  workdir, page, few = finished
  other = study.study(GRID._replace(max_tokens=48))
  with pytest.raises(InputError, match="max_prompt"):
    run(other, workdir, [few], page)
