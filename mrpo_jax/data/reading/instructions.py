# SPDX-License-Identifier: Apache-2.0
"""Columns that make a prompt: instruction, input, history and system."""

from mrpo_jax.data.chat import messages
from mrpo_jax.data.reading import values
from mrpo_jax.errors import InputError

SYSTEMS = ("system", "system_prompt")


def instruction(row, where):
  """The text of instruction and input, a line each."""
  parts = [
    values.as_text(row[key], f"{where}: {key}")
    for key in ("instruction", "input")
    if row.get(key) is not None
  ]
  return "\n".join(part for part in parts if not messages.is_blank(part))


def history(row, where):
  """The turns of a column of [question, answer] before the question."""
  turns = []
  pairs = values.as_list(row.get("history") or [], f"{where}: history")
  for i, turn in enumerate(pairs):
    if not isinstance(turn, list) or len(turn) != 2:
      raise InputError(
        f"{where}: history[{i}] is {values.kind_of(turn)}, want "
        "[question, answer]"
      )
    for role, text in zip(("user", "assistant"), turn, strict=True):
      text = values.as_text(text, f"{where}: history[{i}]")
      turns.append({"role": role, "content": text})
  return turns


def system(row, where):
  """The text of the system turn that a column holds, None without one."""
  given = {
    values.as_text(row[key], f"{where}: {key}")
    for key in SYSTEMS
    if row.get(key) is not None
  }
  given = {text for text in given if not messages.is_blank(text)}
  if len(given) > 1:
    raise InputError(f"{where}: {' and '.join(SYSTEMS)} differ; give one")
  return given.pop() if given else None
