# SPDX-License-Identifier: Apache-2.0
"""Whole dialogues: the start that two of them share is the prompt.

As messages, or as text with Anthropic's marks "\\n\\nHuman:" and
"\\n\\nAssistant:", also in the "## Human:" form of WebGPT's copies.
"""

import itertools
import re

from mrpo_jax.data.chat import messages
from mrpo_jax.data.chat.messages import ASKING_ROLES, USER_ROLES
from mrpo_jax.errors import InputError

ASSISTANT = re.compile(r"\n\nAssistant:|(?:^|\n)## Assistant:")
MARK = re.compile(r"(?:^|\n\n)(Human|Assistant):|(?:^|\n)## (Human|Assistant):")
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
# What words are made of, in scripts that put white space between them.
LETTER = r"[^\W\u0e00-\u0eff\u2e80-\ud7ff]"
# JSON of turns, or what Python shows of them.
WRITTEN = re.compile(
  r"""\s*\[?\s*\{\s*["'](?:role|from|content|value)["']\s*:"""
)
ROLES = {"Human": "user", "Assistant": "assistant"}
NO_ANSWER = {"role": "assistant", "content": ""}


def says_nothing(side):
  """A response without a word, as text or as messages."""
  if isinstance(side, str):
    return not side.strip()
  return not any(
    messages.content(turn).strip() or turn.keys() - {"role", "content"}
    for turn in side
  )


def has_answer(turns):
  return any(map(messages.is_answer, turns))


def asks_again(response):
  """Does the user say something within a response?"""
  if isinstance(response, str):
    marks = MARK.finditer(response)
    return any("Human" in (mark[1], mark[2]) for mark in marks)
  return any(turn["role"] in USER_ROLES for turn in response)


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
  elif ends := _other_marks(chosen[:shared]):
    shared = ends[-1]
  elif all(map(TAGS.search, (chosen, rejected))):
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


def _other_marks(text):
  """Where answers begin in a text by tags, or else by words."""
  marks = [*TAGS.finditer(text)] or [*WORDS.finditer(text)]
  letters = [*LETTERS.finditer(text)]
  if not marks and letters and letters[0][1] == "Q":
    marks = [mark for mark in letters if mark[1] == "A"]
  return [mark.end() for mark in marks]


def is_marked(text):
  """Does an answer begin in a text by the marks of a dialogue or template?"""
  return is_dialogue(text) or bool(TAGS.search(text))


def is_written(text):
  """Is a text what a program writes of a list of turns?"""
  return isinstance(text, str) and bool(WRITTEN.match(text))


def _word_boundary(chosen, rejected, shared):
  following = chosen[shared : shared + 1] + rejected[shared : shared + 1]
  if following and not following.isspace():
    while shared and not chosen[shared - 1].isspace():
      shared -= 1
  # As TRL does it: the space goes with the word after it, as in tokenizers.
  return shared - chosen[:shared].endswith(" ")


# Responses that repeat a prompt that is given.


def after_text(prompt, chosen, rejected, where):
  """(prompt, chosen, rejected) of texts that may begin with the prompt.

  Where both are dialogues, the prompt is the start that they share.  A plain
  text that one response alone repeats stays: answers do begin so.

  Raises:
    InputError: they are dialogues that begin with another prompt, or one is,
      and the prompt is not.
  """
  sides = chosen, rejected
  if all(map(is_whole, sides)):
    start, *sides = split_texts(chosen, rejected, where)
    if not _repeats(prompt, start):
      raise _another_prompt(where)
    return start, *sides
  whole = next(filter(is_whole, sides), None)
  if _turns(prompt) is not None:
    if whole is not None and _rest(prompt, whole) is None:
      raise _another_prompt(where)
    rests = [_rest(prompt, side) for side in sides]
    found = [rests[i] if rests[i] is not None else sides[i] for i in (0, 1)]
    return prompt if found == [*sides] else prompt.rstrip(), *found
  if whole is not None and _repeats(prompt, whole):
    raise InputError(
      f"{where}: chosen or rejected is a dialogue that begins with the prompt, "
      "the other is not; give both as answers"
    )
  if within := within_marks(prompt, sides):
    return within
  return without_start(prompt, sides)


