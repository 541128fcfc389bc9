# SPDX-License-Identifier: Apache-2.0
"""The two exceptions that end a command with one line, and such lines.

And whether an error is of what was read, or of the way there.
"""

import contextlib
import difflib
import errno
import re

FULL = (errno.ENOSPC, errno.EDQUOT)
# No fault of what was given: the same command may succeed later.
PASSING = (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT)
# Packages of clients of buckets, and what they stand on.
CLIENTS = ("aiobotocore", "aiohttp", "botocore", "gcsfs", "requests")
CLIENTS += ("google.api_core", "google.auth", "google.cloud")
CLIENTS += ("socket", "ssl", "urllib", "urllib3")
# By these TensorStore and XLA say that the thing was not reached.
STATUS = re.compile(
  r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|UNAUTHENTICATED"
  r"|PERMISSION_DENIED|RESOURCE_EXHAUSTED)\b|[Oo]ut of memory|CURL error"
)


class InputError(ValueError):
  """The user's input is wrong: what, where, and what to do.  Exit code 2."""


class StoppedRun(RuntimeError):
  """A run that must not go on, and why.  Exit code 1."""


class Panic(Exception):
  """A library in Rust has met what it did not think of."""


def first_line(error):
  """The first line of an exception's message, or its repr if it has none."""
  return (str(error).strip() or repr(error)).splitlines()[0]


def in_one_line(error, hidden=None):
  """An exception's kind and all of its message, at most 300 letters.

  Args:
    hidden: {regular expression: what stands in its place}.
  """
  text = " ".join(f"{type(error).__name__}: {error}".split())
  for pattern, instead in (hidden or {}).items():
    text = re.sub(pattern, instead, text)
  return text[:300]


def did_you_mean(name, known):
  """ " did you mean X?" of the known name that is most like it; else ""."""
  known = {one.lower(): one for one in known}
  near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.7)
  return f" did you mean {known[near[0]]}?" if near else ""


def is_of_client(error):
  """Does a client of buckets, or of the network, raise it as its own?"""
  module = f"{type(error).__module__}."
  return module.startswith(tuple(f"{name}." for name in CLIENTS))


def says_nothing_of_content(error):
  """Was something not reached, so that it may be whole all the same?

  The network, a full disk, no memory or no right to look: of the exception, or
  of what it was raised from.
  """
  while error is not None:
    if isinstance(error, ConnectionError | TimeoutError | PermissionError):
      return True
    if isinstance(error, OSError) and error.errno in (*PASSING, *FULL):
      return True
    if isinstance(error, MemoryError) or is_of_client(error):
      return True
    if STATUS.search(str(error)):
      return True
    before = None if error.__suppress_context__ else error.__context__
    error = error.__cause__ or before
  return False


@contextlib.contextmanager
def blames(where, kinds=ValueError):
  """Turns an exception of these kinds into InputError("{where}: ...")."""
  try:
    yield
  except kinds as error:
    raise InputError(f"{where}: {error}") from None


@contextlib.contextmanager
def panics():
  """Turns a panic of a library in Rust, which is no Exception, into Panic."""
  try:
    yield
  except BaseException as error:
    if type(error).__name__ != "PanicException":
      raise
    raise Panic(f"the library panics: {first_line(error)}") from None
