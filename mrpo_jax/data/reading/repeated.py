# SPDX-License-Identifier: Apache-2.0
"""Prompts that responses repeat, or that hold a response: each stands once."""

import itertools
import re

from mrpo_jax.data.chat import messages
from mrpo_jax.data.chat.messages import ASKING_ROLES, USER_ROLES
from mrpo_jax.data.reading import dialogues, marks, values
from mrpo_jax.errors import InputError

# What words are made of, in scripts that put white space between them.
LETTER = r"[^\W\u0e00-\u0eff\u2e80-\ud7ff]"


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
  if all(map(dialogues.is_whole, sides)):
    start, *sides = dialogues.split_texts(chosen, rejected, where)
    if not _repeats(prompt, start):
      raise _another_prompt(where)
    return start, *sides
  whole = next(filter(dialogues.is_whole, sides), None)
  if dialogues.turns_in(prompt) is not None:
    if whole is not None and _rest(prompt, whole) is None:
      raise _another_prompt(where)
    rests = [_rest(prompt, side) for side in sides]
    found = [rests[i] if rests[i] is not None else sides[i] for i in (0, 1)]
    return prompt if found == [*sides] else prompt.rstrip(), *found
  if whole is not None and _repeats(prompt, whole):
    raise _one_whole(where)
  refuse_one_whole(prompt, sides, where)
  if within := within_marks(prompt, sides):
    return within
  return without_start(prompt, sides)


def refuse_one_whole(prompt, sides, where):
  """InputError where some texts, not all, are dialogues by words for turns."""
  words = " ".join(prompt.split())
  asked = [marks.question_of(side) or "" for side in sides]
  found = [bool(one and holds(one, words)) for one in asked]
  if any(found) and not all(found):
    raise _one_whole(where)


def _one_whole(where):
  return InputError(
    f"{where}: chosen or rejected is a dialogue that begins with the prompt, "
    "the other is not; give both as answers"
  )


def within_marks(prompt, sides):
  """(prompt, *sides) where all sides hold a prompt within other marks."""
  shared = min(dialogues.shared_length(sides[0], side) for side in sides)
  ends = marks.answers_in(sides[0][:shared])
  words = " ".join(prompt.split())
  asks = marks.TAGS.search(sides[0]) or marks.question_of(sides[0]) == words
  if not ends or not (asks or values.is_phrase(prompt)):
    return None
  start = sides[0][: ends[-1]]
  if not holds(" ".join(start.split()), words):
    return None
  return start, *(side[len(start) :] for side in sides)


def holds(text, words):
  """Do words stand in a text, not within other words?"""
  begin = f"(?<!{LETTER})" if re.match(LETTER, words) else ""
  end = f"(?!{LETTER})" if re.search(f"{LETTER}$", words) else ""
  return bool(re.search(begin + re.escape(words) + end, text))


def without_start(prompt, sides):
  """(prompt, *sides) without a prompt of several words that all begin with."""
  if not values.is_phrase(prompt):
    return prompt, *sides
  if all(side.startswith(prompt) for side in sides):
    return prompt, *(side[len(prompt) :] for side in sides)
  rests = [_rest(prompt, side) for side in sides]
  return (prompt, *sides) if None in rests else (prompt.rstrip(), *rests)


def answers_after(asked, sides):
  """Answers without a question that all begin with, as `without_start`.

  The space or the lines after it go too, but not the indentation of code.
  """
  _, *rests = without_start(asked, sides)
  if rests == [*sides]:
    return rests
  lines = asked.endswith("\n") and all(one.startswith(asked) for one in sides)
  after = r"(?:[ \t]*\r?\n)*" if lines else r"(?:[ \t]*\r?\n)+|\s*"
  return [re.sub(rf"\A(?:{after})", "", one) for one in rests]


def turns_after(prompt, chosen, rejected):
  """Responses, turns, without the question if the first answers repeat it."""
  firsts = chosen[0], rejected[0]
  asks = prompt and prompt[-1]["role"] in USER_ROLES
  if not asks or not all(map(messages.is_plain, (prompt[-1], *firsts))):
    return prompt, chosen, rejected
  texts = [one["content"] for one in firsts]
  found = answers_after(prompt[-1]["content"], texts)
  return prompt, *(
    side if text == rest else [side[0] | {"content": rest}, *side[1:]]
    for side, text, rest in zip((chosen, rejected), texts, found, strict=True)
  )


