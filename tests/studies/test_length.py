# SPDX-License-Identifier: Apache-2.0
"""The study of length at debug sizes: its page says what its runs did."""

import re
import types

import numpy as np
import pytest

from docs.studies.grid import pair_sets
from docs.studies.length import results, study
from mrpo_jax import files
from mrpo_jax.data.formats import PreferencePair
from mrpo_jax.errors import InputError
from tests.material.studies import done

GRID = study.Grid(
  methods=("dpo", "sampo"),
  seeds=(0,),
  steps=2,
  batch=4,
  max_prompt=32,
  max_response=32,
  row_length=128,
  prompts=3,
  longest_prompt=10_000,
)


def test_lengths_by_hand():
  pairs = [{"pair": 4, "tokens": [7, 9]}, {"pair": 5, "tokens": [3, 1]}]
  assert results.excess(pairs) == {4: -2, 5: 2}
  said = [("aaa", "b"), ("a", "bb"), ("cc", "c"), ("d", "d")]
  pairs = [PreferencePair("p", *one) for one in said]
  assert results.longer_share(pairs) == pytest.approx(2 / 3)  # but for a tie
  assert results.longer_share(pairs[3:]) == 0.5


class Given(results.Lengths):
  """Lengths of samples and margins that are given."""

  def __init__(self, growth, margins):
    self.result = types.SimpleNamespace(prompts=None)
    self.excess_N, self._growth, self._margins = np.arange(3), growth, margins

  def growth(self, method):
    return np.array([self._growth[method]], float)

  def margins(self, method, of=None):
    return np.array([self._margins[method]], float)


def test_a_method_that_moves_the_other_way_does_not_move_less():
  growth = {"dpo": [-6, -6, -6], "simpo": [74, 74, 74], "sampo": [2, 2, 2]}
  margins = {"dpo": [1, 2, 3], "simpo": [3, 2, 1], "sampo": [2, 1, 3]}
  found = Given(growth, margins)
  assert found.steadier("simpo") == (-68, [-68, -68])
  assert found.steadier("sampo") == (4, [4, 4])
  value, interval = found.weaker("simpo")
  assert value == pytest.approx(0)  # +1 and -1 are as strong
  np.testing.assert_allclose(interval, [0, 0], atol=1e-12)
  # Ranks 1 2 3 and 2 1 3: 1 - 6 * 2 / (3 * 8) = 1/2.
  assert found.weaker("sampo")[0] == pytest.approx(1 / 2)


def test_every_method_is_the_published_one():
  assert [*study.METHODS] == ["dpo", "sampo", "ld_dpo", "simpo", "r_dpo"]
  assert len(study.study().variants) * len(study.Grid().seeds) == 25


def test_prompts_are_held_out_ones_and_the_same_again(tmp_path, inputs):
  few = pair_sets.divided(tmp_path, inputs / "pairs.jsonl", "somewhere")
  path = study.prompts_of(tmp_path, few, GRID)
  rows = files.read_lines(path)
  assert len(rows) == 3
  held_out = [one["prompt"] for one in files.read_lines(few.held_out)]
  assert all(row["prompt"] in held_out for row in rows)
  before = path.read_bytes()
  path.unlink()
  assert study.prompts_of(tmp_path, few, GRID).read_bytes() == before
  path.unlink()
  with pytest.raises(InputError, match="no prompt has up to 0"):
    study.prompts_of(tmp_path, few, GRID._replace(longest_prompt=0))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, programs, inputs):
  """(workdir, folder of the page) of a study that was done."""
  workdir = tmp_path_factory.mktemp("length")
  to, _ = done(study.study(GRID), workdir, inputs)
  return workdir, to


def said(workdir, method, *, last):
  """[seeds, prompts] tokens of the answers, by hand."""
  found = []
  for seed in GRID.seeds:
    lines = files.read_lines(
      workdir / "runs" / f"few,{method},{seed}" / "metrics.jsonl"
    )
    lines = [one for one in lines if "samples" in one]
    assert [one["step"] for one in lines] == [0, GRID.steps]
    found.append([one["tokens"] for one in lines[-1 if last else 0]["samples"]])
  return np.array(found)


@pytest.mark.slow
def test_the_page_has_the_lengths_of_what_the_runs_said(finished):
  workdir, to = finished
  text = (to / "length.md").read_text()
  tables = {
    width: [
      cells
      for row in re.findall(r"^\| (.*) \|$", text, re.MULTILINE)
      if len(cells := row.split(" | ")) == width
    ]
    for width in (3, 5, 6)
  }
  start = said(workdir, "dpo", last=False)
  # The start says the same whatever is trained later.
  np.testing.assert_array_equal(start, said(workdir, "sampo", last=False))
  assert tables[5][2][:2] == ["the start", f"{start.mean():.1f}"]
  growth = {}
  for row, method in zip(tables[5][3:], GRID.methods, strict=True):
    after = said(workdir, method, last=True)
    growth[method] = (after - start).mean()
    assert row[:2] == [method, f"{after.mean():.1f}"]
    assert row[3].startswith(f"{growth[method]:+.1f} [")
  apart = growth["sampo"] - growth["dpo"]
  assert tables[5][4][4].startswith(f"{apart:+.1f} [")
  assert [row[0] for row in tables[6][2:]] == [*GRID.methods]
  statements = [row[0] for row in tables[3][2:]]
  assert statements == [
    "`dpo` moves the length of samples",
    "`sampo` moves it less",
    "margins of `sampo` follow length less",
  ]
  assert (to / "length.svg").stat().st_size


@pytest.mark.slow
def test_margins_are_correlated_with_the_lengths_of_the_records(finished):
  stats = pytest.importorskip("scipy.stats")
  workdir, to = finished
  text = (to / "length.md").read_text()
  found = []
  for seed in GRID.seeds:
    folder = workdir / "runs" / f"few,sampo,{seed}"
    pairs = files.read_lines(folder / "eval_pairs.jsonl")
    margins = [
      one["policy"][0]
      - one["references"][0][0]
      - one["policy"][1]
      + one["references"][0][1]
      for one in pairs
    ]
    excess = [one["tokens"][0] - one["tokens"][1] for one in pairs]
    found.append(stats.spearmanr(margins, excess).statistic)
  (row,) = re.findall(r"^\| sampo \| (\d.* \| .* \| .*) \|$", text, re.M)[-1:]
  assert row.split(" | ")[3].startswith(f"{np.mean(found):+.3f} [")
