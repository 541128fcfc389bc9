# SPDX-License-Identifier: Apache-2.0
"""Users' own programs that answer requests: commands, functions of Python."""

import contextlib
import hashlib
import importlib
import json
import math
import os
import pathlib
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

from mrpo_jax import files
from mrpo_jax.errors import InputError, first_line

TIMEOUT = 600  # seconds that a command may take for an answer
ENDING = 2.0  # seconds between the end of its output and its own
LONGEST = 2**20  # bytes of an answer, and of what is kept of a command's errors
KILOBYTE = 1024  # of a file, by which text is told
SHOWN = 80  # characters of a wrong one
BATCH = 128  # responses that a function is given at once
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Withdrawn(InputError):
  """A command's end says that its answers of this time do not count."""


class Command:
  """A command that reads requests as JSON lines and answers a line to each.

  It is started for each call, and not by a shell; it may answer at once or at
  the end of its input.

  Attributes:
    name: the command, as it was given.
  """

  def __init__(
    self, text, *, flag, role, instead, timeout=TIMEOUT, timeout_flag=""
  ):
    """Splits its words as a shell does.

    Args:
      text: the command.
      flag: what named it, for messages: "--judge".
      role: what it is: "judge".
      instead: what else could be given: "a reward as module:name".
      timeout: seconds that it may take for an answer.
      timeout_flag: what gives it more; "": the flag with "_timeout" after it.

    Raises:
      InputError: there is no such command.
    """
    self.name, self._timeout = text, timeout
    self._flag, self._timeout_flag = flag, timeout_flag or f"{flag}_timeout"
    self._who = f"the {role} {text!r}"
    try:
      self._words = shlex.split(text)
    except ValueError as error:
      raise InputError(f"{flag}={text!r}: {error}") from None
    if not self._words:
      raise InputError(f"{flag} is empty; give a command or module:name")
    if shutil.which(self._words[0]) is None:
      raise InputError(
        f"{flag}: {self._words[0]!r} is no command that can be run; give one, "
        f"or {instead}"
      )

  @property
  def script(self):
    """SHA-256 of the program that the command names; None where it has none.

    It is the first of its words that is a file of text: what follows may be
    files that it writes, and what stands before runs it.  A program that is
    found by its name may be one of text and run the next all the same, as
    pyenv's python does: then both count.
    """
    program = shutil.which(self._words[0])
    texts = [
      word
      for word in (program, *self._words[1:])
      if _can_be_read(word) and _is_text(word)
    ]
    by_name = texts[:1] == [program] != self._words[:1]
    hashes = [files.sha256_of(one) for one in texts[: 2 if by_name else 1]]
    if len(hashes) > 1:
      return hashlib.sha256("".join(hashes).encode()).hexdigest()
    return hashes[0] if hashes else None

  def __call__(self, requests, *, read, where):
    """Yields what each request is answered.

    Args:
      requests: objects to write as JSON, a list.
      read: of a line of its output; raises InputError that says what it is.
      where: of a request, its name in messages: "prompt 3".

    Raises:
      InputError: the command fails; names the first request without an answer.
      Withdrawn: it answers more than it was asked, or ends with an exit code
        other than 0 after its last answer.
    """
    if not requests:
      return
    with (
      tempfile.TemporaryFile() as errors,
      self._started(requests, errors) as process,
    ):
      lines = _TimedLines(process.stdout, self._timeout)
      for request in requests:
        line = self._line(process, lines, where(request), errors)
        try:
          answer = read(line)
        except InputError as error:
          raise InputError(
            f"{self._who} answers {where(request)} with {error}"
          ) from None
        yield answer
      self._check_end(process, lines, len(requests), errors)

  @contextlib.contextmanager
  def _started(self, requests, errors):
    """The process, which ends with this context, and what it started too.

    Its requests come from a thread: it need not answer while it reads.
    """
    try:
      process = subprocess.Popen(
        self._words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=True,
      )
    except OSError as error:
      raise InputError(f"{self._flag}: {self.name}: {error.strerror}") from None
    writer = threading.Thread(
      target=_write, args=(process.stdin, requests), daemon=True
    )
    writer.start()
    try:
      with _sigterm_unwinds():
        yield process
    finally:
      with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()
      writer.join()  # nobody reads any more
      process.stdout.close()

  def _line(self, process, lines, where, errors):
    line = lines.next()
    if line is None:
      raise InputError(
        f"{self._who} does not answer {where} within {self._timeout:g} s; "
        f"{self._timeout_flag} gives it more"
      )
    if not line:
      raise InputError(
        f"{self._who} {_ended(process)} before it answers {where}"
        + _last_words(errors)
      )
    return line

  def _check_end(self, process, lines, asked, errors):
    rest = lines.next()
    while rest is not None and rest and not rest.strip():  # empty lines
      rest = lines.next()
    if rest:
      raise Withdrawn(
        f"{self._who} gives more than {asked} answers to {asked} "
        f"requests, so that none is kept: {shown(rest)}"
      )
    how = f"still runs {self._timeout:g} s"
    if rest is not None:
      how = _ended(process)
    if rest is None or process.returncode:
      raise Withdrawn(
        f"{self._who} {how} after its last answer, to "
        f"{asked} requests; none of this time is kept{_last_words(errors)}"
      )


