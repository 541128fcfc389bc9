# SPDX-License-Identifier: Apache-2.0
"""A griffe extension: the examples of docstrings as code on the site."""

import re

import griffe

# Lines from the first ">>>" up to the next empty one.
EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


class Doctests(griffe.Extension):
  """Puts fences around examples, which Markdown would take for quotations."""

  def on_object(self, *, obj, **_):
    """Called by griffe with each module, class, function and attribute."""
    if obj.docstring:
      obj.docstring.value = EXAMPLE.sub(
        lambda found: f"```python\n{found[0]}\n```", obj.docstring.value
      )
