# SPDX-License-Identifier: Apache-2.0
"""Types of flags: from the text of a flag to its value, or why it is none."""

import argparse
import os
import pathlib

from mrpo_jax.files import at_home

AXES = ("data", "fsdp", "context", "model")  # of a mesh, as in `parallel`
MOST = 2**31 - 1  # of what is counted: what an int32 holds
DIGITS = 18  # of a number that is read
LEAST, LARGEST = 1e-9, 1e9  # of a positive number, a time or a factor
SHOWN = 40  # characters of a wrong value
DTYPES = ("float32", "bfloat16", "float16")  # of weights that are written


def whole_number(text, most=MOST):
  """The whole number of decimal digits; None where it is none, or too large."""
  if not text.isdecimal() or len(text) > DIGITS or int(text) > most:
    return None
  return int(text)


def count_from(least, most=MOST):
  """The type of a number from `least` on."""

  def count(text):
    value = whole_number(text, most)
    if value is None or value < least:
      upto = f" to {most}" if text.isdecimal() and value is None else ""
      raise argparse.ArgumentTypeError(
        f"{_shown(text)}; want a number from {least}{upto}"
      )
    return value

  return count


whole = count_from(0)


def seed(text):
  """The seed of random numbers."""
  value = whole_number(text, 2**32 - 1)
  if value is None and text.isdecimal():
    raise argparse.ArgumentTypeError(f"{_shown(text)}; want one below 2^32")
  return whole(text) if value is None else value


def positive(text, kind=float):
  """A positive number, and none that arithmetic has no room for."""
  try:
    value = kind(text)
  except ValueError:
    value = 0
  if not 0 < value < float("inf"):
    raise argparse.ArgumentTypeError(f"{_shown(text)}; want a positive number")
  if not LEAST <= value <= LARGEST:
    raise argparse.ArgumentTypeError(
      f"{_shown(text)}; want a number from {LEAST:g} to {LARGEST:g}"
    )
  return value


def _shown(text):
  """A wrong value as it is quoted: the start of it will do."""
  return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


def number(text):
  """A number; `Sampling` says in which range."""
  try:
    return float(text)
  except ValueError:
    raise argparse.ArgumentTypeError(f"{_shown(text)}; want a number") from None


def mesh_sizes(text):
  """{axis: its size} of axis=N,...; axes that are not named have 1."""
  sizes = dict.fromkeys(AXES, 1)
  for part in filter(None, text.split(",")):
    axis, _, size = part.partition("=")
    if axis not in sizes or not whole_number(size):
      raise argparse.ArgumentTypeError(
        f"{_shown(part)}; want like {'=1,'.join(AXES)}=1"
      )
    sizes[axis] = int(size)
  return sizes


def share(text):
  """(i, n) of i/n, i from 0 on."""
  part, parts = (whole_number(one) for one in text.partition("/")[::2])
  if part is None or parts is None or part >= parts:
    raise argparse.ArgumentTypeError(
      f"{_shown(text)}; want like 0/4, from 0 on"
    )
  return part, parts


def two_lengths(text):
  """[tokens of a prompt, tokens of a response]."""
  lengths = [positive(one, int) for one in text.split(",")]
  if len(lengths) != 2:
    raise argparse.ArgumentTypeError(f"{text!r}; want like 256,256")
  return lengths


def one_of(*names):
  """The type of one of these names."""

  def name(text):
    if text not in names:
      raise argparse.ArgumentTypeError(f"{text!r}; want {', '.join(names)}")
    return text

  return name


dtype = one_of(*DTYPES)  # the name of a type of weights


def new_file(text):
  """The path of a file that can be written; or ""."""
  path = at_home(text)
  folder = pathlib.Path(path).resolve().parent
  problem = None
  if not folder.is_dir():
    problem = "no such folder"
  elif pathlib.Path(path).is_dir():
    problem = "is a folder; name a file"
  elif os.path.exists(path) and not pathlib.Path(path).is_file():
    problem = "is a device, a pipe or a socket; name a file"
  elif not os.access(path if os.path.exists(path) else folder, os.W_OK):
    problem = "cannot be written"
  if path and problem:
    raise argparse.ArgumentTypeError(f"{text}: {problem}")
  return path


def new_folder(text):
  """The path of a folder that is there or can be made; or ""."""
  path = pathlib.Path(at_home(text)).absolute()
  there = next(one for one in (path, *path.parents) if os.path.lexists(one))
  if text and not (there.is_dir() and os.access(there, os.W_OK)):
    raise argparse.ArgumentTypeError(f"{text}: cannot be written")
  return at_home(text)