def within_marks(prompt, sides):
  """(prompt, *sides) where all sides hold a prompt within other marks."""
  shared = min(shared_length(sides[0], side) for side in sides)
  ends = _other_marks(sides[0][:shared])
  if not ends or not prompt.split()[1:]:
    return None
  start = sides[0][: ends[-1]]
  if not holds(" ".join(start.split()), " ".join(prompt.split())):
    return None
  return start, *(side[len(start) :] for side in sides)


def holds(text, words):
  """Do words stand in a text, not within other words?"""
  begin = f"(?<!{LETTER})" if re.match(LETTER, words) else ""
  end = f"(?!{LETTER})" if re.search(f"{LETTER}$", words) else ""
  return bool(re.search(begin + re.escape(words) + end, text))


def without_start(prompt, sides):
  """(prompt, *sides) without a prompt of several words that all begin with."""
  if not prompt.split()[1:]:
    return prompt, *sides
  if all(side.startswith(prompt) for side in sides):
    return prompt, *(side[len(prompt) :] for side in sides)
  rests = [_rest(prompt, side) for side in sides]
  return (prompt, *sides) if None in rests else (prompt.rstrip(), *rests)


def is_whole(text):
  """Is it a dialogue from the first question on?"""
  turns = _turns(text)
  return bool(turns) and turns[0]["role"] == "user" and has_answer(turns)


def turns_of_whole(text):
  """A whole dialogue as turns; any other text as an answer."""
  return _turns(text) if is_whole(text) else [NO_ANSWER | {"content": text}]


def _repeats(prompt, dialogue):
  """Does a dialogue begin with a prompt, or ask what a plain one does?"""
  begun, asked = _turns(dialogue), _turns(prompt)
  if asked is None:
    asked = [{"role": "user", "content": prompt}]
    return _agreed(asked, begun, exact=False) is not None
  if asked[-1] == NO_ANSWER:
    asked = asked[:-1]
  return begun[: len(asked)] == asked


def _rest(prompt, side):
  """What comes after the words of the prompt in a text; None if it has not."""
  words = prompt.split()
  found = list(itertools.islice(re.finditer(r"\S+", side), len(words)))
  if not words or [one[0] for one in found[:-1]] != words[:-1]:
    return None
  end = found[-1].start() + len(words[-1])
  in_word = side[end - 1 : end].isalnum() and side[end : end + 1].isalnum()
  if in_word or not found[-1][0].startswith(words[-1]):
    return None
  return side[end:]


def _another_prompt(where):
  return InputError(
    f"{where}: chosen and rejected begin with turns that are not the "
    "prompt's; leave out the prompt, or those turns"
  )


def after_turns(prompt, chosen, rejected, where, *, exact):
  """(prompt, chosen, rejected) of responses that may be whole conversations.

  Where both are, the prompt is the start that they share.

  Args:
    prompt: turns.
    chosen, rejected: turns.
    where: begins the message.
    exact: must the conversations begin with the same turns as the prompt, or
      is it enough that one of them has its text or a part of it?

  Raises:
    InputError: they begin with another prompt.
  """
  sides = chosen, rejected
  whole = [side[0]["role"] in ASKING_ROLES for side in sides]
  if not any(whole) or any(map(says_nothing, sides)):
    return prompt, *sides
  if all(whole):
    start, *sides = split_turns(chosen, rejected, where)
    if start:
      prompt = _agreed(prompt, start, exact)
  else:
    sides = [
      _after(prompt, side) if asks else side
      for side, asks in zip(sides, whole, strict=True)
    ]
  if prompt is None or None in sides:
    raise _another_prompt(where)
  return prompt, *sides


