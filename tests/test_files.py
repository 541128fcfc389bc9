# SPDX-License-Identifier: Apache-2.0
"""Files of JSON: strict, refused by name where they are not; ~ is home."""

import os
import signal
import subprocess
import sys

import pytest

from mrpo_jax import files
from mrpo_jax.errors import InputError, StoppedRun

WRONG = {
  b"null": "holds null, not an object",
  b"[1]": "holds a list, not an object",
  b'"x"': "holds a text, not an object",
  b"3": "holds 3, not an object",
  b"{": "is not JSON",
  b"[" * 100_000: "is not JSON",
  b"\xff\xfe{}": "is not UTF-8",
}


@pytest.mark.parametrize("content,match", WRONG.items())
def test_what_holds_no_object_is_refused_by_name(tmp_path, content, match):
  path = tmp_path / "config.json"
  path.write_bytes(content)
  with pytest.raises(InputError, match=f"config.json {match}"):
    files.read_json(path)
  path.write_bytes(b'{"step": 1}\n\n' + content + b"\n")
  with pytest.raises(InputError, match=f"config.json line 3 {match}"):
    files.read_lines(path)


@pytest.mark.parametrize(
  "text", ['{"a": 1, "a": 1}', '{"b": [{"a": 1, "a": 2}]}']
)
def test_a_key_that_stands_twice_is_refused(tmp_path, text):
  path = tmp_path / "config.json"
  path.write_text(text)
  with pytest.raises(InputError, match="config.json: the key 'a' stands there"):
    files.read_json(path)


def test_a_last_line_cut_short_is_left_out(tmp_path):
  path = tmp_path / "lines"
  assert files.read_lines(path) == []
  path.write_bytes(b'{"a": "\xc3\xbc"}\n{"a": \xff')
  assert files.read_lines(path) == [{"a": "ü"}]


def test_home_stands_for_the_tilde(monkeypatch):
  monkeypatch.setenv("HOME", "/h")
  assert [files.at_home(x) for x in ("~", "~/a", "a~", "./~", "", None)] == [
    *("/h", "/h/a", "a~", "./~", "", None)
  ]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_no_json(tmp_path, number):
  path = tmp_path / "figures.json"
  files.write_json(path, {"a": 1.5})
  for write in (files.write_json, files.write_lines):
    with pytest.raises(StoppedRun, match=f"{path} is not written"):
      write(path, [{"a": number}])
  assert files.read_json(path) == {"a": 1.5}


# New folders.

WRITES = """
import sys, time
from mrpo_jax import files
with files.new_folder(sys.argv[1]) as partial:
  (partial / "half").write_text("half")
  print(partial, flush=True)
  time.sleep(60)
"""


@pytest.fixture
def writing(tmp_path):
  """A process that has written half of the folder `to`."""
  argv = [sys.executable, "-c", WRITES, tmp_path / "to"]
  process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline().strip().startswith(f"{tmp_path}/.to.partial")
  yield process
  process.kill()
  process.wait()


def test_what_a_killed_command_left_is_removed_and_said(
  tmp_path, writing, caplog
):
  writing.send_signal(signal.SIGKILL)
  writing.wait()
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    ".to.lock",
    f".to.partial-{writing.pid}",
  ]
  (tmp_path / ".other.partial-1").mkdir()
  (tmp_path / ".to.partial-2").mkdir()  # of an earlier version, without a lock
  with caplog.at_level("INFO", "mrpo_jax"):
    with files.new_folder(tmp_path / "to") as partial:
      (partial / "whole").write_text("whole")
  left = sorted(path.name for path in tmp_path.iterdir())
  assert left == [".other.partial-1", "to"]
  assert [path.name for path in (tmp_path / "to").iterdir()] == ["whole"]
  for pid in (2, writing.pid):
    assert f"removing {tmp_path}/.to.partial-{pid}, which" in caplog.text


