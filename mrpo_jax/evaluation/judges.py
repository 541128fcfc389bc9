# SPDX-License-Identifier: Apache-2.0
"""Judges of two answers to a prompt: any command, or a reward in Python.

A judge takes requests, dicts of `prompt` (text or messages), `first` and
`second` (the answers), `index` (of the prompt) and `order`; it gives a dict
with `preference` for each, in order: 1, the first is better, to 2, the second
is.
"""

import contextlib
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

WINNERS = {"first": 1.0, "tie": 1.5, "second": 2.0}
TIMEOUT = 600  # seconds that a command may take for an answer
ENDING = 2.0  # seconds between the end of its output and its own
LONGEST = 2**20  # bytes of an answer, and of what is kept of a command's errors
KILOBYTE = 1024  # of a file, by which text is told
SHOWN = 80  # characters of a wrong one
BATCH = 64  # pairs that a reward is given at once
REWARD = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Withdrawn(InputError):
  """A judge's end says that its answers of this time do not count."""


def judge_of(text, *, timeout=TIMEOUT):
  """The judge that a flag names: "module:name", or a command.

  Raises:
    InputError: there is no such command, module or function.
  """
  if REWARD.fullmatch(text):
    return RewardJudge(text)
  if os.path.isdir(text):
    raise InputError(
      f"--judge={text} is a folder, and trained rewards are not read yet; give "
      "a command or module:name"
    )
  return CommandJudge(text, timeout=timeout)


class CommandJudge:
  """A command that reads requests as JSON lines and answers a line to each.

  Answers are {"preference": 1 to 2} or {"winner": "first", "second" or "tie"}.
  The command is started once, and not by a shell; it may answer at once or at
  the end of its input.  Which place is asked for first matters to many, so
  each pair is a request in both orders.
  """

  orders = (0, 1)

  def __init__(self, command, *, timeout=TIMEOUT):
    self.name, self._timeout = command, timeout
    try:
      self._words = shlex.split(command)
    except ValueError as error:
      raise InputError(f"--judge={command!r}: {error}") from None
    if not self._words:
      raise InputError("--judge is empty; give a command or module:name")
    if shutil.which(self._words[0]) is None:
      raise InputError(
        f"--judge: {self._words[0]!r} is no command that can be run; give one, "
        "or a reward as module:name"
      )

  @property
  def script(self):
    """SHA-256 of the program that the command names; None where it has none.

    It is the first of its words that is a file of text: what follows may be
    files that it writes, and what stands before runs it.
    """
    for word in [shutil.which(self._words[0]), *self._words[1:]]:
      if _can_be_read(word) and _is_text(word):
        return files.sha256_of(word)
    return None

  def __call__(self, requests):
    """Yields {"preference": ...} of each request.

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
        yield {"preference": self._answer(process, lines, request, errors)}
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
      raise InputError(f"--judge: {self.name}: {error.strerror}") from None
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

  def _answer(self, process, lines, request, errors):
    where = f"prompt {request['index']} in order {request['order']}"
    line = lines.next()
    if line is None:
      raise InputError(
        f"the judge {self.name!r} does not answer {where} within "
        f"{self._timeout:g} s; --judge_timeout gives it more"
      )
    if not line:
      raise InputError(
        f"the judge {self.name!r} {_ended(process)} before it answers {where}"
        + _last_words(errors)
      )
    try:
      return preference_of(line)
    except InputError as error:
      raise InputError(
        f"the judge {self.name!r} answers {where} with {error}"
      ) from None

  def _check_end(self, process, lines, asked, errors):
    rest = lines.next()
    while rest is not None and rest and not rest.strip():  # empty lines
      rest = lines.next()
    if rest:
      raise Withdrawn(
        f"the judge {self.name!r} gives more than {asked} answers to {asked} "
        f"requests, so that none is kept: {_shown(rest)}"
      )
    how = f"still runs {self._timeout:g} s"
    if rest is not None:
      how = _ended(process)
    if rest is None or process.returncode:
      raise Withdrawn(
        f"the judge {self.name!r} {how} after its last answer, to "
        f"{asked} requests; none of this time is kept{_last_words(errors)}"
      )


@contextlib.contextmanager
def _sigterm_unwinds():
  """SIGTERM ends the program by way of its `finally`s, so that nothing is left.

  The judge is in a session of its own, which no signal to ours reaches.
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


