# SPDX-License-Identifier: Apache-2.0
"""A process that renders chat templates within limits of time and memory.

A template is a program that comes with a model.  jinja's sandbox keeps it from
files, not from a loop of 10^10 steps or a string of 5 GB, and nothing in a
process can stop those; the kernel can.  This file imports the standard library
alone at first: the process is this file, run.
"""

import atexit
import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading

SECONDS = 3  # of processor time, for one conversation
MEMORY = 1 << 30  # bytes more than it has before the first
LONGEST = 300  # characters of an error
# Characters of a text: so many, and so many for each that it is given.
LEAST, TIMES = 1_000_000, 100
TOO_SLOW = "takes more than {} seconds for one conversation"
TOO_MUCH = f"takes more than {MEMORY / 1e9:.1f} GB for one conversation"
TOO_LONG = f"writes more than {LEAST:,} characters for one conversation"


class OverBudget(Exception):
  """A template has used up its time, memory or text; the message says which."""


class Sandbox:
  """The process; it starts with the first text that is asked for."""

  def __init__(self, seconds=SECONDS):
    self._seconds = seconds
    self._process, self._lock = None, threading.Lock()

  def render(self, template, requests):
    """A dict for each: its "text", or "error" (and "line" of a bad template).

    Args:
      template: Jinja.
      requests: keywords of `render_jinja_template` but the template.

    Raises:
      OverBudget: one took too much.
    """
    if not requests:
      return []
    line = json.dumps({"template": template, "requests": requests}, default=str)
    with self._lock:
      try:
        process = self._process or self._start()
        # As one line: it reads all of it before it writes.
        with contextlib.suppress(BrokenPipeError):
          process.stdin.write(line.encode() + b"\n")
          process.stdin.flush()
        return [self._answer(process) for _ in requests]
      except BaseException:  # answers may be left that nobody asked for
        self._end(kill=True)
        raise

  def close(self):
    """Ends the process; the next text starts another."""
    with self._lock:
      self._end()

  def _start(self):
    # This file, but not the folder that it is in: its neighbours are no
    # packages.  Signals of a terminal or a scheduler are for the run alone.
    self._process = subprocess.Popen(
      [sys.executable, "-P", __file__, str(self._seconds)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      env=os.environ | {"HF_HUB_OFFLINE": "1", "USE_TORCH": "0"},
      start_new_session=True,
    )
    if error := self._answer(self._process).get("error"):
      raise RuntimeError(f"chat templates cannot be rendered: {error}")
    return self._process

  def _answer(self, process):
    line = process.stdout.readline()
    if not line.endswith(b"\n"):
      code = process.wait()
      why = {
        -signal.SIGXCPU: TOO_SLOW.format(self._seconds),
        -signal.SIGKILL: TOO_MUCH,  # so the system ends who takes its memory
      }
      raise OverBudget(why.get(code, f"ends its process: exit code {code}"))
    answer = json.loads(line)
    if "over" in answer:
      raise OverBudget(answer["over"])
    return answer

  def _end(self, kill=False):
    process, self._process = self._process, None
    if process is None:
      return
    if kill:
      process.kill()
    with contextlib.suppress(OSError):
      process.stdin.close()
    process.wait()
    process.stdout.close()


sandbox = Sandbox()
atexit.register(sandbox.close)


# In the process.


def _serve(seconds):
  answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is none
  try:
    import jinja2  # noqa: F401
    from transformers.utils.chat_template_utils import render_jinja_template
  except ImportError as error:
    print(json.dumps({"error": str(error)}), file=answers, flush=True)
    return
  _limit_memory()
  print("{}", file=answers, flush=True)
  for line in sys.stdin:
    asked = json.loads(line)
    for request in asked["requests"]:
      random.seed(0)  # jinja's `random` and `lipsum` say the same every time
      _limit_time(seconds)
      answer = _rendered(render_jinja_template, asked["template"], request)
      print(json.dumps(answer), file=answers, flush=True)


def _limit_memory():
  with contextlib.suppress(OSError):  # only Linux says how much it has
    with open("/proc/self/statm") as file:
      pages = int(file.read().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _limit_time(seconds):
  used = resource.getrusage(resource.RUSAGE_SELF)
  most = int(used.ru_utime + used.ru_stime) + 1 + seconds
  _, hard = resource.getrlimit(resource.RLIMIT_CPU)
  # Past it comes a signal that ends the process, wherever that is.
  resource.setrlimit(resource.RLIMIT_CPU, (most, hard))


def _rendered(render, template, request):
  try:
    text = render(chat_template=template, **request)[0][0]
  except MemoryError:
    return {"over": TOO_MUCH}
  except Exception as error:  # templates fail in any way they like
    line = getattr(error, "lineno", None)
    return {"error": _first_line(error), "line": line}
  given = len(json.dumps(request, ensure_ascii=False))
  if len(text) > LEAST + TIMES * given:
    return {"over": TOO_LONG}
  return {"text": text}


def _first_line(error):
  said = str(error)[:LONGEST].strip() or repr(error)[:LONGEST]
  return said.splitlines()[0]


if __name__ == "__main__":
  _serve(int(sys.argv[1]))
