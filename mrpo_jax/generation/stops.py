# SPDX-License-Identifier: Apache-2.0
"""Stop texts: where they first end in what was generated, across tokens.

Of several the one that ends first counts, of those that end there the longest:
what a reader of one character after the other would find, however many tokens
come at once.
"""

WINDOW = 64  # tokens that are decoded anew before a later place is sought
TRIES = 8  # places that are tried then
HALF = "\ufffd"  # in place of a character whose bytes are not all there


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
  """The `ended` of `generate.samples` for texts that end a sample.

  A sample that grows is decoded from a place on before which nothing can end
  it, so that long ones cost no more for each token than short ones.
  """

  def __init__(self, stops, text_of):
    """Nothing has been looked at yet.

    Args:
      stops: texts, none empty.
      text_of: ids -> their text, as it stands within a longer one.
    """
    self._stops, self._text_of = tuple(stops), text_of
    self._longest = max(map(len, self._stops), default=0)
    self._places = {}  # of requests: the place from which on they are decoded
    self._texts = {}  # of those that a stop has ended

  def ended(self, request, ids):
    """How many ids are kept, the fewest whose text reaches a stop, or None.

    Args:
      request: what tells samples apart.
      ids: all of the sample so far; the next call has them and more.
    """
    if not self._stops:
      return None
    start = self._places.get(request, 0)
    text = self._text_of(ids[start:])
    found = first_end(text, self._stops)
    if found is None:
      if len(ids) - start >= WINDOW:
        self._places[request] = self._later(ids, start, text)
      return None
    said = text[: found[0]]
    before = self._text_of(ids[:start]) if start else ""
    self._texts[request] = before + said
    return self._fewest(ids, start, said)

  def text(self, request):
    """The text of a sample before the stop that has ended it; else None.

    To be asked once, at the end of the sample.
    """
    self._places.pop(request, None)
    return self._texts.pop(request, None)

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