def preference_of(line):
  """The preference of an answer, a line of JSON.

  Raises:
    InputError: it is none; says what it is.
  """
  try:
    answer = files.parsed(line, "")
  except InputError:
    raise InputError(
      f"no JSON object: {_shown(line)}; want one like "
      '{"preference": 1.5} or {"winner": "tie"} on a line'
    ) from None
  given = [key for key in ("preference", "winner") if key in answer]
  if len(given) != 1:
    has = "both a preference and a winner" if given else "neither"
    raise InputError(f"{_shown(line)}: want preference or winner, it has {has}")
  value = answer[given[0]]
  if given == ["winner"]:
    if not isinstance(value, str) or value not in WINNERS:
      raise InputError(f"{_shown(line)}: winner is one of {', '.join(WINNERS)}")
    return WINNERS[value]
  if type(value) not in (int, float) or not 1 <= value <= 2:
    raise InputError(
      f"{_shown(line)}: preference is from 1 (the first is better) to 2 (the "
      "second is)"
    )
  return float(value)


def _shown(line):
  text = line.decode("utf-8", "backslashreplace").strip()
  return repr(text if len(text) <= SHOWN else text[:SHOWN] + "...")


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
  return f"; it says {_shown(said[-1])}" if said else ""


class RewardJudge:
  """A Python function reward(prompts, responses) -> floats; larger is better.

  It sees an answer at a time, so that there is no order.
  """

  orders = (0,)

  def __init__(self, text):
    """Imports "module:name", from the current folder or what is installed."""
    self.name = text
    module, _, name = text.partition(":")
    self._module = module
    here = os.getcwd()
    if here not in sys.path:
      sys.path.insert(0, here)
    try:
      found = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # modules fail as they like
      raise InputError(
        f"--judge={text}: importing {module} fails: {_told(error)}"
      ) from None
    self._reward = getattr(found, name, None)
    if not callable(self._reward):
      raise InputError(
        f"--judge={text}: {module} has no function {name}; it is called with "
        "prompts and responses"
      )

  @property
  def script(self):
    """SHA-256 of the module's file; None where it has none."""
    path = getattr(sys.modules[self._module], "__file__", None) or ""
    return files.sha256_of(path) if _can_be_read(path) else None

  def __call__(self, requests):
    """Yields {"preference": ..., "rewards": [first, second]} of each request.

    Raises:
      InputError: the function fails, or gives other than a finite number for
        each answer.
    """
    for first in range(0, len(requests), BATCH):
      some = requests[first : first + BATCH]
      answers = [
        answer for one in some for answer in (one["first"], one["second"])
      ]
      prompts = [one["prompt"] for one in some for _ in range(2)]
      rewards = self._rewards(prompts, answers, some)
      for a, b in zip(rewards[::2], rewards[1::2], strict=True):
        yield {"preference": 1.5 + (b > a) / 2 - (b < a) / 2, "rewards": [a, b]}

  def _rewards(self, prompts, answers, requests):
    where = f"from prompt {requests[0]['index']} on"
    try:
      found = [float(one) for one in self._reward(prompts, answers)]
    except (Exception, SystemExit) as error:
      raise InputError(
        f"the reward {self.name} fails {where}: {_told(error)}"
      ) from None
    if len(found) != len(answers):
      raise InputError(
        f"the reward {self.name} gives {len(found)} numbers for {len(answers)} "
        f"answers {where}"
      )
    for place, one in enumerate(found):
      if not math.isfinite(one):
        raise InputError(
          f"the reward {self.name} of an answer to prompt "
          f"{requests[place // 2]['index']} is {one}; want a finite number"
        )
    return found


def _told(error):
  """An exception of foreign code as a line, with its place."""
  trace = error.__traceback__
  while trace is not None and trace.tb_next is not None:
    trace = trace.tb_next
  place = ""
  if trace is not None:
    name = pathlib.Path(trace.tb_frame.f_code.co_filename).name
    place = f" ({name} line {trace.tb_lineno})"
  return f"{type(error).__name__}: {first_line(error)}{place}"