def _repeats(prompt, dialogue):
  """Does a dialogue begin with a prompt, or ask what a plain one does?"""
  begun, asked = dialogues.turns_in(dialogue), dialogues.turns_in(prompt)
  if asked is None:
    asked = [{"role": "user", "content": prompt}]
    return _agreed(asked, begun, exact=False) is not None
  if asked[-1] == dialogues.NO_ANSWER:
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
    f"{where}: the conversations begin with turns that are not the "
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
      is it enough that they ask all that it says, and perhaps more?

  Raises:
    InputError: they begin with another prompt.
  """
  sides = chosen, rejected
  whole = [side[0]["role"] in ASKING_ROLES for side in sides]
  if not any(whole) or any(map(dialogues.says_nothing, sides)):
    return prompt, *sides
  if all(whole):
    start, *sides = dialogues.split_turns(chosen, rejected, where)
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
  if dialogues.says_nothing(asked):
    return system + begun
  if exact:
    if begun[: len(asked)] == asked:
      return system + begun
    return system + asked if begun and asked[-len(begun) :] == begun else None
  # The turns may say more than a plain prompt: nothing of it is lost then.
  said = _words(asked[-1])
  turns = (turn for turn in system + begun if turn["role"] in ASKING_ROLES)
  same = said and holds(" ".join(map(_words, turns)), said)
  return system + begun if same else None


def _after(prompt, side):
  """What comes after the prompt in a conversation; None if it is another."""
  for given in (prompt, _apart(prompt)[1]):
    rest = side[len(given) :]
    asks = (
      rest and rest[0]["role"] in ASKING_ROLES and dialogues.has_answer(rest)
    )
    if given and side[: len(given)] == given and not asks:
      return rest or [dialogues.NO_ANSWER]
  return None if dialogues.has_answer(side) else side


def _apart(turns):
  """(the system turn or none, the others)."""
  count = 1 if turns and turns[0]["role"] == "system" else 0
  return turns[:count], turns[count:]


def _words(turn):
  return " ".join(messages.content(turn).split())


# A prompt that holds a response.


def without_answer(prompt, responses, where):
  """A prompt without its last answer, where that is a response too.

  It is one where some response says the same, or where all begin with it.

  Raises:
    InputError: that answer is known by a word alone, such as Answer:.
  """
  last = _last_answer(prompt)
  said = messages.content(last).strip()
  firsts = [_first_answer(one) for one in responses]
  texts = [messages.content(one).strip() for one in firsts]
  begin = values.is_phrase(said) and all(one.startswith(said) for one in texts)
  if not (begin or said and said in texts or last and last in firsts):
    return prompt
  if not isinstance(prompt, str):
    return prompt[:-1]
  if not (dialogues.is_dialogue(prompt) or marks.TAGS.search(prompt)):
    raise InputError(
      f"{where}: the prompt ends in {values.shown(said)}, which is a response "
      "or the start of all, too; leave it out of the prompt"
    )
  start = prompt.rstrip().removesuffix(said)
  apart = any(messages.content(one)[:1].isspace() for one in firsts)
  return start.rstrip() if apart else start


def refuse_third(prompt, sides, where):
  """InputError where turns end in another answer than the responses.

  Responses may go on with it, if white space stands between.
  """
  last = _last_answer(prompt)
  said = messages.content(last)
  firsts = [side[0] for side in sides if not dialogues.says_nothing(side)]
  goes_on = said[-1:].isspace() or all(
    messages.content(one)[:1].isspace() for one in firsts
  )
  if last and not goes_on and any(map(messages.is_answer, firsts)):
    raise InputError(
      f"{where}: the turns before the responses end in an answer, "
      f"{values.shown(said)}, that is none of them; leave it out, or name the "
      "column prompt if the responses go on with it"
    )


def _last_answer(prompt):
  """The turn of the model that a prompt ends in, {} if it ends in none."""
  if not isinstance(prompt, str):
    return prompt[-1] if prompt and messages.is_answer(prompt[-1]) else {}
  ends = [mark.end() for mark in dialogues.ASSISTANT.finditer(prompt)]
  ends = ends or marks.answers_in(prompt)
  said = prompt[ends[-1] :] if ends else ""
  if not said.strip():
    return {}
  asked = dialogues.MARK.search(said) or marks.ASKED.search(said)
  return {} if asked else {"content": said}


def _first_answer(response):
  """The turn of a response, or the last one of a whole conversation."""
  if isinstance(response, str):
    return {"content": response}
  return response[0 if messages.is_answer(response[0]) else -1]
