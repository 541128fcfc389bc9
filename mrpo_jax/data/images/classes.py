# SPDX-License-Identifier: Apache-2.0
"""The class of a row's images: a name or its number, in one of five columns."""

from mrpo_jax.data.images.notes import Notes
from mrpo_jax.data.reading.values import shown
from mrpo_jax.errors import InputError, did_you_mean

LABELS = ("class", "label")
PROMPTS = ("prompt", "caption", "text")
COLUMNS = (*LABELS, *PROMPTS)
NONE = -1  # the number of no class
SHOWN = 12  # names that a refusal lists


def check_names(names):
  """InputError where names of classes are no distinct texts."""
  texts = all(isinstance(name, str) and name for name in names)
  if isinstance(names, str) or not texts or len({*names}) < len(names):
    raise InputError(
      f"classes: want a tuple of distinct names, got {shown(names)}"
    )


class ClassReader:
  """Reads the classes of a set's rows as numbers from 0 to C - 1, or NONE."""

  def __init__(self, names):
    """Takes C distinct names, in the order of their numbers; () for none."""
    check_names(names)
    self._number = {name: number for number, name in enumerate(names)}
    # Of "3" and "7", is the class 1 the second or none?
    self._misplaced = next(
      (
        name
        for name, number in self._number.items()
        if name.isdecimal() and name != str(number)
      ),
      None,
    )
    self._notes = Notes("rows")

  def read(self, row, place):
    """The number of a row's class; NONE where it has none, or C is 0.

    Raises:
      InputError: it is unknown, or two columns say different ones.
    """
    self._notes.total += 1
    given = [name for name in COLUMNS if row.get(name) is not None]
    if not self._number:
      if given:
        self._notes.add("have a class or a prompt, which is not used", place)
      return NONE
    if not given:
      self._notes.add("have no class", place)
      return NONE
    if given[0] in LABELS:
      given = [name for name in given if self._counts(name, row, place)]
    found = {name: self._read(row[name], f"{place}: {name}") for name in given}
    if len({*found.values()}) > 1:
      said = " and ".join(f"{name} {shown(row[name])}" for name in given)
      raise InputError(f"{place}: {said} are two classes; keep one column")
    return found[given[0]]

  def say(self, where):
    """Says how many rows have no class, or one that is not used."""
    self._notes.say(where)

  def _counts(self, name, row, place):
    """Is a column of a row that has a label one of its class, too?"""
    value = row[name]
    # A prompt may be a list of messages, which no dict looks up.
    if name in LABELS or (isinstance(value, str) and value in self._number):
      return True
    self._notes.add("have a prompt beside the class, which is not used", place)
    return False

  def _read(self, value, place):
    if isinstance(value, str):
      if value in self._number:
        return self._number[value]
      raise self._unknown(value, place)
    whole = isinstance(value, int | float) and not isinstance(value, bool)
    if not whole or value != value // 1:
      raise InputError(
        f"{place} is {shown(value)}; want the name of a class, or its number"
      )
    if self._misplaced is not None:
      raise InputError(
        f"{place} is {shown(value)}, but the class {self._misplaced!r} is not "
        f"number {self._misplaced}; give names, as texts"
      )
    if not 0 <= value < len(self._number):
      raise InputError(
        f"{place} is {shown(value)}; the classes are numbered from 0 to "
        f"{len(self._number) - 1}, and a row without one has null"
      )
    return int(value)

  def _unknown(self, value, place):
    names = [*self._number]
    known = ", ".join(names[:SHOWN])
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return InputError(
      f"{place} {shown(value)} is no class;{did_you_mean(value, names)} the "
      f"classes are {known}{more}"
    )
