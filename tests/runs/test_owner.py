# SPDX-License-Identifier: Apache-2.0
"""One run at a time has a workdir; a dead one does not keep it."""

import concurrent.futures
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from mrpo_jax import configs, files, processes
from mrpo_jax.errors import InputError, StoppedRun
from mrpo_jax.runs import owner
from tests.material.runs import mrpo, train_debug

ROOT = pathlib.Path(__file__).parents[2]
# Has the workdir until it is killed.
HOLDER = """
import sys, time
from mrpo_jax.runs import owner
with owner.owned(sys.argv[1], owner.before(sys.argv[1])):
  print("ready", flush=True)
  time.sleep(1000)
"""
BANDIT = ("--config=configs/mallows_bandit.py", "--config.steps=2")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  for name, seconds in (("BEAT", 0.05), ("STALE", 0.6), ("POLL", 0.02)):
    monkeypatch.setattr(owner, name, seconds)
  monkeypatch.chdir(ROOT)


@pytest.fixture
def holder(tmp_path):
  """A process that has tmp_path / "run"."""
  process = subprocess.Popen(
    [sys.executable, "-c", HOLDER, tmp_path / "run"],
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "ready\n"
  yield process
  process.kill()
  process.wait()


def leases(workdir):
  return sorted(path.name for path in workdir.glob("owner-*"))


def forge(workdir, number=1, **changed):
  """A lease as this process would write it, with other values."""
  workdir.mkdir(exist_ok=True)
  path = workdir / f"owner-{number}.json"
  path.write_text(json.dumps(owner._me() | changed))
  return path


def take(workdir):
  """Takes it and gives it back."""
  with owner.owned(workdir, owner.before(workdir)):
    (name,) = leases(workdir)
  assert leases(workdir) == []
  return name


def test_a_workdir_is_given_back_and_nothing_is_left(tmp_path):
  workdir = tmp_path / "a" / "run"
  assert take(workdir) == "owner-1.json"
  assert not (tmp_path / "a").exists()
  with owner.owned(workdir, owner.before(workdir)):
    (workdir / "made").touch()
  assert [path.name for path in workdir.iterdir()] == ["made"]


@pytest.mark.parametrize("command", ["debug", "bandit"])
def test_a_second_run_is_refused_and_changes_nothing(
  holder, tmp_path, capsys, command
):
  workdir = tmp_path / "run"
  if command == "debug":
    code = train_debug(workdir, f"--config.data.train={configs.HH_HARMLESS}")
  else:
    code = mrpo("train", *BANDIT, f"--workdir={workdir}")
  assert code == 2
  error = capsys.readouterr().err
  assert error.startswith(
    f"error: --workdir {workdir} is in use by another run"
  )
  assert f"process {holder.pid} on " in error
  assert leases(workdir) == ["owner-1.json"]
  assert len(list(workdir.iterdir())) == 1


@pytest.mark.parametrize("is_reaped", [True, False])
def test_a_killed_owner_does_not_block_for_a_moment(
  holder, tmp_path, monkeypatch, is_reaped
):
  monkeypatch.setattr(owner, "STALE", 1e6)
  workdir = tmp_path / "run"
  holder.send_signal(signal.SIGKILL)
  if is_reaped:
    holder.wait()
  else:  # a zombie has a number still
    stat = pathlib.Path(f"/proc/{holder.pid}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "Z":
      time.sleep(0.01)
  assert take(workdir) == "owner-2.json"


def test_a_number_that_another_process_has_now_does_not_block(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(owner, "STALE", 1e6)
  forge(tmp_path, born="1")  # of this very number
  assert take(tmp_path) == "owner-2.json"


OTHERS = [dict(kernel="another"), dict(kernel=""), dict(pid="x")]


@pytest.mark.parametrize("changed", OTHERS)
def test_elsewhere_it_lives_as_long_as_it_shows_it(tmp_path, changed):
  path, ended = forge(tmp_path, host="far", **changed), threading.Event()

  def beat():
    while not ended.wait(0.1):
      os.utime(path)

  thread = threading.Thread(target=beat)
  thread.start()
  try:
    with pytest.raises(InputError, match="in use by another run: .* on far"):
      owner.before(tmp_path)
  finally:
    ended.set()
    thread.join()
  assert take(tmp_path) == "owner-2.json"


@pytest.mark.parametrize("text", ["", "{", "null", "[1]", "\xff"])
def test_a_lease_that_says_nothing_blocks_until_it_is_stale(tmp_path, text):
  path = tmp_path / "owner-7.json"
  path.write_text(text, encoding="latin-1")
  begun = time.monotonic()
  assert take(tmp_path) == "owner-8.json"
  assert time.monotonic() - begun > owner.STALE


def test_one_that_gives_it_back_while_another_looks_does_not_block(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(owner, "STALE", 1e6)
  path = forge(tmp_path, kernel="another")
  threading.Timer(0.2, path.unlink).start()
  assert take(tmp_path) == "owner-1.json"


@pytest.mark.parametrize("left", [{}, dict(born="1"), dict(kernel="another")])
def test_of_many_at_once_one_has_it(tmp_path, left):
  workdir, count = tmp_path / "run", 8
  if left:
    forge(workdir, **left)
  start, end = threading.Barrier(count), threading.Barrier(count)

  def run(n):
    start.wait()
    try:
      with owner.owned(workdir, owner.before(workdir)):
        end.wait()  # all the others were refused
        return 0
    except InputError:
      end.wait()
      return 2

  for _ in range(5):
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
      codes = sorted(pool.map(run, range(count)))
    assert codes == [0] + [2] * (count - 1)


def test_what_was_looked_at_has_to_be_there_still(tmp_path):
  before = owner.before(tmp_path)
  (tmp_path / "config.json").write_text("{}")
  with (
    pytest.raises(InputError, match="another run wrote to it"),
    owner.owned(tmp_path, before),
  ):
    raise AssertionError
  assert leases(tmp_path) == []
  before = owner.before(tmp_path)
  (tmp_path / "checkpoints" / "4").mkdir(parents=True)
  with (
    pytest.raises(InputError, match="another run wrote to it"),
    owner.owned(tmp_path, before),
  ):
    raise AssertionError


@pytest.mark.parametrize("lost", ["taken", "removed"])
def test_who_has_lost_it_ends(tmp_path, monkeypatch, lost):
  said, ended = [], threading.Event()

  def end(code, line):
    said.append((code, line))
    ended.set()

  monkeypatch.setattr(processes, "end", end)
  with owner.owned(tmp_path, owner.before(tmp_path)) as check:
    check()
    assert not ended.wait(4 * owner.BEAT)
    if lost == "taken":
      other = forge(tmp_path, 2, born="1")
    else:
      (tmp_path / "owner-1.json").unlink()
    with pytest.raises(StoppedRun, match="no longer this run's"):
      check()
    assert ended.wait(10)
  assert said[0][0] == 1 and "no longer this run's" in said[0][1]
  if lost == "taken":
    assert other.exists()


def test_a_beat_goes_on_after_any_error(tmp_path, monkeypatch):
  class HttpError(Exception):  # as gcsfs has one, no OSError
    pass

  touch, left, beaten = files.touch, [HttpError("503")], threading.Event()

  def touch_later(path):
    if left:
      raise left.pop()
    touch(path)
    beaten.set()

  monkeypatch.setattr(files, "touch", touch_later)
  with owner.owned(tmp_path, owner.before(tmp_path)) as check:
    assert beaten.wait(10)
    check()


def test_only_process_0_has_it(tmp_path, monkeypatch):
  monkeypatch.setattr(processes, "is_first", lambda: False)
  forge(tmp_path)
  with owner.owned(tmp_path, owner.before(tmp_path)) as check:
    check()
  assert leases(tmp_path) == ["owner-1.json"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / "file").touch()
  workdir = tmp_path / "file" / "run"
  with (
    pytest.raises(InputError, match=f"{workdir} cannot be written: Not a dir"),
    owner.owned(workdir, owner.before(workdir)),
  ):
    raise AssertionError
