# SPDX-License-Identifier: Apache-2.0
"""What a chat template does not write: tools, tool calls, reasoning, parts.

A template may pass over what it does not know.  So each of them is taken away
or changed: where the text stays the same, it is not in it.
"""

import dataclasses

from mrpo_jax.data.chat import messages

MARK, OTHER = "\U0010fffc", "\U0010fffd"  # private characters


@dataclasses.dataclass(frozen=True)
class Probe:
  """A changed Conversation, and what its text would show."""

  what: str
  turn: int | None
  conversation: object
  parts: int = 0  # if the parts of a content were changed: how many there are

  def is_unwritten(self, text, whole):
    """Is it not in the text?  `text` is that of the changed Conversation."""
    if self.parts:
      # Else the list itself is written, as Python or JSON would show it.
      return OTHER in text or text.count(MARK) < self.parts
    return text == whole


def probes(conversation, start=0):
  """Probes of a Conversation, of its turns from `start` on."""
  found = []
  if conversation.tools and not start:
    found.append(
      Probe("tools", None, dataclasses.replace(conversation, tools=None))
    )
  for i, turn in enumerate(conversation.messages):
    if i >= start:
      for what, parts, changed in _changes(turn):
        turns = list(conversation.messages)
        turns[i] = changed
        other = dataclasses.replace(conversation, messages=turns)
        found.append(Probe(what, i, other, parts))
  return found


def _changes(turn):
  """(what, number of parts, the changed turn) of all that a turn holds."""
  for key in ("tool_calls", messages.REASONING[0]):
    if key in turn:
      yield key, 0, {k: one for k, one in turn.items() if k != key}
  if calls := turn.get("tool_calls"):
    for i, call in enumerate(calls):  # a template may write the first alone
      before, after = calls[:i], calls[i + 1 :]
      if before or after:
        yield f"tool_calls[{i}]", 0, turn | {"tool_calls": before + after}
      bare = _without_arguments(call)
      if bare != call:
        changed = turn | {"tool_calls": [*before, bare, *after]}
        yield "the arguments of tool_calls", 0, changed
  said = turn.get("content")
  if isinstance(said, list):
    marked = [{"type": messages.TEXT, "text": MARK, OTHER: OTHER} for _ in said]
    yield "a content in parts", len(said), turn | {"content": marked}
  elif turn.get("role") in messages.TOOL_ROLES:
    changed = turn | {"content": messages.content(turn) + MARK}
    yield f"a {turn['role']} turn", 0, changed


def _without_arguments(call):
  if isinstance(call.get("function"), dict):
    return call | {"function": _without_arguments(call["function"])}
  empty = "{}" if isinstance(call.get("arguments"), str) else {}
  return call | {"arguments": empty} if call.get("arguments") else call
