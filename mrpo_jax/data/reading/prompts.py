# SPDX-License-Identifier: Apache-2.0
"""The columns of prompts, and rows of which the prompt is not certain."""

from mrpo_jax.data.chat import messages
from mrpo_jax.data.reading import dialogues, instructions, values
from mrpo_jax.errors import InputError

TURNS = ("conversations", "messages")  # keys of turns that lead to a response
QUESTIONS = ("question", "query", "input")
# Keys that mean something; PROMPTS hold a prompt or a part of it.
PROMPTS = ("prompt", *TURNS, "instruction", *QUESTIONS)
IMPLICIT = ("chosen", "rejected", "tools", *instructions.SYSTEMS)


def is_missing(value):
  """Is a column null, or without a word?"""
  return value is None or values.is_blank(value)


def refuse_blank(row, where):
  """InputError where a row names its prompt, but that says nothing."""
  given = [key for key in PROMPTS if row.get(key) is not None]
  if given and all(values.is_blank(row[key]) for key in given):
    values.as_text_or_turns(row[given[0]], f"{where}: {given[0]}")
    raise empty(where, given[0])


def empty(where, name):
  return InputError(f"{where}: {name} is empty; give it a word at least")


def refuse_unasked(row, prompt, where):
  """InputError where a prompt as it was read asks nothing."""
  if dialogues.says_nothing(prompt):
    raise InputError(
      f"{where}: no prompt was found in the row, whose keys are "
      f"{values.keys_of(row)}; name the column of the prompt prompt"
    )
  if dialogues.asks_nothing(prompt):
    raise InputError(
      f"{where}: the last question of the prompt is empty, which would be "
      f"{values.shown(prompt)}; give it a word at least"
    )


def refuse_guess(row, pair, where):
  """InputError where what two responses share may not be the prompt.

  It is, where it has the turns or the marks of a dialogue.  Else it is a guess,
  which does not stand against another column that may be the prompt.
  """
  sides = pair.chosen, pair.rejected
  if any(map(dialogues.says_nothing, sides)) or sides[0] == sides[1]:
    return
  if isinstance(pair.prompt, str):
    certain = dialogues.is_marked(pair.prompt)
  else:
    certain = any(turn["role"] in messages.USER_ROLES for turn in pair.prompt)
  if certain:
    return
  refuse_blank(row, where)
  if instructions.system(row, where):
    raise InputError(
      f"{where}: a system text stands beside texts that name no prompt; "
      "name the column of the prompt prompt"
    )
  blank = dialogues.says_nothing(pair.prompt)
  others = IMPLICIT if "chosen" in row else (*IMPLICIT, "text", "score")
  for key, value in row.items():
    if value is None:  # a prompt's
      values.as_text(value, f"{where}: {key}", "a string or a list of messages")
    if key not in others and values.holds_text(value, 1 if blank else 2):
      raise InputError(
        f"{where}: chosen and rejected would be read with the prompt "
        f"{values.shown(pair.prompt)}, which is what both begin with, but "
        f"{key!r} holds text too; name the column of the prompt prompt, or "
        "leave out the others"
      )
  if not isinstance(pair.prompt, str):
    raise InputError(
      f"{where}: no prompt was found in the row: no turn of the user leads to "
      f"the responses; the row's keys are {values.keys_of(row)}"
    )
