# SPDX-License-Identifier: Apache-2.0
"""Processes meet at a port, or each says in a line why not."""

import concurrent.futures
import contextlib
import socket
import threading
import time

import pytest

from mrpo_jax import meeting
from mrpo_jax.errors import InputError, StoppedRun


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
  monkeypatch.setattr(meeting, "PATIENCE", 1.0)
  monkeypatch.setattr(meeting, "PAUSE", 0.05)


@pytest.fixture
def port():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


def come(port, *processes, seconds=20):
  """What became of each (count, number): None, or its exception."""

  def one(given):
    try:
      return meeting.meet("127.0.0.1", port, *given, seconds=seconds)
    except Exception as error:
      return error

  with concurrent.futures.ThreadPoolExecutor() as pool:
    return list(pool.map(one, processes))


@contextlib.contextmanager
def listening(port, answer):
  """Another program at the port."""

  def serve(server):
    with contextlib.suppress(OSError):
      while True:
        with server.accept()[0] as connection:
          answer(connection)

  with socket.create_server(("", port)) as server:
    thread = threading.Thread(target=serve, args=[server], daemon=True)
    thread.start()
    yield


def test_all_meet_and_the_port_is_free_again(port):
  for _ in range(2):
    assert come(port, (4, 2), (4, 0), (4, 1), (4, 3)) == [None] * 4
  with socket.create_server(("", port)):
    pass


@pytest.mark.parametrize(
  "processes,match",
  [
    ([(3, 0), (3, 1), (3, 1)], "two processes have --process=1"),
    ([(2, 0), (2, 0)], "two processes have --process=0"),
    ([(3, 0), (3, 0), (3, 2)], "two processes have --process=0"),
    ([(3, 0), (2, 1), (3, 2)], "process 1 was given --processes=2, process 0 "),
  ],
)
def test_numbers_that_clash_are_told_to_all(port, processes, match):
  for error in come(port, *processes):
    assert isinstance(error, InputError) and match in str(error)


def test_those_that_come_late_are_told_too(port, monkeypatch):
  monkeypatch.setattr(meeting, "PATIENCE", 10.0)
  late = threading.Timer(1.0, lambda: found.extend(come(port, (4, 3))))
  found = []
  late.start()
  found += come(port, (4, 0), (4, 1), (4, 1))
  late.join()
  assert len(found) == 4
  for error in found:
    assert "two processes have --process=1" in str(error)


def test_who_is_missing_is_named_to_all(port):
  for error in come(port, (4, 0), (4, 2), seconds=1):
    assert isinstance(error, StoppedRun)
    assert "not all of 4 processes" in str(error)
    assert "(missing: 1, 3)" in str(error)


@pytest.mark.parametrize(
  "answer",
  [
    lambda it: it.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n"),
    lambda it: it.sendall(b"SSH-2.0-OpenSSH\n"),
    lambda it: it.sendall(b"[1]\n"),
    lambda it: it.sendall(b"\0\0\x06\x04" * 5000),
    lambda it: time.sleep(3),
    lambda it: None,
  ],
)
def test_a_port_of_another_program_is_refused_by_all(port, answer):
  with listening(port, answer):
    for error in come(port, (2, 0), (2, 1)):
      assert isinstance(error, InputError)
      assert f"listens at 127.0.0.1:{port}; name a port that" in str(error)


def test_a_port_that_becomes_free_is_taken(port):
  found = []
  with listening(port, lambda it: it.close()):
    waits = threading.Thread(target=lambda: found.extend(come(port, (2, 0))))
    waits.start()
    time.sleep(0.3)
  assert come(port, (2, 1)) == [None]
  waits.join()
  assert found == [None]


def test_whoever_only_looks_is_no_process(port):
  found = []
  waits = threading.Thread(target=lambda: found.extend(come(port, (2, 0))))
  waits.start()
  for content in (b"", b"GET / HTTP/1.0\r\n\r\n", b"\xff" * 9000, b"{}\n"):
    for _ in range(100):
      with contextlib.suppress(ConnectionRefusedError):
        with socket.create_connection(("127.0.0.1", port)) as look:
          with contextlib.suppress(OSError):
            look.sendall(content)
        break
      time.sleep(0.05)
  assert come(port, (2, 1)) == [None]
  waits.join()
  assert found == [None]


def test_a_process_that_leaves_ends_the_others(port):
  found = []
  waits = threading.Thread(target=lambda: found.extend(come(port, (3, 0))))
  waits.start()
  for _ in range(100):
    with contextlib.suppress(ConnectionRefusedError):
      with socket.create_connection(("127.0.0.1", port)) as one:
        message = {"process": 2, "processes": 3}
        assert meeting._asked(one, message) == {}
      break
    time.sleep(0.05)
  waits.join()
  (error,) = found
  assert isinstance(error, StoppedRun) and "process 2 left" in str(error)
