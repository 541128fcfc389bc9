# SPDX-License-Identifier: Apache-2.0
"""The re-study of weights at debug sizes: its page says what its runs did."""

import jax.numpy as jnp
import numpy as np
import pytest

from docs.studies.grid import pair_sets
from docs.studies.restudy import results, study
from mrpo_jax import files, losses
from mrpo_jax.data import source
from tests.material.studies import column, done, rows_of

GRID = study.Grid(
  variants=(
    *(("mean", f"dpo_{name}") for name in ("base", "second", "sharp")),
    ("mean", "arwc_mrpo"),
    ("mean", "vaw_multi"),
    ("mean", "thompson"),
  ),
  seeds=(0,),
  batch=8,
  judge_every=1,
  max_tokens=32,
  row_length=128,
)


class Told:
  """Results of which each variant's share of right pairs is told."""

  def __init__(self, **accuracy):
    self.accuracy = accuracy

  def right(self, scale, method, of=None):
    del scale, of
    return np.array([[float(n < self.accuracy[method]) for n in range(10)]])


def test_the_better_single_reference_leads_what_is_behind_it():
  grid = GRID._replace(variants=GRID.variants[:4])
  told = Told(dpo_base=5, dpo_second=8, dpo_sharp=6, arwc_mrpo=7)
  assert results.better(grid, told, "mean") == ("mean", "dpo_second")
  [(text, lead_of)] = results.single_leads(grid).items()
  assert text == "mean arwc_mrpo"
  assert lead_of(told).mean() == pytest.approx(0.1)


def test_strategies_are_compared_with_the_original_weights_of_their_scale():
  found = results.leads_over_original(study.Grid())
  assert [*found] == [
    *("mean vdw_multi", "mean vdw_mrpo", "mean vaw_multi", "mean vaw_mrpo"),
    *("mean window_multi", "mean thompson"),
  ]
  told = Told(vdw_mrpo=6, arwc_mrpo=9)
  assert found["mean vdw_mrpo"](told).mean() == pytest.approx(-0.3)


def test_clipping_is_compared_with_the_same_weights_without():
  found = results.leads_of_clipping(study.Grid())
  assert [*found] == ["mean vaw_mrpo_ctro", "sum vaw_mrpo_ctro"]
  told = Told(vaw_mrpo_ctro=4, vaw_mrpo=2)
  assert found["sum vaw_mrpo_ctro"](told).mean() == pytest.approx(0.2)


def test_validation_dialogues_are_neither_trained_on_nor_held_out(
  tmp_path, inputs
):
  few = pair_sets.divided(tmp_path, inputs / "pairs.jsonl", "somewhere")
  found = pair_sets.with_validation(tmp_path, few)
  train, held_out, validation = (
    [pair_sets.first_turn(one.prompt) for one in source.load(path)]
    for path in (found.train, found.held_out, found.validation)
  )
  assert found.pairs == len(train)
  assert len(train) + len(validation) == few.pairs
  assert validation and held_out
  assert not {*validation} & {*train, *held_out}


@pytest.mark.parametrize("k,name", [(0, "base"), (1, "second"), (2, "sharp")])
def test_a_single_reference_of_three_is_dpo_against_it(rng, k, name):
  policy_BC = (-50 + rng.normal(size=(3, 2))).astype(np.float32)
  ref_BCK = (-50 + rng.normal(size=(3, 2, 3))).astype(np.float32)
  method = losses.build(beta=0.1, **study.METHODS[f"dpo_{name}"])
  np.testing.assert_allclose(
    method(policy_BC, jnp.asarray(ref_BCK)),
    losses.dpo(policy_BC - ref_BCK[..., k], beta=0.1),
    1e-5,
  )


@pytest.fixture(scope="module")
def finished(tmp_path_factory, programs, inputs):
  """(workdir, the page's text) of a study that was done."""
  workdir = tmp_path_factory.mktemp("restudy")
  to, _ = done(study.study(GRID), workdir, inputs)
  return workdir, (to / "restudy.md").read_text()


def right(workdir, method):
  """[seeds, pairs], by hand: the policy's own log-probability per token."""
  found = []
  for seed in GRID.seeds:
    folder = workdir / "runs" / f"few,mean,{method},{seed}"
    pairs = files.read_lines(folder / "eval_pairs.jsonl")
    mean = column(pairs, "policy") / column(pairs, "tokens")
    found.append(mean[:, 0] > mean[:, 1])
  return np.array(found, float)


@pytest.mark.slow
def test_the_page_has_the_numbers_of_the_runs(finished):
  workdir, page = finished
  [start, *rows] = rows_of(page, "Few", 10)[2:]
  assert [tuple(row[:2]) for row in rows] == [*GRID.variants]
  pairs = files.read_lines(
    workdir / "runs" / "few,mean,dpo_base,0" / "eval_pairs.jsonl"
  )
  mean = column(pairs, "references")[:, 0] / column(pairs, "tokens")
  assert start[4] == f"{(mean[:, 0] > mean[:, 1]).mean():.3f}"
  shares = {method: right(workdir, method) for _, method in GRID.variants}
  for row in rows:
    mine = shares[row[1]]
    assert row[4] == f"{mine.mean():.3f}"
    for cell, name in zip(row[5:8], ("base", "second", "sharp"), strict=True):
      lead = mine - shares[f"dpo_{name}"]
      said = f"{lead.mean():+.3f} ["
      assert cell == "-" if row[1] == f"dpo_{name}" else cell.startswith(said)
  best = max(
    shares[f"dpo_{name}"].mean() for name in ("base", *study.REFERENCES)
  )
  lead = best - shares["vaw_multi"].mean()
  # The first table is on the better one, the second on the original weights.
  first, other = (
    row for row in rows_of(page, "Conclusion", 3) if row[0] == "mean vaw_multi"
  )
  assert first[1].startswith(f"{lead:+.3f} [")
  lead = (shares["vaw_multi"] - shares["arwc_mrpo"]).mean()
  assert other[1].startswith(f"{lead:+.3f} [")


@pytest.mark.slow
def test_weights_by_accuracy_are_measured_once(finished):
  workdir, page = finished
  folder = workdir / "runs" / "few,mean,vaw_multi,0"
  weights = {
    tuple(line[f"references/{name}/weight"] for name in ("base", "second"))
    for line in files.read_lines(folder / "metrics.jsonl")
  }
  assert len(weights) == 1
  [row] = [one for one in rows_of(page, "Few", 8) if one[1] == "vaw_multi"]
  assert row[2:4] == [f"{one:.3f}" for one in weights.pop()]
