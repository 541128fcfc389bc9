# SPDX-License-Identifier: Apache-2.0
"""Meeting: processes of one run find each other at a port, before jax.

jax waits minutes for a process that never comes, takes two of one number for a
restart, and shares a port with another program.  Here process 0 listens, each
of the others says who it is, and what is wrong with one is told to all.
"""

import contextlib
import errno
import json
import selectors
import socket
import time

from mrpo_jax.errors import InputError, StoppedRun

PATIENCE = 20.0  # seconds in which a port may become free
PAUSE = 0.5  # seconds between two tries
LONGEST = 4096  # bytes of a message
LEFT, REFUSED, INTERRUPTED = 1, 2, 130  # exit codes


def meet(host, port, count, me, *, seconds):
  """Returns when all have come; the port is free again.

  Args:
    host, port: where process 0 listens.
    count: how many processes there are.
    me: which one this is.
    seconds: that one waits for the others.

  Raises:
    InputError: the port is another program's, two processes have one number,
      or they were told of different counts.
    StoppedRun: not all came, or one left.
  """
  deadline = time.monotonic() + seconds
  where = f"{count} processes at {host}:{port}"
  late = f"not all of {where} came within {seconds} s: is each one started?"
  server = _arrive(host, port, count, me, deadline, late)
  if server is None:
    return
  with server, contextlib.ExitStack() as stack:
    met = Met(server, count, stack)
    try:
      met.all_by(deadline, late)
    except KeyboardInterrupt:
      met.tell(INTERRUPTED, "interrupted (process 0)")
      raise
    except (InputError, StoppedRun) as error:
      met.refuse(error)
      raise
    met.tell(0, "go")


class Met:
  """Those that came to process 0, by their connection."""

  def __init__(self, server, count, stack):
    self._server, self._count, self._stack = server, count, stack
    self._selector = stack.enter_context(selectors.DefaultSelector())
    self._selector.register(server, selectors.EVENT_READ)
    self.numbers = {}  # connection -> number of the process, or None

  def all_by(self, deadline, late):
    """Waits until each has come; raises InputError or StoppedRun."""
    while len(self._known()) < self._count - 1:
      left = deadline - time.monotonic()
      if left <= 0:
        missing = {*range(1, self._count)} - {*self._known()}
        names = ", ".join(map(str, sorted(missing)))
        raise StoppedRun(f"{late} (missing: {names})")
      for key, _ in self._selector.select(left):
        self._take(key.fileobj)

  def _known(self):
    return [n for n in self.numbers.values() if n is not None]

  def _take(self, ready):
    if ready is self._server:
      connection = self._stack.enter_context(self._server.accept()[0])
      connection.settimeout(PAUSE)
      self.numbers[connection] = None
      self._selector.register(connection, selectors.EVENT_READ)
      return
    said = _heard(ready)
    number = self.numbers[ready]
    if number is not None:
      raise StoppedRun(f"process {number} left before all had come")
    if said is None or not {"process", "processes"} <= said.keys():
      self._drop(ready)  # another program, or a look whether this listens
      return
    number, count = said["process"], said["processes"]
    if number in (0, *self._known()):
      raise InputError(f"two processes have --process={number}")
    if count != self._count:
      raise InputError(
        f"process {number} was given --processes={count}, process 0 "
        f"--processes={self._count}"
      )
    self.numbers[ready] = number
    _say(ready, {})

  def _drop(self, connection):
    self._selector.unregister(connection)
    self.numbers.pop(connection)
    connection.close()

  def refuse(self, error):
    """Tells it to those that are here, and to whoever comes a little later."""
    code = REFUSED if isinstance(error, InputError) else LEFT
    line = f"{error} (process 0 of {self._count})"
    self.tell(code, line)
    deadline = time.monotonic() + PATIENCE
    while len(self.numbers) < self._count - 1 and time.monotonic() < deadline:
      self._server.settimeout(PAUSE)
      with contextlib.suppress(OSError):
        connection = self._stack.enter_context(self._server.accept()[0])
        self.numbers[connection] = None
        _say(connection, {"code": code, "line": line})

  def tell(self, code, line):
    for connection in self.numbers:
      with contextlib.suppress(OSError):
        _say(connection, {"code": code, "line": line})
    for connection in self.numbers:  # they close first: the port is free then
      with contextlib.suppress(OSError):
        connection.settimeout(PATIENCE)
        connection.recv(1)


def _arrive(host, port, count, me, deadline, late):
  """The socket of process 0; None where another one said that all have come."""
  foreign = None
  while time.monotonic() < deadline:
    server = _server(port) if me == 0 else None
    if server is not None:
      return server
    try:
      with socket.create_connection((host, port), timeout=PAUSE) as connection:
        connection.settimeout(PATIENCE / 4)
        said = _asked(connection, {"process": me, "processes": count})
        if said is not None:
          connection.settimeout(max(deadline - time.monotonic(), 0) + PATIENCE)
          _check(said or _heard(connection))
          return None
    except OSError:  # nobody is there yet
      foreign = None
    else:
      foreign = time.monotonic() if foreign is None else foreign
      if time.monotonic() - foreign > PATIENCE:
        raise InputError(
          f"--coordinator: another program, or a run that has begun, listens "
          f"at {host}:{port}; name a port that is free"
        )
    time.sleep(PAUSE)
  raise StoppedRun(late)


def _server(port):
  """A socket that listens; None where the port is taken."""
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  try:
    return socket.create_server(("", port), family=family, dualstack_ipv6=both)
  except OSError as error:
    if error.errno == errno.EADDRINUSE:
      return None
    raise InputError(
      f"--coordinator: cannot listen at port {port}: {error.strerror}"
    ) from None


def _check(said):
  """Returns where process 0 said "go"; raises what it said otherwise."""
  if said is None:
    raise StoppedRun("process 0 left before all had come")
  kinds = {
    LEFT: StoppedRun,
    REFUSED: InputError,
    INTERRUPTED: KeyboardInterrupt,
  }
  if said["code"]:
    raise kinds.get(said["code"], KeyboardInterrupt)(said["line"])


def _asked(connection, message):
  """The answer to a message; None where it is none of ours."""
  with contextlib.suppress(OSError):
    _say(connection, message)
    return _heard(connection)
  return None


def _say(connection, message):
  connection.sendall(json.dumps({"mrpo": 1, **message}).encode() + b"\n")


def _heard(connection):
  """The next message; None where the other left, or is no process of ours."""
  text = b""
  with contextlib.suppress(OSError, ValueError):
    while not text.endswith(b"\n"):
      byte = connection.recv(1)
      if not byte or len(text) > LONGEST:
        return None
      text += byte
    found = json.loads(text)
    if isinstance(found, dict) and found.pop("mrpo", 0) == 1:
      return found
  return None
