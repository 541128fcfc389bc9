# SPDX-License-Identifier: Apache-2.0
"""The study of second references at debug sizes: its page, and pair weights."""

import numpy as np
import pytest

from docs.studies.which_reference import results, study
from mrpo_jax import files
from tests.material.studies import column, done, rows_of

GRID = study.Grid(
  variants=(
    ("copy", "dpo"),
    ("copy", "uniform"),
    ("other", "dpo"),
    ("other", "uniform"),
    ("other", "adaptive"),
  ),
  seeds=(0,),
  steps=3,
  batch=8,
  max_tokens=32,
  row_length=128,
)


class Told:
  """Results of which each variant's share of right pairs is told."""

  def __init__(self, accuracy):
    self.accuracy = accuracy

  def right(self, *variant):
    return np.array([[float(n < self.accuracy[variant]) for n in range(10)]])


def test_every_mixture_has_a_dpo_that_reads_the_same_texts():
  for name, method in study.VARIANTS:
    assert (results.DPO_OF[name], results.DPO) in study.VARIANTS
    assert method in study.METHODS
  two = {name for name, first in results.DPO_OF.items() if first == "other"}
  assert two == {"other", "mistokenised"}  # those with the second tokenizer


def test_a_statement_is_of_the_mean_over_its_references_and_weights():
  accuracy = {one: 5 for one in study.VARIANTS}
  accuracy |= {("larger", "uniform"): 9, ("tuned", "adaptive"): 7}
  accuracy |= {("untrained", "uniform"): 1}
  found = results.statements(study.Grid())
  told = Told(accuracy)
  leads = {text: lead_of(told).mean() for text, lead_of in found.items()}
  assert leads == pytest.approx(
    {
      "a better one helps": 0.15,  # (0.4 + 0.2) / 4
      "another one helps": 0.0,
      "a bad one harms": 0.1,  # 0.4 / 4
      "a better one helps more than a bad one": 0.25,
    }
  )


def test_a_pair_without_a_margin_weighs_half():
  found = results.pair_weight(np.array([0.0, 10.0, -10.0]), beta=0.1)
  np.testing.assert_allclose(found, [0.5, 0.268941, 0.731059], 1e-5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, programs, inputs):
  """(workdir, the page's text) of a study that was done."""
  workdir = tmp_path_factory.mktemp("which_reference")
  one = study.study(GRID)._replace(make_models=lambda workdir: None)
  to, _ = done(one, workdir, inputs)
  return workdir, (to / "which_reference.md").read_text()


def records(workdir, name, method, seed):
  folder = workdir / "runs" / f"few,{name},{method},{seed}"
  return files.read_lines(folder / "eval_pairs.jsonl")


def right(workdir, name, method):
  """[seeds, pairs], by hand: against the policy's start."""
  found = []
  for seed in GRID.seeds:
    pairs = records(workdir, name, method, seed)
    ratio = column(pairs, "policy") - column(pairs, "references")[:, 0]
    found.append(ratio[:, 0] > ratio[:, 1])
  return np.array(found, float)


@pytest.mark.slow
def test_the_page_has_the_numbers_of_the_runs(finished):
  workdir, page = finished
  rows = rows_of(page, "Few", 7)[2:]
  assert [tuple(row[:2]) for row in rows] == [
    ("-", "dpo, texts cut as with copy"),
    ("copy", "uniform"),
    ("-", "dpo, texts cut as with other"),
    ("other", "uniform"),
    ("other", "adaptive"),
  ]
  for row, variant in zip(rows, GRID.variants, strict=True):
    name, method = variant
    mine = right(workdir, *variant)
    assert row[2] == f"{mine.mean():.3f}"
    lead = mine - right(workdir, name, "dpo")
    said = f"{lead.mean():+.3f} ["
    assert row[3] == "-" if method == "dpo" else row[3].startswith(said)


@pytest.mark.slow
def test_a_copy_of_the_start_changes_nothing(finished):
  workdir, page = finished
  for seed in GRID.seeds:
    one, other = (
      column(records(workdir, "copy", method, seed), "policy")
      for method in ("dpo", "uniform")
    )
    np.testing.assert_allclose(one, other, 1e-4)
  [row] = [one for one in rows_of(page, "Few", 9) if one[0] == "copy"][1:]
  assert row[2] == "0.000"  # pairs weigh alike before a step


@pytest.mark.slow
def test_weights_of_pairs_are_those_of_the_harmonic_mean(finished):
  workdir, page = finished
  pairs = records(workdir, "other", "uniform", 0)
  references_NKC = column(pairs, "references").astype(float)
  first, second = references_NKC[:, 0], references_NKC[:, 1]
  # Clipped around the first, by the share of each response in the mean.
  size = np.abs(references_NKC.mean(1))
  epsilon = 0.1 * size / size.sum(1, keepdims=True)
  second = np.clip(second, (1 + epsilon) * first, (1 - epsilon) * first)
  mixture = np.log(2) - np.logaddexp(-first, -second)
  ratio = first - mixture
  start = 1 / (1 + np.exp(0.1 * (ratio[:, 0] - ratio[:, 1])))
  [row] = [
    one for one in rows_of(page, "Few", 9) if one[:2] == ["other", "uniform"]
  ]
  assert row[2] == f"{start.std():.3f}"
