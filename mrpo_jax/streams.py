# SPDX-License-Identifier: Apache-2.0
"""Standard streams of the command: UTF-8, and their reader may leave."""

import fcntl
import io
import os
import re
import sys
import threading

PIPE = 2**20  # bytes of C++ output that may wait
GLOG = rb"[IWEF]\d{4} [\d:.]+ +\d+ "  # what a line begins with that C++ logs


def take():
  """Makes standard output and errors such streams; before all else.

  Where the locale is not UTF-8, neither are paths in Python: then this starts
  the same command again in Python's UTF-8 mode.
  """
  if sys.getfilesystemencoding() != "utf-8":
    again = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
    os.execv(sys.executable, again)
  for number in range(3):  # a file that is opened later must not get these
    try:
      os.fstat(number)
    except OSError:
      _to_nowhere(number)
  sys.stdout, sys.stderr = _stream(sys.stdout, 1), _stream(sys.stderr, 2)


def hide_logs(files):
  """Drops what C++ logs to standard errors from these source files, for good.

  Args:
    files: a regular expression in bytes, of names like rb"client\\.h".
  """
  real = os.dup(2)
  reader, writer = os.pipe()
  fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE)
  os.dup2(writer, 2)
  os.close(writer)
  sys.stderr = _stream(sys.stderr, real)  # Python's own lines pass by
  hidden = re.compile(GLOG + b"(" + files + rb"):\d+\]")
  threading.Thread(
    target=_pass_on, args=(reader, real, hidden), daemon=True
  ).start()


def _pass_on(reader, real, hidden):
  passes, to = True, Output(real, "w", closefd=False)
  with open(reader, "rb") as lines:
    for line in lines:
      if re.match(GLOG, line):  # else it belongs to the one before
        passes = not hidden.match(line)
      if passes:
        to.write(line)


class Output(io.FileIO):
  """A stream whose reader may leave: `| head -1` ends no training."""

  def write(self, data):
    try:
      return super().write(data)
    except OSError as error:
      _to_nowhere(self.fileno())  # also at Python's own end
      if isinstance(error, BrokenPipeError):
        return len(data)
      raise


def _stream(given, number):
  return io.TextIOWrapper(
    io.BufferedWriter(Output(number, "w", closefd=False)),
    encoding=getattr(given, "encoding", "utf-8"),
    errors="backslashreplace",
    line_buffering=True,
  )


def _to_nowhere(number):
  nowhere = os.open(os.devnull, os.O_RDWR)
  if nowhere != number:
    os.dup2(nowhere, number)
    os.close(nowhere)
