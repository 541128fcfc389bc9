# SPDX-License-Identifier: Apache-2.0
"""MallowsPO's bandit: its numbers, and the command that makes them."""

import functools
import json
import pathlib
import sys

import numpy as np
import pytest

from configs import mallows_bandit
from mrpo_jax import cli, files
from mrpo_jax.errors import InputError
from mrpo_jax.runs import bandit
from mrpo_jax.runs.config import read

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "mallows_bandit.py"
FILES = {"bandit.png", "config.json", "metrics.jsonl", "results.json"}
# Of 500,000 steps written out in NumPy, to three digits.
EXPECTED = {
  "dpo/0.05": ([0.971, 0.012, 0.016, 0.000, 0.000], 15.529, 1.460),
  "dpo/0.1": ([0.995, 0.002, 0.003, 0.000, 0.000], 15.505, 1.577),
  "dpo/0.5": ([0.739, 0.121, 0.121, 0.020, 0.000], 15.731, 0.798),
  "phi_cubic/0.05": ([0.553, 0.193, 0.190, 0.064, 0.000], 15.848, 0.473),
  "phi_cubic/0.1": ([0.398, 0.233, 0.233, 0.136, 0.000], 15.892, 0.292),
  "phi_cubic/0.5": ([0.277, 0.249, 0.249, 0.224, 0.001], 15.866, 0.222),
}


def train(workdir, *overrides, arg="debug"):
  """Exit code of `mrpo train`, in the short form."""
  argv = ["train", f"--config={CONFIG}:{arg}", f"--workdir={workdir}"]
  return cli.main([*argv, *overrides])


DPO_ALONE = "--config.bandit.links.names=('dpo',)"


def contents(workdir):
  return {path.name: path.read_bytes() for path in workdir.iterdir()}


@pytest.fixture(scope="module")
def full(tmp_path_factory):
  """full(link): results.json of the whole length, of one of its losses."""

  @functools.cache
  def results(link):
    values = mallows_bandit.get_config().to_dict()
    values["bandit"]["links"]["names"] = (link,)
    values["log_every"] = 100_000
    workdir = tmp_path_factory.mktemp("full")
    bandit.train_run(read(values), workdir)
    return json.loads((workdir / "results.json").read_text())

  return results


# Each loss takes seconds; `dpo` goes the same way in the quick tests.
RUNS = [
  pytest.param(run, marks=[] if run.startswith("dpo") else [pytest.mark.slow])
  for run in EXPECTED
]


@pytest.mark.parametrize("run", RUNS)
def test_the_numbers(full, run):
  policy_Y, reward, kl = EXPECTED[run]
  result = full(run.partition("/")[0])[run]
  # Half of the last digit.
  np.testing.assert_allclose(result["policy"], policy_Y, atol=5.1e-4)
  np.testing.assert_allclose(result["reward"], reward, atol=5.1e-4)
  np.testing.assert_allclose(result["kl"], kl, atol=5.1e-4)


@pytest.mark.slow
def test_dpo_collapses_where_the_cubic_keeps_four(full):
  assert full("dpo")["dpo/0.05"]["policy"][0] > 0.95
  assert min(full("phi_cubic")["phi_cubic/0.05"]["policy"][:4]) > 0.05


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("bandit") / "run"
  assert train(workdir) == 0
  return workdir


def test_the_files(finished):
  assert FILES <= {path.name for path in finished.iterdir()}
  assert not list(finished.glob(".*"))  # drafts
  lines = files.read_lines(finished / "metrics.jsonl")
  assert [line["step"] for line in lines] == [1, *range(100, 2001, 100)]
  results = json.loads((finished / "results.json").read_text())
  assert len(results) == 24
  for run, result in results.items():
    # Where the policy is the reference every link says 1/2.
    assert lines[0][f"loss/{run}"] == pytest.approx(np.log(2), abs=1e-12)
    assert sum(result["policy"]) == pytest.approx(1.0, abs=1e-12)
  each = [v for key, v in lines[-1].items() if key.startswith("loss/")]
  assert lines[-1]["loss"] == pytest.approx(np.mean(each))
  assert lines[-1]["loss"] < lines[0]["loss"]
  image = (finished / "bandit.png").read_bytes()
  assert image.startswith(b"\x89PNG") and image.endswith(b"IEND\xaeB`\x82")


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.5, 1.0])
def test_the_raw_link_never_starts(finished, beta):
  results = json.loads((finished / "results.json").read_text())
  result = results[f"phi_raw/{beta}"]
  np.testing.assert_allclose(result["policy"], 0.2, rtol=0, atol=1e-12)
  assert result["reward"] == pytest.approx(12.896, abs=1e-9)
  assert result["kl"] == pytest.approx(0.0, abs=1e-12)


def test_a_finished_run_is_left_alone(capsys, finished):
  before = contents(finished)
  assert train(finished) == 0
  assert "finished before" in capsys.readouterr().out
  assert contents(finished) == before


@pytest.mark.parametrize(
  "override,match",
  [
    ("--config.bandit.lr=0.1", "bandit.lr: 0.005 -> 0.1; bandit.lr cannot"),
    ("--config.steps=5", "steps: 2000 -> 5; steps cannot"),
  ],
)
def test_another_config_is_refused(capsys, finished, override, match):
  before = contents(finished)
  assert train(finished, override) == 2
  assert match in capsys.readouterr().err
  assert contents(finished) == before


