# SPDX-License-Identifier: Apache-2.0
"""The two exceptions that end a command with one line, and such lines."""

import contextlib
import difflib


class InputError(ValueError):
  """The user's input is wrong: what, where, and what to do.  Exit code 2."""


class StoppedRun(RuntimeError):
  """A run that must not go on, and why.  Exit code 1."""


class Panic(Exception):
  """A library in Rust has met what it did not think of."""


def first_line(error):
  """The first line of an exception's message, or its repr if it has none."""
  return (str(error).strip() or repr(error)).splitlines()[0]


def in_one_line(error):
  """An exception's kind and all of its message, at most 300 letters."""
  return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def did_you_mean(name, known):
  """ " did you mean X?" of the known name that is most like it; else ""."""
  known = {one.lower(): one for one in known}
  near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.7)
  return f" did you mean {known[near[0]]}?" if near else ""


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
