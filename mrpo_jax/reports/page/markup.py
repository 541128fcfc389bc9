# SPDX-License-Identifier: Apache-2.0
"""HTML from Python values: text is escaped unless it is HTML already."""

import html
import re
import unicodedata
from typing import NamedTuple

VOID = ("meta", "br", "wbr")
# Letters that turn the direction of all that follows, or are not seen.
HIDDEN = ("Cc", "Cf", "Cs", "Co")
KEPT = "\n\t\u200d"  # the last joins emoji


class Html(str):
  """Text that is HTML already."""

  __slots__ = ()


class Cell(NamedTuple):
  """A cell of a table that looks otherwise than its column."""

  value: object
  class_: str


def escaped(value):
  """HTML of a value; letters that are not seen become a mark."""
  if isinstance(value, Html):
    return value
  if isinstance(value, list | tuple):
    return Html("".join(map(escaped, value)))
  text = "" if value is None else str(value)
  shown = "".join(
    letter
    if letter in KEPT or unicodedata.category(letter) not in HIDDEN
    else "\ufffd"
    for letter in text
  )
  return Html(html.escape(shown))


def tag(name, /, *inner, **attributes):
  """An element; `class_` is its class, and True an attribute without value.

  >>> tag("p", "a < b", class_="note")
  '<p class="note">a &lt; b</p>'
  """
  given = "".join(
    f" {key.rstrip('_').replace('_', '-')}"
    + ("" if value is True else f'="{html.escape(str(value))}"')
    for key, value in attributes.items()
    if value is not None and value is not False
  )
  if name in VOID:
    return Html(f"<{name}{given}>")
  return Html(f"<{name}{given}>{escaped(inner)}</{name}>")


def breakable(name):
  """A name of a run that may be broken where its parts end."""
  return [[part, tag("wbr")] for part in re.split(r"(?<=[,/])", name)]


def scrolled_table(header, rows, *, caption, numbers=1, classes=()):
  """A table in a box of its own; on a phone each row is a list of its cells.

  A cell has the title of its column as `data-title`, which stands before it
  there.

  Args:
    header: texts.
    rows: lists of values, the first the name of the row.
    caption: what it shows: n, intervals, test.
    numbers: columns from this one on are numbers, and stand to the right.
    classes: of each row, where they have one.
  """
  kinds = ["" if n < numbers else "number" for n in range(len(header))]
  head = tag(
    "tr",
    [
      tag("th", one, scope="col", class_=kind or None)
      for one, kind in zip(header, kinds, strict=True)
    ],
  )
  body = []
  for n, row in enumerate(rows):
    first, *rest = row
    cells = [
      _cell(*one) for one in zip(rest, kinds[1:], header[1:], strict=True)
    ]
    body.append(
      tag(
        "tr",
        tag("th", first, scope="row"),
        cells,
        class_=(classes[n] if n < len(classes) else None) or None,
      )
    )
  label = " ".join(caption.split("\n\n")[0].split())
  whole = tag("table", tag("thead", head), tag("tbody", body), aria_label=label)
  return tag(
    "div",
    tag("div", whole, class_="scroll", tabindex="0"),
    tag("p", caption.strip(), class_="caption"),
    class_="table",
  )


def _cell(value, kind, title):
  if isinstance(value, Cell):
    value, kind = value.value, f"{kind} {value.class_}".strip()
  # In an element of its own: on a phone it stands beside the title.
  return tag("td", tag("div", value), class_=kind or None, data_title=title)
