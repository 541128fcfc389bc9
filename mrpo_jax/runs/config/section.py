# SPDX-License-Identifier: Apache-2.0
"""Section: a typed, frozen part of a config that says what is wrong in it."""

import dataclasses
import typing

import annotated_types
import pydantic
from pydantic_core import InitErrorDetails, PydanticCustomError

from mrpo_jax.errors import did_you_mean
from mrpo_jax.files import at_home

MOST = 2**31 - 1  # that an int32 holds


def _place(given):
  """A path with ~ as the user's home; another thing as it is."""
  if not isinstance(given, str):
    return given
  try:
    given.encode()
  except UnicodeError:
    raise said(f"must be Unicode text, got {given!r}") from None
  return at_home(given)


def _held(given):
  """A number as it is, where an int32 holds it."""
  if given > MOST:
    raise said(f"must be at most {MOST}, got {given}")
  return given


class Shown(typing.NamedTuple):
  """How help names a type that is read from several."""

  text: str


Count = typing.Annotated[int, annotated_types.Gt(0)]
Whole = typing.Annotated[int, annotated_types.Ge(0)]
# Numbers that a program has as int32.
Count32 = typing.Annotated[Count, pydantic.AfterValidator(_held)]
Whole32 = typing.Annotated[Whole, pydantic.AfterValidator(_held)]
Positive = typing.Annotated[float, annotated_types.Gt(0)]
NotNegative = typing.Annotated[float, annotated_types.Ge(0)]
# A file, a folder or a name; ~ is the user's home.
Place = typing.Annotated[str, pydantic.BeforeValidator(_place)]
# One or several of them.
Places = typing.Annotated[Place, Shown("str or list of str")]
SAID, UNKNOWN = "said", "unknown"  # errors whose sentence is made
WANTED = {  # by the name of pydantic's error
  "int_type": "of type int",
  "float_type": "of type float",
  "string_type": "of type str",
  "bool_type": "of type bool",
  "model_type": "a section",
  "dict_type": "a section",
  "finite_number": "a finite number",
  "tuple_type": "a tuple of numbers",
  "too_short": "a tuple of numbers",
}
BOUNDS = {
  annotated_types.Gt: "more than {gt}",
  annotated_types.Ge: "at least {ge}",
  annotated_types.Lt: "less than {lt}",
  annotated_types.Le: "at most {le}",
}
ONE_BOUND = {"more than 0": "positive", "at least 0": "not negative"}


def key(about, default=..., **given):
  """A key of a section: one line about it, and its default if it has one."""
  return pydantic.Field(default, description=about, **given)


class Section(pydantic.BaseModel):
  """Known keys alone, each of its type; its docstring is shown to users."""

  model_config = pydantic.ConfigDict(
    extra="forbid", strict=True, frozen=True, allow_inf_nan=False
  )

  @classmethod
  def filled(cls, values):
    """The nested dict with every default that it leaves out.

    None means the default, since a flag cannot override it.  What is wrong
    stays wrong: validation says so.
    """
    if not isinstance(values, dict):
      return values
    values = dict(values)
    for name, field in cls.model_fields.items():
      if is_section(field.annotation):
        values[name] = field.annotation.filled(values.get(name, {}))
      elif values.get(name) is None and not field.is_required():
        if field.default is not None:
          values[name] = field.default
    return values

  def to_dict(self):
    """As config.json has it; a resumed config must compare equal."""
    return lists_as(list, self.model_dump())

  @pydantic.model_validator(mode="wrap")
  @classmethod
  def _one_sentence(cls, values, validate):
    try:
      return validate(values)
    except pydantic.ValidationError as found:
      errors = [cls._in_words(error) for error in found.errors()]
    # Where a key is misspelt, another one may be missing for that.
    errors.sort(key=lambda error: error["type"].type != UNKNOWN)
    raise pydantic.ValidationError.from_exception_data("config", errors)

  @classmethod
  def _in_words(cls, error):
    """An error of pydantic as the sentence that follows its key."""
    kind, place, given = error["type"], error["loc"], error["input"]
    if kind in (SAID, UNKNOWN):
      return problem(error["ctx"]["sentence"], *place, kind=kind)
    if kind == "extra_forbidden":
      near = did_you_mean(place[0], cls.model_fields)
      known = ", ".join(sorted(cls.model_fields))
      sentence = f"is not known;{near} known here: {known}"
      return problem(sentence, *place, kind=UNKNOWN)
    if kind == "missing" or given is None and kind != "model_type":
      return problem("is missing", *place)
    field = cls.model_fields.get(place[0]) if place else None
    wanted = WANTED.get(kind) or allowed(field.annotation, field.metadata)
    must = f"must be {wanted}".replace("be not", "not be")
    return problem(f"{must}, got {given!r}", *place)


def is_section(annotation):
  return isinstance(annotation, type) and issubclass(annotation, Section)


def said(sentence, kind=SAID):
  """The exception for a validator, of a sentence that follows the key."""
  return PydanticCustomError(kind, "{sentence}", {"sentence": sentence})


def problem(sentence, *place, kind=SAID):
  """One of pydantic's errors: a sentence on a place below a section."""
  return InitErrorDetails(type=said(sentence, kind), loc=place, input=None)


def refuse(sentence, *place):
  """Raises the ValidationError of a place below a section."""
  errors = [problem(sentence, *place)]
  raise pydantic.ValidationError.from_exception_data("config", errors)


def place_text(place):
  """("bandit", "betas", 0) as it is said: bandit.betas[0]."""
  parts = [f"[{p}]" if isinstance(p, int) else f".{p}" for p in place]
  return "".join(parts).removeprefix(".")


def lists_as(kind, value):
  """The nested value with tuples and lists as that type."""
  if isinstance(value, dict):
    return {name: lists_as(kind, one) for name, one in value.items()}
  if isinstance(value, list | tuple):
    return kind(lists_as(kind, one) for one in value)
  return value


def allowed(annotation, metadata=()):
  """The values of a type in words, like "positive"; "" where it says all."""
  origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
  if origin is typing.Annotated:
    return allowed(inner[0], annotation.__metadata__)
  if origin is tuple:
    return allowed(inner[0])
  if origin is typing.Literal:
    return f"one of {', '.join(map(repr, inner))}"
  bounds = " and ".join(
    BOUNDS[type(bound)].format(**dataclasses.asdict(bound))
    for bound in metadata
    if type(bound) in BOUNDS
  )
  return ONE_BOUND.get(bounds, bounds)


class Named(Section, extra="allow"):
  """Sections in the order of `names`; those that it does not name are unused.

  `each` is the class of one.
  """

  each: typing.ClassVar[type] = Section

  @classmethod
  def filled(cls, values):
    values = super().filled(values)
    if not isinstance(values, dict):
      return values
    return {
      name: one if name in cls.model_fields else cls.each.filled(one)
      for name, one in values.items()
    }

  @pydantic.model_validator(mode="before")
  @classmethod
  def _named(cls, values):
    names = values.get("names") if isinstance(values, dict) else None
    is_list = isinstance(names, tuple)
    if not is_list or not all(isinstance(name, str) for name in names):
      return values
    if len(set(names)) != len(names) or "names" in names:
      refuse(f"repeats a name: {[*names]}", "names")
    for name in names:
      if name not in values:
        refuse(f"is missing: {[*names]}", name)
    return {name: values[name] for name in ("names", *names)}

  def __getitem__(self, name):
    return self.model_extra[name]

  def items(self):
    """(name, section) of each, in their order."""
    return [(name, self[name]) for name in self.names]
