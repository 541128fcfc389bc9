# SPDX-License-Identifier: Apache-2.0
"""Whole runs whose rows weigh their references."""

import json

import numpy as np
import pytest

from mrpo_jax import files
from tests.material.config import CONFIG
from tests.material.runs import lines_of, mrpo, untimed

pytestmark = pytest.mark.slow
ROUTES = ([1, 0], {"second": 2})


@pytest.fixture(scope="module")
def train(inputs, tmp_path_factory):
  """train(weight of a row by its place or None, flags): its folder."""
  folder = tmp_path_factory.mktemp("routes")
  rows = files.read_lines(inputs / "pairs.jsonl")

  def command(name, route, *flags, loss="mrpo", code=0):
    pairs = folder / f"{name}.jsonl"
    lines = [row | {"route": route(n)} for n, row in enumerate(rows)]
    if not pairs.exists():
      pairs.write_text("".join(json.dumps(one) + "\n" for one in lines))
    done = mrpo(
      "train",
      f"--config={CONFIG}:{loss},inputs={inputs}",
      f"--workdir={folder / name}",
      f"--config.data.train={pairs}",
      f"--config.data.eval={pairs}",
      *flags,
    )
    assert done == code
    return folder / name

  return command


COLUMN = "--config.data.reference_weights=route"


def evaluated(workdir):
  return files.read_lines(workdir / "eval_pairs.jsonl")


@pytest.mark.parametrize("loss", ["mrpo", "multi_dpo"])
def test_rows_of_one_weight_train_as_that_weight_does(train, loss):
  flags = (COLUMN, "--config.data.rows=16")
  by_row = train(f"{loss}-rows", lambda n: [0.75, 0.25], *flags, loss=loss)
  fixed = train(
    f"{loss}-fixed",
    lambda n: None,
    "--config.data.rows=16",
    "--config.loss.weights=(0.75, 0.25)",
    loss=loss,
  )
  for one, other in zip(untimed(by_row), untimed(fixed), strict=True):
    assert one.keys() == other.keys()
    for name in one:
      np.testing.assert_allclose(one[name], other[name], 1e-4, 1e-5, name)


def test_routes_of_scored_references_in_other_rows_and_meshes(train):
  def route(n):
    return ROUTES[n % 2]

  online = train("online", route, COLUMN)
  scored = ("--config.references.second.mode=scored", "--config.data.rows=16")
  mesh = ("--config.mesh.data=2", "--config.mesh.fsdp=4")
  scored = train("scored", route, COLUMN, *scored, *mesh)
  for a, b in zip(lines_of(online), lines_of(scored), strict=True):
    for name in ("loss", "eval/loss", "references/second/weight"):
      assert (name in a) == (name in b)
      assert name not in a or a[name] == pytest.approx(b[name], rel=1e-4)
  assert lines_of(scored)[-1]["eval/references/second/weight"] == 0.5


def test_a_route_is_that_of_its_own_pair(train):
  """With one reference a pair, its reward is against that one."""
  flags = (COLUMN, "--config.loss.clip=None", "--config.steps=1")
  done = train("own", lambda n: ROUTES[n % 2], *flags)
  (line,) = [one for one in lines_of(done) if "eval/loss" in one]
  margins = []
  for record in evaluated(done):
    own = record["references"][record["pair"] % 2]
    policy = record["policy"]
    margins.append((policy[0] - own[0]) - (policy[1] - own[1]))
  want = np.mean(np.logaddexp(0.0, -0.1 * np.array(margins)))
  beta = json.loads((done / "config.json").read_text())["loss"].get("beta", 0.1)
  assert beta == 0.1
  assert line["eval/loss"] == pytest.approx(want, rel=1e-4)


def test_other_weights_are_other_data(train, capsys):
  first = train("same", lambda n: [1, 1], COLUMN, "--config.steps=1")
  rows = files.read_lines(first.with_suffix(".jsonl"))
  files.write_lines(
    first.with_suffix(".jsonl"), [row | {"route": [1, 2]} for row in rows]
  )
  train("same", lambda n: None, COLUMN, "--config.steps=1", code=2)
  assert "identity.data.train" in capsys.readouterr().err


def test_a_row_without_weights_leaves_nothing(train, capsys):
  folder = train("none", lambda n: [1, 1] if n else None, COLUMN, code=2)
  assert (
    "none.jsonl line 1: 'route' must hold weights" in capsys.readouterr().err
  )
  assert not folder.exists()
