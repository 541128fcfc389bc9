# SPDX-License-Identifier: Apache-2.0
"""The processes of a sweep: which run is next, what fails, who waits."""

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from mrpo_jax.errors import StoppedRun
from mrpo_jax.runs import owner
from mrpo_jax.sweeps import train
from mrpo_jax.sweeps.grid import axes_of, runs_of
from mrpo_jax.sweeps.sweep import Sweep


@dataclasses.dataclass(frozen=True)
class Standing(Sweep):
  """A sweep whose runs stand where a dict says."""

  at: dict = dataclasses.field(default_factory=dict)

  def step(self, run):
    return self.at.get(run.name, 0)


@pytest.fixture
def sweep(tmp_path):
  runs = runs_of(axes_of(["seed=0:4"]))
  steps = {run.name: 8 for run in runs}
  return Standing(tmp_path, {}, "c.py", [], runs, steps)


@pytest.fixture
def trained(monkeypatch):
  """(names of the runs that were trained, {name: how it fails} to fill)."""
  names, problems = [], {}

  def one(self, sweep, run):
    names.append(run.name)
    if run.name not in problems:
      sweep.at[run.name] = 8
    return problems.get(run.name, "")

  monkeypatch.setattr(train.Child, "train", one)
  monkeypatch.setattr(train, "POLL", 0.01)
  return names, problems


def test_runs_that_are_done_are_not_started_again(sweep, trained, caplog):
  sweep.at.update({"seed=0": 8, "seed=2": 4})
  with caplog.at_level(logging.INFO, "mrpo_jax"):
    train.train(sweep)
  assert trained[0] == ["seed=1", "seed=2", "seed=3"]
  assert "1 of 4 runs done before" in caplog.text
  assert "sweep 4/4 runs  seed=3  done in 0 s" in caplog.text
  assert "no report:" in caplog.text  # these runs have left nothing
  trained[0].clear()
  train.train(sweep)
  assert not trained[0]


def test_a_run_that_fails_is_said_and_the_others_go_on(sweep, trained, caplog):
  trained[1]["seed=1"] = "config.loss is odd"
  with pytest.raises(StoppedRun, match=r"1 of 4 runs failed: seed=1 \(config"):
    train.train(sweep)
  assert trained[0] == ["seed=0", "seed=1", "seed=2", "seed=3"]
  assert "seed=1 failed: config.loss is odd" in caplog.text


def test_a_run_that_another_process_has_is_waited_for(
  sweep, trained, monkeypatch, caplog
):
  looks = []

  def is_held(folder):
    if folder.name != "seed=0":
      return False
    looks.append(folder)
    if len(looks) == 8:
      sweep.at["seed=0"] = 8  # that process has ended it
    return True

  monkeypatch.setattr(owner, "is_held", is_held)
  with caplog.at_level(logging.INFO, "mrpo_jax"):
    train.train(sweep)
  assert trained[0] == ["seed=1", "seed=2", "seed=3"]
  assert caplog.text.count("waiting for seed=0, which another process") == 1


@pytest.mark.parametrize("why", [owner.IN_USE, owner.WRITTEN, owner.LOST])
def test_a_run_that_finds_itself_anothers_is_tried_again(
  sweep, trained, monkeypatch, why
):
  monkeypatch.setattr(train, "AGAIN", 0.05)
  trained[1]["seed=0"] = f"--workdir w {why}: process 3"
  first = train.Child.train

  def one(self, sweep, run):
    if trained[0].count("seed=0") == 2:
      trained[1].clear()
    return first(self, sweep, run)

  monkeypatch.setattr(train.Child, "train", one)
  train.train(sweep)
  assert trained[0].count("seed=0") == 3 and len(sweep.at) == 4