def test_a_stopped_run_starts_again(capsys, tmp_path):
  short = (DPO_ALONE, "--config.steps=7", "--config.log_every=3")
  assert train(tmp_path, *short) == 0
  out = capsys.readouterr().out
  assert "loss/beta  policy" in out and "step 7/7  loss 0.6" in out
  results = (tmp_path / "results.json").read_bytes()
  (tmp_path / "results.json").unlink()
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"step": 9')
  assert train(tmp_path, *short) == 0
  assert (tmp_path / "results.json").read_bytes() == results
  lines = files.read_lines(tmp_path / "metrics.jsonl")
  assert [line["step"] for line in lines] == [1, 3, 6, 7]


def test_logging_more_often_changes_no_result(tmp_path):
  short = (DPO_ALONE, "--config.steps=40")
  for every in (7, 40):
    workdir = tmp_path / str(every)
    assert train(workdir, *short, f"--config.log_every={every}") == 0
  one, other = (tmp_path / name / "results.json" for name in ("7", "40"))
  assert one.read_bytes() == other.read_bytes()


def test_without_matplotlib_the_rest_is_written(capsys, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  assert train(tmp_path, DPO_ALONE, "--config.steps=2") == 0
  assert (
    "no bandit.png: pip install 'mrpo-jax[plot]'" in capsys.readouterr().out
  )
  names = {path.name for path in tmp_path.iterdir()}
  assert FILES - names == {"bandit.png"}


def test_another_results_file_is_kept(capsys, tmp_path):
  (tmp_path / "results.json").write_text("mine")
  assert train(tmp_path) == 2
  assert "holds another results.json" in capsys.readouterr().err
  assert contents(tmp_path) == {"results.json": b"mine"}


def test_a_descent_that_diverges_is_stopped(capsys, tmp_path):
  ipo = "--config.bandit.links.dpo.name=ipo"
  assert train(tmp_path, DPO_ALONE, ipo, "--config.bandit.lr=10.0") == 2
  error = capsys.readouterr().err
  assert "config.bandit.lr is too large: loss/dpo/" in error


@pytest.mark.parametrize(
  "override,match",
  [
    ("bandit.lrr=0.1", "lrr is not known; did you mean lr? known here: averag"),
    ("momentum=0.1", "config.momentum is not known; known here: bandit, batch"),
    ("bandit.lr=-0.1", "config.bandit.lr must be positive, got -0.1"),
    ("bandit.lr=nan", "config.bandit.lr must be a finite number"),
    ("bandit.lr=fast", "lr"),
    ("bandit.average=0", "config.bandit.average must be positive"),
    ("bandit.betas=(0.1,-1.0)", "config.bandit.betas[1] must be positive"),
    ("bandit.betas=()", "config.bandit.betas must be a tuple of numbers"),
    ("bandit.betas=(0.1,0.1)", "config.bandit.betas repeats a number"),
    ("bandit.rewards=(1.0,2.0)", "winners[0] must be one of the 2 arms"),
    ("bandit.winners=(1,)", "config.bandit has 1 winners, but 16 losers"),
    (f"bandit.losers=({'5,' * 15}6)", "losers[15] must be one of the 5 arms"),
    (f"bandit.losers=({'5,' * 15}4)", "pair 15 has arm 4 on both sides"),
    ("batch=8", "config.batch is 8, but every step of a bandit sees all of"),
    ("steps=0", "config.steps must be positive"),
    ("steps=9999999999", "config.steps must be at most 2147483647"),
    ("seed=1", "config.seed must be one of 0"),
    ("eval_every=5", "config.eval_every must be one of 0"),
    ("bandit.links.names=()", "config.bandit.links.names is empty"),
    ("bandit.links.names=('ipo',)", "config.bandit.links.ipo is missing"),
    ("bandit.links.dpo.name=dpoo", "config.bandit.links.dpo: unknown loss"),
    ("bandit.links.dpo.name=tdpo", "loss 'tdpo' needs kl_BC"),
    ("bandit.links.dpo.name=nll", "loss 'nll' does not take 'beta'"),
    ("bandit.links.dpo.name=d2po", "'d2po' weighs tokens or remembers"),
    ("bandit.links.dpo.name=beta_dpo", "'beta_dpo' weighs tokens or rememb"),
    ("bandit.links.dpo.gamma=1.0", "config.bandit.links.dpo: loss 'dpo' does"),
    ("bandit.links.dpo.beta=1.0", "dpo.beta belongs into config.bandit.betas"),
    ("bandit.links.dpo.betas=(1.0,)", "betas belongs into config.bandit.betas"),
    ("bandit.links.phi_raw.phi=nan", "phi_raw.phi must be a finite number"),
  ],
)
def test_what_is_wrong_is_one_line(capsys, tmp_path, override, match):
  workdir = tmp_path / "run"
  assert train(workdir, f"--config.{override}") == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1
  assert match in error
  assert not workdir.exists()


@pytest.mark.parametrize("key", ["lr", "rewards", "winners", "betas", "links"])
def test_what_has_no_default_must_be_given(key):
  values = mallows_bandit.get_config().to_dict()
  del values["bandit"][key]
  with pytest.raises(InputError, match=f"config.bandit.{key}.* is "):
    read(values)
