# SPDX-License-Identifier: Apache-2.0
"""Pages of studies, and the records of held-out pairs as arrays."""

import re

import numpy as np


def rows_of(page, heading, width):
  """The cells of each table row of that width, in a section of the page."""
  text = page.split(f"\n## {heading}\n")[1]
  rows = re.findall(r"^\| (.*) \|$", text.split("\n## ")[0], re.MULTILINE)
  return [cells for row in rows if len(cells := row.split(" | ")) == width]


def column(pairs, name):
  """[pairs, ...] of a key of records."""
  return np.array([one[name] for one in pairs])
