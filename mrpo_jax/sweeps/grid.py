# SPDX-License-Identifier: Apache-2.0
"""Grid of a sweep: the values of each key, and a folder for each run."""

import collections
import itertools
import re
import urllib.parse
from typing import NamedTuple

from mrpo_jax.errors import InputError

RANGE = re.compile(r"(-?\d+):(-?\d+)")
KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*")
MOST = 10_000  # runs of a sweep, and values of a range
DIGITS = 19  # of the ends of a range, with the sign
LONGEST = 240  # bytes of a folder's name, which disks allow up to 255
ARGUMENT = "config"  # the key whose values are arguments of get_config
OPEN, CLOSE, QUOTES = "([{", ")]}", "'\""


class Trial(NamedTuple):
  """One point of the grid."""

  name: str  # of its folder: key=value,key=value
  argument: str  # of the config file's get_config; "" adds none
  flags: tuple  # --config.KEY=VALUE


def axes_of(varied):
  """{key: list of values as text} of the texts KEY=V1,V2 of --vary.

  Commas separate values, but not within brackets or quotes; `0:5` is 0, 1, 2,
  3, 4.

  Raises:
    InputError: one is no such text, or a key or a value stands there twice.
  """
  axes = {}
  for given in varied:
    key, equals, text = given.partition("=")
    key = key.removeprefix("--").removeprefix("config.")
    where = f"--vary {given}"
    if not equals or not KEY.fullmatch(key):
      raise InputError(
        f"{where}: want KEY=V1,V2, like seed=0:3 or loss.beta=1,2"
      )
    if key in axes:
      raise InputError(
        f"{where}: {key} is varied twice; give all values at once"
      )
    values = [
      one for part in _split(text, where) for one in _range(part, where)
    ]
    value, times = collections.Counter(values).most_common(1)[0]
    if times > 1:
      raise InputError(f"{where}: the value {value!r} stands there twice")
    axes[key] = values
  if not axes:
    raise InputError("--vary is missing: name a key and its values")
  return axes


def _split(text, where):
  """The parts between commas that stand in no bracket and no quotes."""
  parts, closing, quote = [""], [], ""
  for letter in text:
    if letter == "," and not closing and not quote:
      parts.append("")
      continue
    parts[-1] += letter
    if quote:
      quote = "" if letter == quote else quote
    elif letter in QUOTES:
      quote = letter
    elif letter in OPEN:
      closing.append(CLOSE[OPEN.index(letter)])
    elif closing and letter == closing[-1]:
      closing.pop()
  if closing or quote:
    raise InputError(f"{where}: {closing[-1] if closing else quote} is missing")
  return parts


def _range(text, where):
  """The numbers of a range as text; what is none as it is."""
  found = RANGE.fullmatch(text)
  if not found:
    return [text]
  if max(map(len, found.groups())) > DIGITS:
    raise InputError(f"{where}: {text[:60]} is no range of numbers that fit")
  first, end = int(found[1]), int(found[2])
  count = max(end - first, 0)
  if not 0 < count <= MOST:
    raise InputError(
      f"{where}: the range {text} holds {count:,} numbers; want 1 to {MOST:,}, "
      "from the first on, without the last"
    )
  return [str(number) for number in range(first, end)]


def runs_of(axes, order=()):
  """The Trial of every point of the grid; the last key varies fastest.

  Args:
    axes: {key: values as text}.
    order: of the keys in the names, where it is given: that of the first
      command, so that another order of --vary names the same folders.

  Raises:
    InputError: there are too many, or a disk could not tell two folders apart
      or hold a name.
  """
  count = 1
  for values in axes.values():
    count *= len(values)
  if count > MOST:
    raise InputError(f"--vary makes {count:,} runs; at most {MOST:,} are taken")
  runs, known = [], {}
  for point in itertools.product(*axes.values()):
    values = dict(zip(axes, point, strict=True))
    name = ",".join(f"{key}={safe(values[key])}" for key in (order or axes))
    if len(name) > LONGEST:
      raise InputError(
        f"--vary: {name[:60]}... is too long for a folder; give long values a "
        "short name in the config file, as an argument of its get_config"
      )
    other = known.setdefault(name.casefold(), name)
    if other != name:
      raise InputError(
        f"--vary: {name} and {other} differ in case alone, which some disks do "
        "not keep; spell one otherwise"
      )
    argument = values.pop(ARGUMENT, "")
    flags = tuple(f"--config.{key}={value}" for key, value in values.items())
    runs.append(Trial(name, argument, flags))
  return runs


def safe(value):
  """A value as a part of a folder's name; no two values share one.

  What is no letter, digit or one of ._-~+ is written as in a URL: %2F.

  >>> safe("/data/a b.jsonl")
  '%2Fdata%2Fa%20b.jsonl'
  """
  return urllib.parse.quote(value, safe="+")
