# SPDX-License-Identifier: Apache-2.0
"""Code that pages show, for tests that run it."""

import pathlib
import re
import textwrap

ROOT = pathlib.Path(__file__).parents[2]


def python_of(page):
  """[text of each block of Python] of a page, named from the root."""
  text = (ROOT / page).read_text(encoding="utf-8")
  blocks = re.findall(r"^ *```python\n(.*?)^ *```", text, re.M | re.S)
  return [textwrap.dedent(block) for block in blocks]
