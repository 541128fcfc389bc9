# SPDX-License-Identifier: Apache-2.0
"""Values of a row, checked: texts, lists, and messages in every form."""

import contextlib
import datetime
import decimal
import json
import re

from mrpo_jax.data.chat import messages
from mrpo_jax.errors import InputError

SYSTEM_ROLES = ("system", "developer")
# Names of roles, of role and content and of from and value; chat templates know
# those that they become.
FROM = {"prompter": "user", "gpt": "assistant", "bot": "assistant"}
FROM |= {"human": "user", "model": "assistant"}
FROM |= {role: role for role in ("user", "assistant", "system")}
ROLES = FROM | {role: role for role in ("developer", *messages.TOOL_ROLES)}
JSON = ("tools", "tool_calls", "arguments")  # keys of what may be JSON in text
# Thai, Lao, Chinese and Japanese: so many characters are several words.
UNSPACED = re.compile(r"[\u0e00-\u0eff\u2e80-\ua4cf\uf900-\ufaff]{4}")
LEVELS = 100  # of lists and objects in one another


def refuse_deep(row, where):
  """InputError where a row, or JSON that it holds as text, is nested too deep.

  Python ends there in a RecursionError sooner or later.
  """
  if _is_deep(row):
    raise InputError(
      f"{where}: more than {LEVELS} lists and objects stand in one another; "
      "leave the row out"
    )


def _is_deep(value):
  level = [value]
  for _ in range(LEVELS + 1):
    inner = []
    for one in level:
      if isinstance(one, dict):
        inner += one.values()
        if any(_holds_deep(one.get(key)) for key in JSON):
          return True
      elif isinstance(one, list):
        inner += one
    level = inner
    if not level:
      return False
  return True


def _holds_deep(text):
  """Is a text JSON that is nested too deep?"""
  if not isinstance(text, str) or text.count("[") + text.count("{") <= LEVELS:
    return False
  try:
    return _is_deep(json.loads(text))
  except ValueError:
    return False  # refused where it is read
  except RecursionError:
    return True


def as_in_json(row):
  """A row with what JSON lacks as it has it: decimals are numbers.

  Dates and times are ISO text, within lists and objects; as a column they stay,
  for they are neither texts nor turns.
  """
  return {
    key: _as_in_json(one) if isinstance(one, list | dict) else one
    for key, one in row.items()
  }


def _as_in_json(value):
  if isinstance(value, dict):
    return {key: _as_in_json(one) for key, one in value.items()}
  if isinstance(value, list):
    return [_as_in_json(one) for one in value]
  if isinstance(value, decimal.Decimal):
    return int(value) if value.as_tuple().exponent >= 0 else float(value)
  if isinstance(value, datetime.date | datetime.time):
    return value.isoformat()
  return value


def as_list(value, where):
  if not isinstance(value, list):
    raise InputError(f"{where} is {kind_of(value)}, want a list")
  return value


def column(value, key, where):
  """The values of one key in a list of objects, or in an object of lists."""
  if isinstance(value, dict) and key in value:
    return as_list(value[key], f"{where}.{key}")
  for i, one in enumerate(value):
    if not isinstance(one, dict) or one.get(key) is None:
      raise InputError(f"{where}[{i}] has no {key}; give one each")
  return [one[key] for one in value]


def as_text_or_turns(value, where, empty=True):
  """A string, or the turns of a value; `empty`: may there be none?"""
  if not isinstance(value, list | dict):
    return as_text(value, where, "a string or a list of messages")
  turns = as_turns(value, where)
  if not turns and not empty:
    raise InputError(f"{where} is an empty list, want at least one message")
  return turns


def as_text(value, where, want="a string"):
  if not isinstance(value, str):
    raise InputError(f"{where} is {kind_of(value)}, want {want}")
  return value


def as_turns(value, where):
  """A list of {"role", "content"} of a list, one message, or columns."""
  if isinstance(value, dict):
    value = _rows_of_columns(value, where)
  turns = [_named(turn) for turn in as_list(value, where)]
  found = []
  for i, turn in enumerate(turns):
    one = _turn(turn, f"{where}[{i}]")
    if why := messages.unscored(turn, f"{where}[{i}]"):
      one = messages.Unscored(one, why)
    found.append(one)
  messages.refuse_unscored(filter(messages.is_answer, found[-1:]))
  return found


def _named(turn):
  """A message without nulls; of role and content only if it has from, value."""
  if not isinstance(turn, dict):
    return turn
  given = {key: value for key, value in turn.items() if value is not None}
  if {"from", "value"} <= given.keys():
    return given
  kept = {key: turn[key] for key in ("role", "content") if key in turn}
  return given | kept  # a null of theirs is refused by name


