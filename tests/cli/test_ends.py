# SPDX-License-Identifier: Apache-2.0
"""What the system and libraries raise is one line and an exit code."""

import errno
import os
import sys
import threading

import jax
import pytest

from mrpo_jax import cli
from mrpo_jax.cli import ends
from mrpo_jax.cli.commands import COMMANDS
from mrpo_jax.errors import InputError, StoppedRun

GIVEN = {
  "train": ["--config=C", "--workdir=W"],
  "score": ["--config=C", "--workdir=W"],
  "store": ["ls", "--store=S"],
  "export": ["--workdir=W", "--to=T"],
  "generate": ["--model=M", "--prompts=P", "--to=T"],
  "chat": ["--model=M"],
  "evaluate": ["--model=M", "--tasks=A", "--to=T"],
  "compare": ["--model=M", "--model=N", "--prompts=P", "--judge=J", "--to=T"],
  "report": ["--workdir=W"],
  "sweep": ["--config=C", "--vary", "seed=0:2", "--workdir=W"],
  "bench": ["--config=C"],
  "plan": ["--config=C", "--topology=local"],
  "import-gguf": ["F", "--to=T"],
  "inspect": ["F"],
  "prepare": ["--data=D", "--to=T"],
  "bridge": ["--pairs=P", "--command=C", "--to=T"],
}


def of_system(number, *names):
  return OSError(number, os.strerror(number), *names)


def caused(error, cause):
  error.__cause__ = cause
  return error


def in_numpy():
  try:
    b"\xff".decode()
  except UnicodeError as error:
    return error


SAID = [
  (of_system(errno.ENAMETOOLONG, "w" * 300), 2, "w: File name too long"),
  (of_system(errno.EROFS, "/ro/x"), 2, "/ro/x: Read-only file system"),
  (of_system(errno.EISDIR, "a/m"), 2, "a/m: Is a directory"),
  (of_system(errno.ENOENT, "a"), 2, "a: No such file or directory"),
  (of_system(errno.EACCES, b"a\xc3\xbc"), 2, "aü: Permission denied"),
  (of_system(errno.ELOOP, 3), 2, "Too many levels of symbolic links"),
  (of_system(errno.EXDEV, "a", None, "b"), 2, "a -> b: Invalid cross-device"),
  (of_system(errno.EIO, "a"), 1, "a: Input/output error"),
  (of_system(errno.EDQUOT, "a"), 1, "the disk is full; make room"),
  (of_system(errno.ECONNRESET), 1, "Connection reset by peer"),
  (OSError("no such\nmodel"), 2, "OSError: no such"),
  (InputError("a\x1b[31m\rb\nö\udcff"), 2, "a\\x1b[31m b ö\\udcff"),
  (MemoryError("Unable to allocate 8 EiB"), 2, "out of memory: Unable to all"),
  (in_numpy(), 2, r"a text is not utf-8: b'\xff'"),
  (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "no"), 2, "a text or a path is"),
  (
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory on 0\nmore"),
    2,
    "out of memory: RESOURCE_EXHAUSTED: Out of memory on 0; give it fewer",
  ),
  (
    jax.errors.JaxRuntimeError("INTERNAL: Out of memory allocating 9 bytes."),
    2,
    "out of memory: INTERNAL: Out of memory allocating 9 bytes.; give it",
  ),
  (
    jax.errors.JaxRuntimeError("PERMISSION_DENIED: t; Read-only file system"),
    2,
    "PERMISSION_DENIED: t; Read-only file system",
  ),
  (
    caused(ValueError("not saved"), of_system(errno.EROFS, "/ro/x")),
    2,
    "/ro/x: Read-only file system",
  ),
  (InputError("wrong\nhere"), 2, "wrong here"),
  (
    ValueError("UNAVAILABLE: CURL error: no route\nmore"),
    1,
    "ValueError: UNAVAILABLE: CURL error: no route",
  ),
  (KeyboardInterrupt(), 130, "interrupted"),
  (
    ModuleNotFoundError("No module named 'absl'", name="absl"),
    2,
    "absl is not installed; pip install -e . in the repository installs",
  ),
]


@pytest.mark.parametrize("error,code,line", SAID)
def test_an_exception_of_the_system_is_one_line(error, code, line):
  found = ends.said(error)
  assert found[0] == code
  assert line in found[1] and "\n" not in found[1]


def test_a_stopped_run_says_itself_what_is_kept():
  assert ends.said(StoppedRun("loss is\nnan")) == (1, "loss is nan")


@pytest.mark.parametrize(
  "error",
  [
    RuntimeError("a bug"),
    ValueError("a bug"),
    ModuleNotFoundError("No module named", name="mrpo_jax.gone"),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: message is too large"),
    # What was caught on the way is no reason.
    pytest.param(None, id="after another"),
  ],
)
def test_a_fault_of_ours_stays_one(error):
  if error is None:
    try:
      try:
        raise FileNotFoundError(errno.ENOENT, "gone", "a")
      except OSError:
        raise RuntimeError("a bug")  # noqa: B904
    except RuntimeError as raised:
      error = raised
  assert ends.said(error) is None


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("number", [errno.EROFS, errno.ENAMETOOLONG])
def test_every_command_ends_in_one_line(capsys, monkeypatch, command, number):
  def fail(given):
    """Fails."""
    raise of_system(number, "/there/x")

  monkeypatch.setitem(COMMANDS, command, fail)
  assert cli.main([command, *GIVEN[command]]) == 2
  assert capsys.readouterr().err == f"error: /there/x: {os.strerror(number)}\n"


def test_ctrl_c_is_one_line_and_130(capsys, monkeypatch):
  def fail(given):
    """Fails."""
    raise KeyboardInterrupt

  monkeypatch.setitem(COMMANDS, "report", fail)
  assert cli.main(["report", "--workdir=W"]) == 130
  assert capsys.readouterr().err == "interrupted\n"


def test_a_thread_of_a_library_fails_the_command(capsys, monkeypatch):
  def fail(error):
    raise error

  def report(given):
    """Its thread fails, and does not say so."""
    full = of_system(errno.ENOSPC)
    thread = threading.Thread(target=fail, args=[full])
    thread.start()
    thread.join()

  monkeypatch.setitem(COMMANDS, "report", report)
  assert cli.main(["report", "--workdir=W"]) == 1
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1 and lines[0].startswith("error: the disk is full")


def test_a_fault_in_a_thread_keeps_its_traceback(monkeypatch):
  seen = []
  monkeypatch.setattr(threading, "excepthook", seen.append)
  with ends.of_threads():
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
  assert [one.exc_type for one in seen] == [ZeroDivisionError]
  assert threading.excepthook == seen.append


def test_an_interrupted_command_leaves_before_jax_cleans_up(monkeypatch):
  """Which crashes (signal 11) where a compilation was interrupted."""

  def interrupted(argv):
    raise KeyboardInterrupt

  left = []
  monkeypatch.setattr(cli.streams, "take", lambda: None)
  monkeypatch.setattr(cli, "_run", interrupted)
  monkeypatch.setattr(cli.os, "_exit", left.append)
  monkeypatch.setattr(sys, "argv", ["mrpo", "generate", "--model=M"])
  cli.main()
  assert left == [130]
  assert cli.main(["generate"]) == 130 and left == [130]
