# SPDX-License-Identifier: Apache-2.0
"""Whole dialogues: the start that two of them share is the prompt.

As messages, or as text with Anthropic's marks "\\n\\nHuman:" and
"\\n\\nAssistant:", also in the "## Human:" form of WebGPT's copies.
"""

import re

from mrpo_jax.data.chat import messages
from mrpo_jax.data.chat.messages import ASKING_ROLES, USER_ROLES
from mrpo_jax.data.reading import marks
from mrpo_jax.errors import InputError

ASSISTANT = re.compile(r"\n\nAssistant:|(?:^|\n)## Assistant:")
MARK = re.compile(r"(?:^|\n\n)(Human|Assistant):|(?:^|\n)## (Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
NO_ANSWER = {"role": "assistant", "content": ""}


def says_nothing(side):
  """A response without a word, as text or as messages."""
  if isinstance(side, str):
    return messages.is_blank(side)
  return all(map(_is_blank, side))


def _is_blank(turn):
  beside = turn.keys() - {"role", "content"}
  return messages.is_blank(messages.content(turn)) and not beside


def asks_nothing(prompt):
  """Has a prompt no word, or a last question of the user without one?"""
  if says_nothing(prompt):
    return True
  turns = turns_in(prompt) if isinstance(prompt, str) else prompt
  if turns is None:
    return marks.asks_nothing(prompt)
  asked = [turn for turn in turns if turn["role"] in USER_ROLES]
  return _is_blank(asked[-1]) if asked else says_nothing(turns)


def has_answer(turns):
  return any(map(messages.is_answer, turns))


def asks_again(response):
  """Does another than the model say something within a response?"""
  if isinstance(response, str):
    found = MARK.finditer(response)
    return any("Human" in (mark[1], mark[2]) for mark in found)
  return not all(map(messages.is_answer, response))


def shared_length(one, other):
  """How many characters, or messages, two start with alike."""
  together = enumerate(zip(one, other, strict=False))
  return next(
    (i for i, (a, b) in together if a != b), min(len(one), len(other))
  )


# The start that two share.


def split_turns(chosen, rejected, where):
  """(prompt, chosen, rejected) of two whole conversations.

  Equal ones keep their last message as the response.  Where one is the
  beginning of the other, its response is empty.

  Raises:
    InputError: both go on with answers, but first with other questions.
  """
  shared = shared_length(chosen, rejected)
  if chosen == rejected:
    shared -= 1
  sides = [side[shared:] or [NO_ANSWER] for side in (chosen, rejected)]
  asks = [side[0]["role"] in ASKING_ROLES for side in sides]
  is_start = shared in (len(chosen), len(rejected))
  if any(asks) and not is_start and all(map(has_answer, sides)):
    raise InputError(
      f"{where}: chosen and rejected differ first in message {shared + 1}, "
      f"which is no answer: {sides[asks.index(True)][0]['role']}; give both "
      "the same prompt"
    )
  return chosen[:shared], *sides


def split_texts(chosen, rejected, where):
  """(prompt, chosen, rejected) of two dialogues, or texts that share words.

  Dialogues are split after the last mark of an answer that they share, also of
  the marks of chat templates; other texts at a word.  A dialogue that ends
  before an answer, or where the other one has a further turn, has an empty
  response.

  Raises:
    InputError: both are dialogues, but no answer begins where they agree.
  """
  shared = shared_length(chosen, rejected)
  shorter, longer = sorted((chosen, rejected), key=len)
  ends = [m.end() for m in ASSISTANT.finditer(chosen[:shared])]
  answered = [bool(ASSISTANT.search(text)) for text in (chosen, rejected)]
  is_start = shared == len(shorter) < len(longer)
  if is_start and any(answered) and MARK.match(longer, shared):
    return shorter, chosen[shared:], rejected[shared:]
  if ends:
    shared = ends[-1]
  elif all(answered):
    raise _differ_early(where)
  elif any(answered) and all(map(MARK.match, (chosen, rejected))):
    sides = chosen[shared:], rejected[shared:]
    return chosen[:shared], *(
      side if has else "" for side, has in zip(sides, answered, strict=True)
    )
  elif ends := marks.answers_in(chosen[:shared]):
    shared = ends[-1]
  elif any(map(marks.is_marked, (chosen, rejected))):
    raise _differ_early(where)
  elif all(map(marks.question_of, (chosen, rejected))):
    raise _differ_early(where)
  else:
    # One character stays: a text that is the other's beginning is a response.
    shared = min(shared, max(len(shorter) - 1, 0))
    shared = _word_boundary(chosen, rejected, shared)
  return chosen[:shared], chosen[shared:], rejected[shared:]


def _differ_early(where):
  return InputError(
    f"{where}: chosen and rejected are dialogues that differ before an "
    "answer begins; give both the same prompt"
  )


def is_marked(text):
  """Does an answer begin in a text by the marks of a dialogue or template?"""
  return is_dialogue(text) or bool(marks.TAGS.search(text))


def _word_boundary(chosen, rejected, shared):
  following = chosen[shared : shared + 1] + rejected[shared : shared + 1]
  if following and not following.isspace():
    while shared and not chosen[shared - 1].isspace():
      shared -= 1
  # As TRL does it: the space goes with the word after it, as in tokenizers.
  return shared - chosen[:shared].endswith(" ")


# The turns of a text.


def asked_turns(prompt, where):
  """The turns of a prompt: of a plain dialogue all, of another text one.

  Raises:
    InputError: it has the marks of a chat template.
  """
  if not isinstance(prompt, str):
    return prompt
  if marks.is_marked(prompt):
    raise InputError(
      f"{where}: the prompt is a text with the marks of a chat template, the "
      "responses are turns; give it as turns too"
    )
  turns = turns_in(prompt) or [{"role": "user", "content": prompt}]
  return turns[:-1] if turns[-1] == NO_ANSWER else turns


def is_dialogue(text):
  """Does a text, or what is left of one, have the marks of an answer?"""
  return isinstance(text, str) and bool(ASSISTANT.search(text))


def is_whole(text):
  """Is it a dialogue from the first question on?"""
  turns = turns_in(text)
  return bool(turns) and turns[0]["role"] == "user" and has_answer(turns)


def turns_of_whole(text):
  """A whole dialogue as turns; any other text as an answer."""
  return turns_in(text) if is_whole(text) else [NO_ANSWER | {"content": text}]


def turns_of(prompt, responses, where):
  """A dialogue's prompt and responses, which are texts, as lists of turns.

  White space around what is said is left out.  A response of None stays.
  Where one is empty, all are.

  Raises:
    InputError: the prompt has no such marks, or a response begins with a
      question.
  """
  start = turns_in(prompt)
  if start is None:
    raise InputError(
      f"{where}: the prompt has no turns that begin with Human: and "
      "Assistant:, or text before the first"
    )
  if start[-1] == NO_ANSWER:
    start = start[:-1]
  if any(one is not None and says_nothing(one) for one in responses):
    return start, *([NO_ANSWER] for _ in responses)  # a pair that is dropped
  return start, *(_response(prompt, start, one, where) for one in responses)


def _response(prompt, start, response, where):
  if response is None:
    return None
  whole = turns_in(prompt + response)
  found = whole[len(start) :]
  if whole[: len(start)] != start or found[0]["role"] != "assistant":
    raise InputError(
      f"{where}: a response does not begin after Assistant: with the answer"
    )
  return found


def turns_in(text):
  """Its turns; None unless it is a dialogue from its first word on."""
  found = list(MARK.finditer(text))
  if not found or text[: found[0].start()].strip():
    return None
  ends = [mark.start() for mark in found[1:]] + [len(text)]
  return [
    {
      "role": ROLES[mark[1] or mark[2]],
      "content": text[mark.end() : end].strip(),
    }
    for mark, end in zip(found, ends, strict=True)
  ]