def _rows_of_columns(value, where):
  """One message as a list; also what TFDS and Hugging Face make of a list.

  They turn a list of objects into an object of lists.
  """
  if isinstance(value.get("role") or value.get("from"), str):
    return [value]
  value = {key: column for key, column in value.items() if column is not None}
  columns = [v for v in value.values() if isinstance(v, list)]
  if not columns:
    return [value]
  if len(columns) < len(value) or len({len(c) for c in columns}) > 1:
    raise InputError(f"{where} has lists of unequal length; give one each")
  rows = zip(*columns, strict=True)
  return [dict(zip(value, row, strict=True)) for row in rows]


def _turn(turn, where):
  if (
    isinstance(turn, dict)
    and "role" in turn
    and ("content" in turn or turn.get("tool_calls"))
  ):
    role = _role(turn["role"], ROLES, f"{where}.role")
    _refuse_two(turn, role, where)
    beside = messages.beside_content(turn, role, where)
    content = turn.get("content")
    if isinstance(content, list):
      content = messages.parts(content, f"{where}.content")
    elif content is not None or "tool_calls" not in beside:
      content = as_text(content, f"{where}.content")
  elif isinstance(turn, dict) and {"from", "value"} <= turn.keys():
    role = _role(turn["from"], FROM, f"{where}.from")
    content = as_text(turn["value"], f"{where}.value")
    beside = messages.beside_content(turn, role, where)
  else:
    raise InputError(
      f"{where} is {kind_of(turn)}, want a message with role and content"
    )
  return {"role": role, "content": content, **beside}


def _refuse_two(turn, role, where):
  """InputError where from and value say other than role and content."""
  given = {"from", "value"} <= turn.keys()
  other = given and _role(turn["from"], FROM, f"{where}.from")
  same = FROM.get(role, role), turn.get("content")
  if given and (other, turn["value"]) != same:
    raise InputError(
      f"{where}: role and content differ from from and value; give one of both"
    )


def _role(value, known, where):
  """A role under the name that is kept; case and white space do not count."""
  role = known.get(as_text(value, where).strip().lower())
  if role is None:
    names = ", ".join(known)
    raise InputError(f"{where}: unknown role {value!r}; the known are {names}")
  return role


def refuse_no_row(row, where):
  """InputError where a row is no object."""
  if not isinstance(row, dict):
    raise InputError(f"{where}: is {kind_of(row)}, want one object per row")


def keys_of(row):
  """The keys of an object, in words."""
  return ", ".join(map(repr, row)) or "none"


def kind_of(value):
  """What a value is, in words."""
  if isinstance(value, dict):
    return f"an object with the keys {keys_of(value)}"
  kinds = {bool: "a boolean", int: "a number", float: "a number"}
  kinds |= {str: "a string", list: "a list", type(None): "null"}
  kinds |= {bytes: "binary data"}
  return kinds.get(type(value), f"a {type(value).__name__}")


def is_phrase(text):
  """Has a text several words, or as much in a script without spaces?"""
  return bool(text.split()[1:] or UNSPACED.search(text))


def holds_text(value, words):
  """Does a value hold turns, or a text of so many words, at any depth?

  A question is of two, and so is a phrase in a script without spaces.
  """
  if isinstance(value, str):
    count = len(value.split())
    asks = value.rstrip().endswith(("?", "\uff1f"))
    return count >= words or bool(count) and (asks or is_phrase(value))
  if isinstance(value, dict):
    if value.keys() >= {"role", "content"} or value.keys() >= {"from", "value"}:
      return True
    value = [*value.values()]
  return isinstance(value, list) and any(holds_text(v, words) for v in value)


def is_blank(value):
  """Is it a text, or turns, without a word?  System turns do not count."""
  if isinstance(value, str):
    return messages.is_blank(value)
  value = _rows_of(value)
  if isinstance(value, dict):
    said = {"content", "value", "text"} & value.keys()
    beside = ("role", "from", "type", "name", *said)
    return (
      bool(said)
      and all(is_blank(value[key]) for key in said)
      and not any(value[key] for key in value if key not in beside)
    )
  if not isinstance(value, list):
    return False
  asked = [one for one in value if not _is_system(one)]
  return all(map(is_blank, asked or value))


def _rows_of(value):
  """Columns of messages as a list, if they are that."""
  role = isinstance(value, dict) and (value.get("role") or value.get("from"))
  if isinstance(role, list):
    with contextlib.suppress(InputError):  # it is said where they are read
      return _rows_of_columns(value, "")
  return value


def _is_system(turn):
  """Is it one of the system, in any spelling of its role?"""
  if not isinstance(turn, dict):
    return False
  role = turn.get("role") or turn.get("from")
  return isinstance(role, str) and role.strip().lower() in SYSTEM_ROLES


def shown(value):
  """A value as it stands in a message, its middle left out if it is long."""
  text = repr(value)
  return text if len(text) <= 60 else f"{text[:40]} ... {text[-16:]}"
