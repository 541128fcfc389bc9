# SPDX-License-Identifier: Apache-2.0
"""Columns beside the prompt that hold a part of it, which would be lost."""

from mrpo_jax.data.chat import messages
from mrpo_jax.data.reading import repeated, values
from mrpo_jax.errors import InputError

# Columns of texts or turns that the prompt of a row must have too.
TEXTS = ("context", "system_message", "history", "chat_history")
TEXTS += ("initial_reason_steps",)
# Columns that change a prompt in ways that are not done here.
CHANGES = ("functions", "documents", "chat_template_kwargs")
COLUMNS = (*messages.MEDIA, *TEXTS, *CHANGES, *messages.REASONING)


def refuse_lost(row, read, prompt, where):
  """InputError where a column has what a prompt lacks; the column is named.

  Args:
    row: without nulls.
    read: the other names of columns that may hold a prompt.
    prompt: as it was read, text or turns.
    where: begins the message.
  """
  for key in messages.MEDIA:
    if _is_given(row.get(key)):
      raise InputError(
        f"{where}: {key!r} cannot be trained on: only text can; leave the row "
        "out, or the column, if the texts are complete without it"
      )
  for key in CHANGES:
    value = messages.without_nulls(row.get(key))
    if value not in (None, "", "[]", "{}") and (value or value is False):
      other = "give them as tools" if key == "functions" else "leave it out"
      raise InputError(f"{where}: {key!r} would not be read; {other}")
  given = {key: row[key] for key in read if key in row}
  named = [*given.values(), row.get("prompt", "")]
  if not all(map(values.is_blank, named)):  # dialogues alone are complete
    given |= {key: row[key] for key in TEXTS if key in row}
  said = _all_of(prompt) if given else ""
  for key, value in given.items():
    for text in _asked_of(value, f"{where}: {key}"):
      if not repeated.holds(_words(said), _words(text)):
        raise InputError(
          f"{where}: the prompt would be {values.shown(said)}, without what "
          f"{key!r} holds, {values.shown(text)}; put it into the prompt, or "
          "leave the column out"
        )


def refuse_reasoning(row, answer, where):
  """InputError where reasoning stands beside the column of an answer."""
  for key in messages.REASONING:
    if _is_given(row.get(key)):
      raise InputError(
        f"{where}: {key!r} beside {answer!r} would not be read; give the "
        f"answer as a message with {messages.REASONING[0]}, or leave it out"
      )


def _is_given(value):
  """Has a value anything but nulls and empty texts, at any depth?"""
  if isinstance(value, dict):
    value = [*value.values()]
  if isinstance(value, list):
    return any(map(_is_given, value))
  return value not in (None, "", b"", False)


def _all_of(prompt):
  if isinstance(prompt, str):
    return prompt
  return "\n".join(map(messages.content, prompt))


def _asked_of(value, where):
  """Texts of a column: of turns those that are no answers, of a list all."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, list):
    for one in value:
      yield from _asked_of(one, where)
  elif isinstance(value, dict):
    if isinstance(role := value.get("role") or value.get("from"), str):
      role = values.FROM.get(role.strip().lower(), role)
      said = [value.get("content"), value.get("value")]
      if role not in ("assistant", "model"):
        yield from _asked_of(said, where)
    elif isinstance(text := value.get("text"), str):
      yield text
    elif isinstance(role, list):  # columns of turns
      turns = values.as_turns(value, where)
      yield from _asked_of(turns, where)
    else:
      yield from _asked_of([*value.values()], where)


def _words(text):
  return " ".join(text.split())