def test_a_run_that_another_process_has_ended_meanwhile_is_done(
  sweep, trained, monkeypatch, caplog
):
  first = train.Child.train

  def one(self, sweep, run):
    problem = first(self, sweep, run)
    sweep.at[run.name] = 8
    return problem

  monkeypatch.setattr(train.Child, "train", one)
  trained[1]["seed=0"] = f"--workdir w: {owner.WRITTEN}; start again"
  trained[1]["seed=1"] = "exit code 1, see log"
  train.train(sweep)
  assert trained[0] == ["seed=0", "seed=1", "seed=2", "seed=3"]
  assert "seed=1 is done, though its process says: exit code 1" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_sweep_after_its_run(sweep, trained, number, caplog):
  def one(self, sweep, run):
    trained[0].append(run.name)
    assert signal.getsignal(number) == self._pass_on
    os.kill(os.getpid(), number)
    return "stopped at step 3"

  handler = signal.getsignal(number)
  train.Child.train, before = one, train.Child.train
  try:
    with caplog.at_level(logging.INFO, "mrpo_jax"):
      if number == signal.SIGINT:
        with pytest.raises(KeyboardInterrupt):
          train.train(sweep)
      else:
        train.train(sweep)
  finally:
    train.Child.train = before
  assert trained[0] == ["seed=0"]
  assert "the sweep is stopped; the same command goes on" in caplog.text
  assert signal.getsignal(number) == handler


def told(sweep, monkeypatch, *argv):
  """What is said of a process of `mrpo` with these arguments."""
  sweep.claim()
  monkeypatch.setattr(Sweep, "command", lambda self, run: argv)
  return train.Child().train(sweep, sweep.runs[0])


def test_the_error_of_a_run_is_that_of_its_log(sweep, monkeypatch):
  told(sweep, monkeypatch, "inspect", "/before")
  why = told(sweep, monkeypatch, "inspect", "/none")
  assert "/none" in why and "/before" not in why
  log = sweep.log(sweep.runs[0]).read_text()
  assert "/before" in log and f"error: {why}\n" in log
  why = told(sweep, monkeypatch)  # which shows help, and says no error
  assert why == f"exit code 2, see {sweep.log(sweep.runs[0])}"


def test_no_more_of_a_log_is_read_than_its_end(sweep, monkeypatch):
  monkeypatch.setattr(train, "LAST", 4)
  why = told(sweep, monkeypatch, "inspect", "/none")
  assert why == f"exit code 2, see {sweep.log(sweep.runs[0])}"


def test_a_run_that_was_stopped_has_not_succeeded(sweep, monkeypatch):
  assert told(sweep, monkeypatch, "--version") == "stopped at step 0"


def test_the_process_of_a_run_ends_with_its_sweep(tmp_path):
  """`child` becomes mrpo only as long as its parent is there."""
  command = [sys.executable, "-m", train.CHILD, "1", "--version"]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 1 and not done.stdout
  command[3] = str(os.getpid())
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.stdout.startswith("mrpo_jax ")


# In the place of mrpo: says when it is there, and when it was told to end.
RUN = """\
import pathlib, signal, sys, time
def told(*_):
  pathlib.Path("told").touch()
  sys.exit()
signal.signal(signal.SIGTERM, told)
pathlib.Path("there").touch()
time.sleep(60)
"""
# In the place of the sweep: starts it, and is killed.
PARENT = """\
import os, subprocess, sys, time
from mrpo_jax.sweeps import child
if sys.argv[1:]:
  run, os.execv = os.execv, lambda program, _: run(program, [program, "run.py"])
  child.main(os.getppid())
subprocess.Popen([sys.executable, "parent.py", "child"])
while not os.path.exists("there"):
  time.sleep(0.02)
os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has prctl")
def test_the_kernel_tells_a_run_that_its_sweep_was_killed(tmp_path):
  (tmp_path / "run.py").write_text(RUN)
  (tmp_path / "parent.py").write_text(PARENT)
  subprocess.run([sys.executable, "parent.py"], cwd=tmp_path, timeout=60)
  end = time.monotonic() + 20
  while not (tmp_path / "told").exists() and time.monotonic() < end:
    time.sleep(0.05)
  assert (tmp_path / "told").exists()
