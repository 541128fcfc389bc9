# SPDX-License-Identifier: Apache-2.0
"""Marks of chat templates, and of lists of turns, within plain texts."""

import re

from mrpo_jax.data.chat import messages

# Where an answer begins in texts of other templates; words are less certain.
TAGS = re.compile(
  r"<\|im_start\|>assistant[ \t]*\r?\n|\[/INST\]|<start_of_turn>model\r?\n"
  r"|<\|start_header_id\|>assistant<\|end_header_id\|>(?:\r?\n)*"
  r"|<[|\uff5c](?:assistant|Assistant|ASSISTANT)[|\uff5c]>\r?\n?"
)
WORDS = re.compile(
  r"(?:^|[\r\n])[ \t]*(?:#+[ \t]*)?"
  r"(?:assistant|response|answer|gpt|model|ai|bot)[ \t]*:|\b(?-i:ASSISTANT:)",
  re.IGNORECASE,
)
LETTERS = re.compile(r"(?:^|[\r\n])[ \t]*([QA])[ \t]*:")
# JSON of turns, or what Python shows of them.
WRITTEN = re.compile(
  r"""\s*\[?\s*\{\s*["'](?:role|from|content|value)["']\s*:"""
)
# A turn of the user, or a pair of marks, with nothing in it.
NOTHING = re.compile(
  r"(?:<\|im_start\|>user|<start_of_turn>user|\[INST\]"
  r"|<\|start_header_id\|>user<\|end_header_id\|>"
  r"|<[|\uff5c](?:user|User|USER)[|\uff5c]>)\s*(?=<[|\uff5c/]|<end_of_turn>|\[/)"
)
BARE = re.compile(r"</?s>|<bos>|<end_of_turn>|<[|\uff5c]\S{,30}?[|\uff5c]>")


def answers_in(text):
  """Where answers begin in a text by tags, or else by words."""
  found = [*TAGS.finditer(text)] or [*WORDS.finditer(text)]
  letters = [*LETTERS.finditer(text)]
  if not found and letters and letters[0][1] == "Q":
    found = [mark for mark in letters if mark[1] == "A"]
  return [mark.end() for mark in found]


def asks_nothing(text):
  """Is there no question before the last mark of an answer?"""
  found = [*TAGS.finditer(text)]
  if not found:
    return messages.is_blank(WORDS.sub("", text))
  start = text[: found[-1].start()]
  blank = [one.end() for one in NOTHING.finditer(text)]
  return any(
    messages.is_blank(BARE.sub("", start[end:])) for end in (0, *blank)
  )


def is_written(text):
  """Is a text what a program writes of a list of turns?"""
  return isinstance(text, str) and bool(WRITTEN.match(text))
