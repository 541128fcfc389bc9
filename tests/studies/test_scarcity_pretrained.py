# SPDX-License-Identifier: Apache-2.0
"""The study of scarce pairs on pretrained models, with tiny ones in place."""

import pytest

from docs.studies.scarcity_pretrained import study
from mrpo_jax import files
from mrpo_jax.errors import InputError
from tests.material.runs import on_one_device
from tests.material.studies import column, done, rows_of

GRID = study.GRID._replace(
  fractions=(0.1, 1.0),
  seeds=(0,),
  batch=4,
  least_steps=2,
  max_tokens=32,
  row_length=128,
)


@pytest.fixture
def real(tmp_path, inputs):
  """A folder as `launch/real.sh` leaves it."""
  (tmp_path / "real" / "models").mkdir(parents=True)
  for name, model in ((study.POLICY, "base"), (study.SECOND, "second")):
    (tmp_path / "real" / "models" / name).symlink_to(inputs / model)
  return tmp_path / "real"


@pytest.mark.slow
def test_the_page_has_the_numbers_of_its_runs(real, tmp_path, programs, inputs):
  workdir = tmp_path / "study"
  workdir.mkdir()
  with on_one_device():
    to, _ = done(study.study(real, GRID), workdir, inputs)
  text = (to / "scarcity_pretrained.md").read_text()
  rows = rows_of(text, "Few", 7)[2:]
  assert len(rows) == 4
  for row, name in zip(
    rows,
    [f"{f},{m}" for f in ("0.1", "1") for m in GRID.methods],
    strict=True,
  ):
    run = workdir / "runs" / f"few,{name},0"
    pairs = files.read_lines(run / "eval_pairs.jsonl")
    ratio = column(pairs, "policy") - column(pairs, "references")[:, 0]
    assert row[2] == f"{(ratio[:, 0] > ratio[:, 1]).mean():.3f}"
    config = files.read_json(run / "config.json")
    assert config["policy"]["adapter"]["rank"] == 16
    assert config["data"]["conversations"] == "hh"
  assert "--workdir=DIR --real=DIR`" in text
  assert "Gemma 3 270M" in text and "multi_dpo" not in text


def test_a_folder_without_a_model_is_refused(real, tmp_path):
  (real / "models" / study.SECOND).unlink()
  one = study.study(real)
  with pytest.raises(InputError, match="gemma3 is missing; bash launch/real.s"):
    one.make_models(tmp_path)
