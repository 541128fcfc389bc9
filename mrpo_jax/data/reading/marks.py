# SPDX-License-Identifier: Apache-2.0
"""Marks of chat templates, and of lists of turns, within plain texts."""

import re

from mrpo_jax.data.chat import messages
from mrpo_jax.data.reading import values
from mrpo_jax.errors import InputError

# Where an answer begins in texts of other templates; words are less certain.
TAGS = re.compile(
  r"<\|im_start\|>assistant(?:<\|im_sep\|>|[ \t]*\r?\n)|\[/INST\]"
  r"|<start_of_turn>model\r?\n|<\|im_assistant\|>assistant<\|im_middle\|>"
  r"|<\|(?:start_header_id\|>assistant<\|end_header_id"
  r"|header_start\|>assistant<\|header_end)\|>(?:\r?\n)*"
  r"|<\|start\|>assistant(?:<\|channel\|>\w+<\|message\|>)?"
  r"|<\|START_OF_TURN_TOKEN\|><\|CHATBOT_TOKEN\|>"
  r"|<\|start_of_role\|>assistant<\|end_of_role\|>"
  r"|GPT4(?: Correct)? Assistant:|<extra_id_1>Assistant\r?\n"
  r"|<[|\uff5c](?:assistant|Assistant|ASSISTANT)[|\uff5c]>\r?\n?"
  r"|\[\|assistant\|\]|<\|assistant_start\|>"
)
# Where a turn of the user or of the system begins.
ASKED = re.compile(
  r"<\|im_start\|>(?:user|system)|\[INST\]|<start_of_turn>user"
  r"|<\|(?:start_header_id|header_start|start_of_role|start)\|>(?:user|system)"
  r"|<\|START_OF_TURN_TOKEN\|><\|(?:USER|SYSTEM)_TOKEN\|>"
  r"|<\|im_(?:user|system)\|>|GPT4(?: Correct)? User:|<extra_id_1>User"
  r"|<[|\uff5c](?:user|User|USER|system)[|\uff5c]>|\[\|user\|\]"
)
# Anthropic's marks, where a turn or an answer is what is wanted.
WHOLE = re.compile(r"\s*Human:.*\n\nAssistant:|\s*Assistant:", re.DOTALL)
# Alpaca's form, in which a turn of its own is none.
FORM = re.compile(r"(?:^|\n)#+ Instruction:\s.*\n#+ Response:", re.DOTALL)
WORDS = re.compile(
  r"(?:^|[\r\n])[ \t]*(?:#+[ \t]*)?"
  r"(?:(?:assistant|response|answer|gpt|model|ai|bot)[ \t]*:"
  r"|(?:\u52a9\u624b|\u56de\u7b54|\u7b54)[:\uff1a])|\b(?-i:ASSISTANT:)",
  re.IGNORECASE,
)
# A text that begins with a question, by a word for it.
QUESTION = re.compile(
  r"\s*(?:#+[ \t]*)?(?:user|human|question|instruction|q"
  r"|\u7528\u6237|\u95ee\u9898|\u95ee)[ \t]*[:\uff1a]",
  re.IGNORECASE,
)
LETTERS = re.compile(r"(?:^|[\r\n])[ \t]*([QA])[ \t]*:")
# JSON of turns, or what Python shows of them.
WRITTEN = re.compile(
  r"""\s*(?:array\()?[\[({](?=.*["'](?:role|from)["']\s*:\s*["']"""
  r"""(?:user|human|system|developer|assistant|gpt|model|tool)["'])"""
  r"""(?=.*["'](?:content|value|text|parts)["']\s*:)"""
  r"""|\s*\[\s*[\[(]\s*["'](?:user|human|system|assistant|gpt)["']\s*,""",
  re.DOTALL | re.IGNORECASE,
)
# A turn of the user, or a pair of marks, with nothing in it.
NOTHING = re.compile(
  r"(?:<\|im_start\|>user(?:<\|im_sep\|>)?|<start_of_turn>user|\[INST\]"
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


def is_marked(text):
  """Has a text the marks of a chat template?"""
  return bool(TAGS.search(text) or ASKED.search(text))


def question_of(text):
  """The first question of a text that is a dialogue by words, else None."""
  begin, letters = QUESTION.match(text), LETTERS.match(text)
  if letters or not begin:
    answers = [mark for mark in LETTERS.finditer(text) if mark[1] == "A"]
    begin = letters if letters and letters[1] == "Q" else None
  else:
    answers = [mark for mark in WORDS.finditer(text)]
  if not begin or not answers:
    return None
  return " ".join(text[begin.end() : answers[0].start()].split())


def refuse(pair, where):
  """InputError where a pair's texts have marks at which they are not split.

  Text goes to the tokenizer as it is: a prompt with marks leads to answers, one
  without has none.  In turns they would stand within those of a template.
  """
  if not isinstance(pair.prompt, str):
    for turn in [*pair.prompt, *pair.chosen, *(pair.rejected or [])]:
      said = messages.content(turn)
      if turn["role"] in messages.TOOL_ROLES:
        continue
      if is_marked(said) or FORM.search(said) or WHOLE.match(said):
        raise InputError(
          f"{where}: a turn holds the marks of a chat template, "
          f"{values.shown(said)}; give its text alone"
        )
    return
  sides = [pair.chosen, *([] if pair.rejected is None else [pair.rejected])]
  begin = [bool(TAGS.match(side.lstrip())) for side in sides]
  ends = [*TAGS.finditer(pair.prompt)]
  again = ends and messages.is_blank(pair.prompt[ends[-1].end() :])
  lone = not is_marked(pair.prompt) and any(map(is_marked, sides))
  if lone or len(set(begin)) > 1 or again and any(begin):
    raise InputError(
      f"{where}: a response holds the marks of a chat template where the "
      f"prompt, {values.shown(pair.prompt)}, does not lead to them; give the "
      "answers alone, or all texts with the marks"
    )


def is_written(text):
  """Is a text what a program writes of a list of turns?"""
  return isinstance(text, str) and bool(WRITTEN.match(text))
