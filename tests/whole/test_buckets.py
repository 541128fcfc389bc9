# SPDX-License-Identifier: Apache-2.0
"""Whole runs in buckets: what they leave is what they leave on a disk."""

import subprocess
import sys

import pytest

from mrpo_jax import files
from tests.material import services
from tests.material.config import CONFIG
from tests.material.runs import mrpo
from tests.whole.bucket_kills import result

KINDS = ("gs", "s3")


def _skip(kind):
  if lacks := services.missing(kind):
    pytest.skip(f"not installed: {', '.join(lacks)}")


def _train(inputs, workdir, steps):
  return mrpo(
    *("train", f"--config={CONFIG}:dpo,inputs={inputs}"),
    *(f"--workdir={workdir}", f"steps={steps}", "checkpoint_every=1"),
    "--allow-changed",
  )


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_goes_on_in_a_bucket_is_that_of_a_disk(
  kind, inputs, tmp_path, monkeypatch, one_device, capsys
):
  _skip(kind)
  for steps in (2, 6):
    assert _train(inputs, tmp_path / "disk", steps) == 0
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  with services.service(kind) as (environment, _):
    for name, value in environment.items():
      monkeypatch.setenv(name, value)
    place = f"{kind}://{services.BUCKET}"
    for steps in (2, 6):
      assert _train(inputs, f"{place}/run", steps) == 0
    assert result(f"{place}/run") == result(tmp_path / "disk")
    here = {path.name for path in (tmp_path / "disk").iterdir()}
    there = {path.name for path in files.path_of(f"{place}/run").iterdir()}
    assert {one.split(".")[0] for one in here} == {
      one.split(".")[0] for one in there
    }
    # The model that a run exports there, another one starts from; what is
    # scored of it lies there, too.
    assert mrpo("export", f"--workdir={place}/run", f"--to={place}/model") == 0
    assert mrpo("export", f"--workdir={place}/run", f"--to={place}/model") == 2
    assert "exists; remove it" in capsys.readouterr().err
    files.write_atomically(
      files.path_of(f"{place}/pairs.jsonl"),
      (inputs / "pairs.jsonl").read_bytes(),
    )
    assert not mrpo(
      *("train", f"--config={CONFIG}:dpo,inputs={inputs}", "steps=1"),
      f"--workdir={place}/next",
      *(f"policy.path={place}/model", f"data.train={place}/pairs.jsonl"),
      *(f"--store={place}/store", "references.base.mode=scored"),
      f"references.base.path={place}/model",
    )
    assert mrpo("store", "verify", f"--store={place}/store") == 0
  said = "".join(capsys.readouterr())
  assert services.SECRET not in said and "next stands at step 1" in said
  assert "store: every file is as it was written" in said


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_runs_that_are_killed_at_any_request_end_as_on_a_disk(kind):
  _skip(kind)
  done = subprocess.run(
    [
      *(sys.executable, "-m", "tests.whole.bucket_kills"),
      *(f"--kind={kind}", "--kills=4"),
    ],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert '"kills": 4' in done.stdout
