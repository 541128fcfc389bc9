# SPDX-License-Identifier: Apache-2.0
"""Stop texts: where they first end in what was generated, across tokens.

Of several the one that ends first counts, of those that end there the longest:
what a reader of one character after the other would find, however many tokens
come at once.
"""

import collections

WINDOW = 64  # tokens that are decoded anew before a later place is sought
TRIES = 8  # places that are tried then
HALF = "\ufffd"  # in place of a character whose bytes are not all there
REMEMBERED = 4096  # samples on their way


def first_end(text, stops):
  """(start, end) of the stop that ends first in a text; None without one."""
  found = [
    (at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0
  ]
  if not found:
    return None
  end, start = min(found)
  return start, end


class Stops:
  """The `ended` of `Decoder.run` for texts that end a sample.

  A list of ids that grows is decoded from a place on before which nothing can
  end it, so that long samples cost no more for each token than short ones.
  """

  def __init__(self, stops, text_of):
    """Nothing has been looked at yet.

    Args:
      stops: texts, none empty.
      text_of: ids -> their text, as it stands within a longer one.
    """
    self._stops, self._text_of = tuple(stops), text_of
    self._longest = max(map(len, self._stops), default=0)
    # id of a list -> (the list itself, the place in it).
    self._places = collections.OrderedDict()
    self._texts = collections.defaultdict(collections.deque)

  def ended(self, ids):
    """How many ids are kept, the fewest whose text reaches a stop, or None."""
    if not self._stops:
      return None
    _, start = self._places.pop(id(ids), (ids, 0))
    text = self._text_of(ids[start:])
    found = first_end(text, self._stops)
    if found is None:
      if len(ids) - start >= WINDOW:
        start = self._later(ids, start, text)
      self._places[id(ids)] = ids, start
      if len(self._places) > REMEMBERED:
        self._places.popitem(last=False)
      return None
    said = text[: found[0]]
    count = self._fewest(ids, start, said)
    before = self._text_of(ids[:start]) if start else ""
    self._texts[tuple(ids[:count])].append(before + said)
    return count

  def text(self, ids):
    """The text before the stop of a sample that `ended` has cut; else None."""
    texts = self._texts[tuple(ids)]
    found = texts.popleft() if texts else None
    if not texts:
      del self._texts[tuple(ids)]
    return found

  def _later(self, ids, start, text):
    """A later place at which the text comes apart, no stop across it."""
    middle = (start + len(ids)) // 2
    for place in range(middle, max(start, middle - TRIES), -1):
      head, tail = self._text_of(ids[start:place]), self._text_of(ids[place:])
      halves = head.endswith(HALF) or tail.startswith(HALF)
      if head + tail == text and not halves and len(tail) >= self._longest:
        return place
    return start

  def _fewest(self, ids, start, said):
    """How many ids are needed for the text before the place and this one."""
    if not said:
      while start and not self._text_of(ids[start - 1 : start]):
        start -= 1
      return start
    counts = range(start + 1, len(ids))
    return next(
      (n for n in counts if self._text_of(ids[start:n]).startswith(said)),
      len(ids),
    )