def _agreed(prompt, start, exact):
  """The turns of both; None where they say different things."""
  (system, asked), (other, begun) = map(_apart, (prompt, start))
  if system and other and system != other:
    return None
  system = system or other
  if says_nothing(asked):
    return system + begun
  if exact:
    if begun[: len(asked)] == asked:
      return system + begun
    return system + asked if begun and asked[-len(begun) :] == begun else None
  said = _words(asked[-1])
  found = (_words(turn) for turn in begun if turn["role"] in USER_ROLES)
  same = any(
    words and said and (holds(said, words) or holds(words, said))
    for words in found
  )
  return system + begun if same else None


def _after(prompt, side):
  """What comes after the prompt in a conversation; None if it is another."""
  for given in (prompt, _apart(prompt)[1]):
    rest = side[len(given) :]
    asks = rest and rest[0]["role"] in ASKING_ROLES and has_answer(rest)
    if given and side[: len(given)] == given and not asks:
      return rest or [NO_ANSWER]
  return None if has_answer(side) else side


def _apart(turns):
  """(the system turn or none, the others)."""
  count = 1 if turns and turns[0]["role"] == "system" else 0
  return turns[:count], turns[count:]


def _words(turn):
  return " ".join(messages.content(turn).split())


# A prompt that holds a response.


def without_answer(prompt, responses):
  """A prompt without its last answer, where that is a response too.

  It is one where some response says the same, or where all begin with it.
  """
  last = _last_answer(prompt)
  said = messages.content(last).strip()
  firsts = [_first_answer(one) for one in responses]
  texts = [messages.content(one).strip() for one in firsts]
  begin = bool(said.split()[1:]) and all(one.startswith(said) for one in texts)
  if not (begin or said and said in texts or last and last in firsts):
    return prompt
  if not isinstance(prompt, str):
    return prompt[:-1]
  start = prompt.rstrip().removesuffix(said)
  apart = any(messages.content(one)[:1].isspace() for one in firsts)
  return start.rstrip() if apart else start


def _last_answer(prompt):
  """The turn of the model that a prompt ends in, {} if it ends in none."""
  if not isinstance(prompt, str):
    return prompt[-1] if prompt and messages.is_answer(prompt[-1]) else {}
  ends = [mark.end() for mark in ASSISTANT.finditer(prompt)]
  said = prompt[ends[-1] :] if ends else ""
  return {} if MARK.search(said) else {"content": said}


def _first_answer(response):
  """The turn of a response, or the last one of a whole conversation."""
  if isinstance(response, str):
    return {"content": response}
  return response[0 if messages.is_answer(response[0]) else -1]


# The turns of a text.


def asked_turns(prompt, where):
  """The turns of a prompt: of a plain dialogue all, of another text one.

  Raises:
    InputError: it has the marks of a chat template.
  """
  if not isinstance(prompt, str):
    return prompt
  if TAGS.search(prompt):
    raise InputError(
      f"{where}: the prompt is a text with the marks of a chat template, the "
      "responses are turns; give it as turns too"
    )
  turns = _turns(prompt) or [{"role": "user", "content": prompt}]
  return turns[:-1] if turns[-1] == NO_ANSWER else turns


def is_dialogue(text):
  """Does a text, or what is left of one, have the marks of an answer?"""
  return isinstance(text, str) and bool(ASSISTANT.search(text))


def turns_of(prompt, responses, where):
  """A dialogue's prompt and responses, which are texts, as lists of turns.

  White space around what is said is left out.  A response of None stays.
  Where one is empty, all are.

  Raises:
    InputError: the prompt has no such marks, or a response begins with a
      question.
  """
  start = _turns(prompt)
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
  whole = _turns(prompt + response)
  found = whole[len(start) :]
  if whole[: len(start)] != start or found[0]["role"] != "assistant":
    raise InputError(
      f"{where}: a response does not begin after Assistant: with the answer"
    )
  return found


def _turns(text):
  """None unless it is a dialogue from its first word on."""
  marks = list(MARK.finditer(text))
  if not marks or text[: marks[0].start()].strip():
    return None
  ends = [mark.start() for mark in marks[1:]] + [len(text)]
  return [
    {
      "role": ROLES[mark[1] or mark[2]],
      "content": text[mark.end() : end].strip(),
    }
    for mark, end in zip(marks, ends, strict=True)
  ]
