# SPDX-License-Identifier: Apache-2.0
"""Plain text for people: aligned columns, numbers with prefixes."""

import math


def aligned(rows):
  """Rows of text as lines whose columns stand below each other."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return "\n".join(
    "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows
  )


def counted(number, noun):
  """ "1 device", "8 devices"."""
  return f"{number} {noun}{'' if number == 1 else 's'}"


def bracketed(interval, form):
  """ "[0.515, 0.609]" of the ends of an interval.

  "[all agree]" where it has no width: where each item, or prompt, has the same
  mean, the bootstrap draws nothing else, however few there are.
  """
  if math.isclose(*interval, rel_tol=1e-9):  # the mean is itself rounded
    return "[all agree]"
  return f"[{', '.join(format(end, form) for end in interval)}]"


def with_interval(value, interval, form):
  """ "0.562 [0.515, 0.609]"."""
  return f"{value:{form}} {bracketed(interval, form)}"


def sized(number, unit, step=1000):
  """A number with a prefix: "1.25 TFLOP", "95.0 GiB"."""
  for prefix in ("", "K", "M", "G", "T", "P", "E"):
    if abs(number) < step or prefix == "E":
      break
    number /= step
  binary = "i" if prefix and step == 1024 else ""
  return f"{number:.4g} {prefix}{binary}{unit}"


def sized_bytes(number):
  return sized(number, "B", 1024)
