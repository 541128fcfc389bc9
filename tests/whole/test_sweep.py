# SPDX-License-Identifier: Apache-2.0
"""Whole sweeps: killed, stopped, shared by several processes, failing."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from mrpo_jax import files
from mrpo_jax.training import checkpoints
from tests.material.config import CONFIG
from tests.material.runs import lines_of

PATIENCE = 600  # seconds, for one moment to come
STEPS = 4
NAMES = ("loss.beta=0.1,seed=0", "loss.beta=1,seed=0")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sweep(inputs, tmp_path_factory):
  """sweep(workdir, *flags): a process that sweeps two runs of four steps."""
  cache = tmp_path_factory.mktemp("programs")
  environment = {
    **os.environ,
    "XLA_FLAGS": "--xla_backend_optimization_level=0",  # and one device
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
  }

  def command(workdir, *flags, varied="loss.beta=0.1,1"):
    given = (f"steps={STEPS}", "eval_every=2", "checkpoint_every=1")
    return subprocess.Popen(
      [
        *(sys.executable, "-m", "mrpo_jax", "sweep"),
        f"--config={CONFIG}:dpo,inputs={inputs}",
        *("--vary", varied, "--vary", "seed=0"),
        f"--workdir={workdir}",
        f"--config.data.eval={inputs}/few.jsonl",
        f"--config.data.train={inputs}/few.jsonl",
        *(f"--config.{one}" for one in given),
        *flags,
      ],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  return command


@pytest.fixture(scope="module")
def finished(sweep, tmp_path_factory):
  """The folder of a sweep that nobody disturbed, and what it said."""
  folder = tmp_path_factory.mktemp("finished")
  process = sweep(folder)
  said = process.communicate(timeout=PATIENCE)[0]
  assert process.returncode == 0, said
  return folder, said


def results_of(folder):
  """results.json without what a clock says."""
  found = files.read_json(folder / "results.json")
  for one in found.values():
    del one["pairs_per_second"]
  return found


def wait_for(process, moment):
  end = time.monotonic() + PATIENCE
  while not moment():
    assert process.poll() is None, process.communicate()[0]
    assert time.monotonic() < end
    time.sleep(0.02)


def has_lines(folder, count):
  path = folder / "metrics.jsonl"
  return path.exists() and path.read_bytes().count(b"\n") >= count


MOMENTS = {
  "before the first run": lambda w: (w / "sweep.json").exists(),
  "within the first run": lambda w: has_lines(w / NAMES[0], 2),
  "after the first run": lambda w: STEPS in checkpoints.steps(w / NAMES[0]),
  "within the second run": lambda w: has_lines(w / NAMES[1], 1),
}


def test_a_sweep_leaves_runs_logs_and_a_report(finished):
  folder, said = finished
  assert [*files.read_json(folder / "results.json")] == [*NAMES]
  assert "sweep 2/2 runs  loss.beta=1,seed=0  done in" in said
  assert "difference to loss.beta=0.1,seed=0" in said
  assert f"report: {folder / 'report.html'}" in said
  for name in NAMES:
    assert len(lines_of(folder / name)) == STEPS
    assert "finished: " in (folder / "logs" / f"{name}.txt").read_text()


def test_a_sweep_that_is_done_starts_nothing(sweep, finished):
  folder, _ = finished
  before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*")}
  process = sweep(folder)
  said = process.communicate(timeout=PATIENCE)[0]
  assert process.returncode == 0 and "2 of 2 runs done before" in said
  assert {p: p.stat().st_mtime_ns for p in folder.glob("*/*")} == before


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment_the_same_command_ends_with_the_same_results(
  sweep, finished, tmp_path, moment
):
  for both in (False, True):  # the sweep alone, then its run, too
    process = sweep(tmp_path)
    try:
      wait_for(process, lambda: MOMENTS[moment](tmp_path))
    except AssertionError:
      if not both:
        raise
      # The second command began past that moment, and has ended.
    process.kill()
    process.wait()
    for lease in tmp_path.glob("*/owner-*.json") if both else ():
      with contextlib.suppress(ValueError, OSError, KeyError):
        os.kill(json.loads(lease.read_text())["pid"], signal.SIGKILL)
  process = sweep(tmp_path)
  said = process.communicate(timeout=PATIENCE)[0]
  assert process.returncode == 0, said
  assert results_of(tmp_path) == results_of(finished[0])
  for name in NAMES:
    steps = [line["step"] for line in lines_of(tmp_path / name)]
    assert steps == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
  "number,code", [(signal.SIGINT, 130), (signal.SIGTERM, 0)]
)
def test_a_signal_ends_the_run_and_the_sweep_and_it_goes_on(
  sweep, finished, tmp_path, number, code
):
  process = sweep(tmp_path)
  wait_for(process, lambda: has_lines(tmp_path / NAMES[0], 1))
  process.send_signal(number)
  said = process.communicate(timeout=PATIENCE)[0]
  if "stopped" not in said:
    pytest.skip("it was done before the signal came")
  assert process.returncode == code, said
  assert "the same command goes on" in said
  assert checkpoints.steps(tmp_path / NAMES[0])
  assert not (tmp_path / NAMES[1]).exists()
  process = sweep(tmp_path)
  assert process.wait(timeout=PATIENCE) == 0
  assert results_of(tmp_path) == results_of(finished[0])


def test_parts_and_doubles_share_the_runs_and_train_each_once(
  sweep, finished, tmp_path
):
  processes = [sweep(tmp_path, f"--part={part}/2") for part in (0, 1, 0)]
  said = [one.communicate(timeout=PATIENCE)[0] for one in processes]
  assert [one.returncode for one in processes] == [0, 0, 0], said
  assert results_of(tmp_path) == results_of(finished[0])
  for name in NAMES:
    log = (tmp_path / "logs" / f"{name}.txt").read_text()
    assert log.count("finished: ") == 1 and "resuming" not in log


def test_a_pair_is_scored_once_for_all_shares_of_the_data(sweep, tmp_path):
  scored = "--config.references.base.mode=scored"
  process = sweep(tmp_path, scored, varied="data.fraction=0.5,1")
  said = process.communicate(timeout=PATIENCE)[0]
  assert process.returncode == 0, said
  found = []
  for name in ("data.fraction=0.5,seed=0", "data.fraction=1,seed=0"):
    log = (tmp_path / "logs" / f"{name}.txt").read_text()
    found.append([line for line in log.splitlines() if ": scored " in line])
  # Of eight pairs, which are held out as well, four are in the half.
  assert found[0][0] == "references.base: scored 4 pairs of train"
  assert not (tmp_path / "data.fraction=1,seed=0" / "store").exists()
  assert sum(int(line.split()[2]) for one in found for line in one) == 8


def test_a_run_that_fails_is_listed_and_the_others_are_reported(
  sweep, tmp_path
):
  (tmp_path / "sweep" / NAMES[0]).mkdir(parents=True)
  # As if a disk had been damaged: a folder in the place of a file.
  broken = tmp_path / "sweep" / NAMES[0] / "metrics.jsonl"
  broken.mkdir()
  process = sweep(tmp_path / "sweep")
  said = process.communicate(timeout=PATIENCE)[0]
  assert process.returncode == 1
  assert f"error: 1 of 2 runs failed: {NAMES[0]} (" in said
  assert [*files.read_json(tmp_path / "sweep" / "results.json")] == [NAMES[1]]
