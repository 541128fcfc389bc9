# SPDX-License-Identifier: Apache-2.0
"""Whatever ends one of several processes: one line, one exit code, on all."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]
# The command, whose work is to agree; one process meets a signal.
AGREES = """
import os, sys, time
from mrpo_jax import cli, processes
from mrpo_jax.cli.commands import COMMANDS
processes.LIFE = 12  # less than a user waits
victim, number = map(int, sys.argv[1:3])
def score(given):
  "Agrees for ever."
  for i in range(900):
    if i == 10 and processes._me() == victim:
      os.kill(os.getpid(), number)
    processes.gather(i)
    time.sleep(0.1)
COMMANDS["score"] = score
sys.exit(cli.main(["score", "--config=C", "--workdir=W", *sys.argv[3:]]))
"""


def free_port():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


def ends(tmp_path, victim, number, numbers=(0, 1), port=None):
  """[(exit code, errors)] of two processes; a stopped one goes on at last."""
  started, port = [], port or free_port()
  for n, process in enumerate(numbers):
    flags = [f"--coordinator=127.0.0.1:{port}", "--processes=2"]
    command = [sys.executable, "-c", AGREES, str(victim), str(int(number))]
    with open(tmp_path / f"{n}.err", "w") as errors:
      started.append(
        subprocess.Popen(
          [*command, *flags, f"--process={process}"],
          env={**os.environ, "PYTHONPATH": str(ROOT)},
          cwd=tmp_path,
          stderr=errors,
        )
      )
  try:
    deadline = time.monotonic() + 90
    others = [one for n, one in enumerate(started) if n != victim]
    for process in others:
      process.wait(max(deadline - time.monotonic(), 1))
    for process in started:
      with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGCONT)
      process.wait(max(deadline - time.monotonic(), 1))
  finally:
    for process in started:
      process.kill()
      process.wait()
  texts = [(tmp_path / f"{n}.err").read_text() for n in range(len(numbers))]
  codes = [process.returncode for process in started]
  return list(zip(codes, texts, strict=True))


def assert_one_line(text, match):
  assert text.startswith("error: ") and text.count("\n") == 1, text
  assert match in text


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_process_ends_all(tmp_path, victim):
  found = ends(tmp_path, victim, signal.SIGSTOP)
  assert [code for code, _ in found] == [1, 1]
  for n, (_, text) in enumerate(found):
    # Which one fell silent, a process that woke late cannot know.
    lost = "lost process 0" if (n, victim) == (1, 0) else "lost "
    assert_one_line(text, lost)
    assert "the same command resumes" in text


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other(tmp_path, victim):
  found = ends(tmp_path, victim, signal.SIGKILL)
  code, text = found[1 - victim]
  assert code == 1
  assert_one_line(text, "lost process 0" if victim == 0 else "lost ")


@pytest.mark.parametrize("victim", [0, 1])
def test_ctrl_c_in_one_ends_all(tmp_path, victim):
  found = ends(tmp_path, victim, signal.SIGINT)
  assert [code for code, _ in found] == [130, 130]
  for _, text in found:
    assert_one_line(text, f"interrupted (process {victim} of 2)")


def test_two_with_one_number_end_both(tmp_path):
  found = ends(tmp_path, -1, 0, numbers=(0, 0))
  assert [code for code, _ in found] == [2, 2]
  for _, text in found:
    assert_one_line(text, "two processes have --process=0")


def test_a_port_that_is_taken_ends_both(tmp_path):
  with socket.create_server(("", 0)) as server:
    port = server.getsockname()[1]
    found = ends(tmp_path, -1, 0, port=port)
  assert [code for code, _ in found] == [2, 2]
  for _, text in found:
    assert_one_line(text, f"listens at 127.0.0.1:{port}")
