# SPDX-License-Identifier: Apache-2.0
"""How a command ends: exit code and line of what users can mend.

The one place that knows the exceptions of the system and of libraries.
"""

import contextlib
import errno
import os
import threading

from mrpo_jax.errors import (
  FULL,
  PASSING,
  STATUS,
  InputError,
  StoppedRun,
  first_line,
  is_of_client,
)

# What XLA quotes of the system in errors of its own.
QUOTED = (errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.ENAMETOOLONG)
SMALLER = (
  "give it fewer config.data.rows, a smaller config.data.row_length, "
  "config.policy.remat='full' or more devices; a denoiser a smaller "
  "config.batch"
)


def said(error):
  """(exit code, line) of what the user can mend; None for a fault of ours.

  Of an exception that was raised from another, the first that can be said.
  """
  if _disk_is_full(error):
    return 1, "the disk is full; make room, then give the same command again"
  while error is not None:
    for kind, of in KINDS.items():
      if isinstance(error, kind) and (found := of(error)):
        return found[0], _plain(str(found[1]))
    error = error.__cause__
  return None


def _plain(text):
  """One line, in which what a terminal would obey is spelled out.

  Names in files that somebody else wrote may hold such characters.
  """
  return "".join(
    one if one.isprintable() else " " if one.isspace() else ascii(one)[1:-1]
    for one in text
  )


@contextlib.contextmanager
def of_threads():
  """What a thread of a library cannot go on from ends the command, too.

  Most libraries hand it on by themselves, after a traceback of the thread.
  """
  failed, before = [], threading.excepthook

  def take(given):
    if said(given.exc_value) is None:
      before(given)
    else:
      failed.append(given.exc_value)

  threading.excepthook = take
  try:
    yield
  finally:
    threading.excepthook = before
  if failed:
    raise failed[0]


def _of_system(error):
  if isinstance(error, ConnectionError) or error.errno in PASSING:
    code = 1
  else:
    code = 2
  if error.strerror is None:
    return code, f"{type(error).__name__}: {first_line(error)}"
  places = (error.filename, error.filename2)
  where = " -> ".join(os.fsdecode(one) for one in places if _is_path(one))
  return code, f"{where}: {error.strerror}" if where else error.strerror


def _is_path(name):
  return isinstance(name, str | bytes | os.PathLike)


def _of_text(error):
  if isinstance(error, UnicodeDecodeError):
    around = error.object[max(0, error.start - 20) : error.end + 20]
    return 2, f"a text is not {error.encoding}: {bytes(around)!r}"
  return 2, f"a text or a path is no Unicode: {first_line(error)}"


def _of_xla(error):
  """What XLA raises of memory and files; None where it is another thing."""
  if any(os.strerror(number) in str(error) for number in QUOTED):
    return 2, first_line(error)
  text = str(error).lower()
  # On the CPU it is "INTERNAL: ... Out of memory allocating ... bytes".
  if "out of memory" in text or (
    "resource_exhausted" in text and "memory" in text
  ):
    return 2, f"out of memory: {first_line(error)}; {SMALLER}"
  return None


def _of_package(error):
  """Of an installation of the losses alone, say; None for a file of ours."""
  if error.name is None or error.name.split(".")[0] == "mrpo_jax":
    return None
  return 2, (
    f"{error.name} is not installed; pip install -e . in the repository "
    "installs all that commands need"
  )


def _of_client(error):
  """What clients of buckets raise beside OSError; None for another fault."""
  # TensorStore's are ValueErrors that begin with a status.
  is_status = isinstance(error, ValueError) and STATUS.match(str(error))
  if not is_of_client(error) and not is_status:
    return None
  return 1, f"{type(error).__name__}: {first_line(error)}"


# The first that fits counts.
KINDS = {
  ModuleNotFoundError: _of_package,
  InputError: lambda error: (2, error),
  StoppedRun: lambda error: (1, error),
  KeyboardInterrupt: lambda error: (130, "interrupted"),
  MemoryError: lambda error: (2, f"out of memory: {first_line(error)}"),
  OSError: _of_system,
  UnicodeError: _of_text,
  RuntimeError: _of_xla,
  Exception: _of_client,
}


def _disk_is_full(error):
  """Checkpoint libraries wrap what the system said, or only quote it."""
  texts = [os.strerror(number) for number in FULL]
  while error is not None:
    if getattr(error, "errno", None) in FULL:
      return True
    if any(text in str(error) for text in texts):
      return True
    error = error.__cause__ or error.__context__
  return False