@contextlib.contextmanager
def _sigterm_unwinds():
  """SIGTERM ends the program by way of its `finally`s, so that nothing is left.

  The command is in a session of its own, which no signal to ours reaches.
  """

  def end(number, _):
    raise SystemExit(128 + number)

  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = signal.signal(signal.SIGTERM, end)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def _can_be_read(path):
  return os.path.isfile(path) and os.access(path, os.R_OK)


def _is_text(path):
  with files.opened(path) as file:
    return b"\0" not in file.read(KILOBYTE)


class _TimedLines:
  """Lines of a pipe, each within a time."""

  def __init__(self, pipe, timeout):
    self._pipe, self._timeout, self._rest = pipe.fileno(), timeout, b""

  def next(self):
    """A line, or what is left without its end; None where none came."""
    until = time.monotonic() + self._timeout
    while b"\n" not in self._rest and len(self._rest) < LONGEST:
      left = until - time.monotonic()
      if left <= 0 or not select.select([self._pipe], [], [], left)[0]:
        return None
      some = os.read(self._pipe, 2**16)
      if not some:
        break
      self._rest += some
    place = self._rest.find(b"\n") + 1 or len(self._rest)
    line, self._rest = self._rest[:place], self._rest[place:]
    return line


def _write(pipe, requests):
  """Gives a command its requests, and the end of its input."""
  with contextlib.suppress(OSError), pipe:  # it may have left
    for request in requests:
      pipe.write(json.dumps(request).encode() + b"\n")
      pipe.flush()


def shown(line):
  """A line of a command, as bytes, or its beginning, for messages."""
  text = line.decode("utf-8", "backslashreplace").strip()
  return repr(text if len(text) <= SHOWN else text[:SHOWN] + "...")


def answer_of(line, like):
  """The object in a command's line.

  Args:
    line: bytes.
    like: what it should be like, for messages: '{"reward": 0.5}'.

  Raises:
    InputError: it is none; says what it is.
  """
  try:
    return files.parsed(line, "")
  except InputError:
    raise InputError(
      f"no JSON object: {shown(line)}; want one like {like} on a line"
    ) from None


def _ended(process):
  """How a process that has closed its output ended, in words."""
  try:
    code = process.wait(ENDING)
  except subprocess.TimeoutExpired:
    return "closes its output"
  if code < 0:
    return f"is ended by signal {-code}"
  return f"ends with exit code {code}"


def _last_words(errors):
  """The last line of what a command wrote to its standard errors, if any."""
  size = errors.seek(0, os.SEEK_END)
  errors.seek(max(0, size - LONGEST))
  said = [line for line in errors.read().splitlines() if line.strip()]
  return f"; it says {shown(said[-1])}" if said else ""


class Function:
  """A Python function reward(prompts, responses) -> a number for each response.

  Attributes:
    name: "module:name", as it was given.
  """

  def __init__(self, text, *, flag, takes="prompts and responses"):
    """Imports "module:name", from the current folder or what is installed.

    Args:
      text: "module:name".
      flag: what named it, for messages.
      takes: what it is called with, in words.

    Raises:
      InputError: there is no such module or function; begins with the flag.
    """
    self.name = text
    module, _, name = text.partition(":")
    self._module = module
    here = os.getcwd()
    if here not in sys.path:
      sys.path.insert(0, here)
    try:
      found = importlib.import_module(module)
    except InputError as error:  # of rewards that want a package
      raise InputError(f"{flag}={text}: {error}") from None
    except (Exception, SystemExit) as error:  # modules fail as they like
      raise InputError(
        f"{flag}={text}: importing {module} fails: {told(error)}"
      ) from None
    self.function = getattr(found, name, None)
    if not callable(self.function):
      raise InputError(
        f"{flag}={text}: {module} has no function {name}; it is called with "
        f"{takes}"
      )

  @property
  def script(self):
    """SHA-256 of the module's file; None where it has none."""
    path = getattr(sys.modules[self._module], "__file__", None) or ""
    return files.sha256_of(path) if _can_be_read(path) else None


def numbers(who, function, prompts, responses, *, where):
  """What a function reward(prompts, responses) gives, as finite floats.

  Args:
    who: names it in messages: "the reward module:name".
    function: of lists of equal lengths.
    prompts, responses: those lists.
    where: of a place in the lists, its name in messages: "prompt 3".

  Raises:
    InputError: it fails, or gives other than a finite number for each.
  """
  if len(prompts) != len(responses):
    raise ValueError(f"{len(prompts)} prompts, {len(responses)} responses")
  try:
    given = [*function(prompts, responses)]
    found = [float(one) for one in given]
  except (Exception, SystemExit) as error:
    raise InputError(f"{who} fails from {where(0)} on: {told(error)}") from None
  if len(found) != len(responses):
    raise InputError(
      f"{who} gives {len(found)} numbers for {len(responses)} answers from "
      f"{where(0)} on"
    )
  for place, (one, as_given) in enumerate(zip(found, given, strict=True)):
    if not math.isfinite(one) or isinstance(as_given, str | bytes | bool):
      raise InputError(
        f"{who} of an answer to {where(place)} is {as_given!r}; want a finite "
        "number"
      )
  return found


def told(error):
  """An exception of foreign code as a line, with its place."""
  trace = error.__traceback__
  while trace is not None and trace.tb_next is not None:
    trace = trace.tb_next
  place = ""
  if trace is not None:
    name = pathlib.Path(trace.tb_frame.f_code.co_filename).name
    place = f" ({name} line {trace.tb_lineno})"
  return f"{type(error).__name__}: {first_line(error)}{place}"