def test_what_a_living_command_writes_stays(tmp_path, writing):
  with pytest.raises(InputError, match="command is writing .*/to; wait"):
    with files.new_folder(tmp_path / "to"):
      pass
  assert (tmp_path / f".to.partial-{writing.pid}/half").exists()
  with files.new_folder(tmp_path / "other"):
    pass


def test_a_folder_whose_name_is_a_pattern_removes_its_own_alone(tmp_path):
  (tmp_path / ".ab.partial-1").mkdir()
  with files.new_folder(tmp_path / "a*"):
    pass
  assert (tmp_path / ".ab.partial-1").is_dir() and (tmp_path / "a*").is_dir()


def test_of_many_at_once_one_makes_the_folder(tmp_path):
  code = """
import sys
from mrpo_jax import files
from mrpo_jax.errors import InputError
for i in range(50):
  try:
    with files.new_folder(f"{sys.argv[1]}/{i}") as partial:
      (partial / "a").write_text("a")
    print(i)
  except InputError:
    pass
"""
  argv = [sys.executable, "-c", code, tmp_path]
  processes = [subprocess.Popen(argv, stdout=subprocess.PIPE) for _ in range(4)]
  made = [int(n) for p in processes for n in p.communicate()[0].split()]
  assert [process.returncode for process in processes] == [0] * 4
  assert sorted(made) == list(range(50))
  left = {int(path.name) for path in tmp_path.iterdir()}
  assert left == {*range(50)}


def test_a_disk_without_locks_keeps_what_is_left(tmp_path, monkeypatch):
  def none(*_):
    raise OSError(38, os.strerror(38))

  monkeypatch.setattr(files.fcntl, "flock", none)
  (tmp_path / ".to.partial-1").mkdir()
  with files.new_folder(tmp_path / "to"):
    pass
  assert {path.name for path in tmp_path.iterdir()} == {".to.partial-1", "to"}


@pytest.mark.parametrize(
  "read",
  [
    files.read_json,
    files.read_lines,
    files.readable_lines,
    files.sha256_of,
    files.opened,
  ],
)
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, read):
  path = tmp_path / "config.json"
  os.mkfifo(path)
  signal.alarm(20)  # ends the tests where it waits
  with pytest.raises(InputError, match="config.json: is a pipe, a socket or a"):
    read(path)
  signal.alarm(0)
  with pytest.raises(IsADirectoryError):
    read(tmp_path)


@pytest.mark.parametrize("room", [0, 1])
def test_files_are_replaced_together_or_not_at_all(tmp_path, monkeypatch, room):
  paths = tmp_path / "a.json", tmp_path / "b.html"
  for path in paths:
    path.write_text("before")
  done = []

  def fsync(file):
    if len(done) == room:
      raise OSError(28, "No space left on device")
    done.append(file)

  monkeypatch.setattr(files.os, "fsync", fsync)
  with pytest.raises(OSError, match="No space"):
    files.write_together(dict.fromkeys(paths, "after"))
  assert [path.read_text() for path in paths] == ["before"] * 2
  assert sorted(tmp_path.iterdir()) == [*paths]
  room = 9
  files.write_together(dict.fromkeys(paths, "after"))
  assert [path.read_text() for path in paths] == ["after"] * 2


def test_a_full_disk_leaves_no_half_of_a_new_file(tmp_path, monkeypatch):
  def fsync(_):
    raise OSError(28, "No space left on device")

  with monkeypatch.context() as full:
    full.setattr(files.os, "fsync", fsync)
    with pytest.raises(OSError, match="No space"):
      files.create(tmp_path / "owner-1.json", "mine")
  assert not list(tmp_path.iterdir())
  files.create(tmp_path / "owner-1.json", "mine")
  with pytest.raises(FileExistsError):
    files.create(tmp_path / "owner-1.json", "another's")
  assert (tmp_path / "owner-1.json").read_text() == "mine"
