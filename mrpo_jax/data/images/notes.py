# SPDX-License-Identifier: Apache-2.0
"""Notes on the rows of a set: what happened while they were read, counted."""

import logging

logger = logging.getLogger(__name__)


class Notes:
  """How many rows or images each thing happened to, and to which first."""

  def __init__(self, noun):
    self._noun, self._found = noun, {}
    self.total = 0  # of all that were looked at

  def add(self, what, place):
    """Notes that `what`, a verb and its object, is so of what is at `place`."""
    count, first = self._found.get(what, (0, place))
    self._found[what] = count + 1, first

  def say(self, where):
    """Says what there was, if anything."""
    for what, (count, first) in self._found.items():
      logger.info(
        f"{where}: {count} of {self.total} {self._noun} {what}; the first is "
        f"{first}"
      )
