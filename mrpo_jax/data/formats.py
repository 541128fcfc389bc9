# SPDX-License-Identifier: Apache-2.0
"""PreferencePair, read from preference files in the layouts people publish.

Equal and empty responses and text that no tokenizer encodes come through:
dropping is the encoder's affair.
Where a row ranks several responses, every strictly ordered pair comes out.
"""

import dataclasses
import logging

from mrpo_jax.data.chat import messages
from mrpo_jax.data.reading import (
  beside,
  dialogues,
  instructions,
  labels,
  marks,
  oddities,
  prompts,
  rankings,
  repeated,
  values,
)
from mrpo_jax.data.reading.row_files import rows_of
from mrpo_jax.errors import InputError

logger = logging.getLogger(__name__)

# Keys of the response of a supervised row.
ANSWERS = ("completion", "response", "output")
KNOWN = (
  *(*ANSWERS, *labels.JUDGED, *rankings.VERDICTS),
  *("chosen", "rejected", "text", "ranked", "tools"),
  *beside.COLUMNS,
  *(
    *prompts.PROMPTS,
    *instructions.SYSTEMS,
    *rankings.RESPONSES,
    *rankings.ORDERS,
  ),
)
LAYOUTS = (
  "{prompt, chosen, rejected} {chosen, rejected} {question, chosen, rejected} "
  "{messages, chosen, rejected} {instruction, chosen, rejected} "
  "{prompt, responses, scores or ranks} {prompt, ranked} {text, score} "
  "{instruction, completions of response and overall_score}; for supervised "
  "training {prompt, completion} {messages} {instruction, input, output}; the "
  "same with a label, true or false, for losses of single responses"
)


@dataclasses.dataclass(frozen=True)
class PreferencePair:
  """Three strings, or three lists of messages (conversational).

  A message is {"role", "content"}, with "tool_calls", "reasoning_content",
  "name" and "tool_call_id" where the row has them; beside "tool_calls" the
  content may be None.  A content may be a list of {"type": "text", "text"}.

  `rejected` is None where a row has one response: a supervised one, or one
  with a label.
  """

  prompt: str | list
  chosen: str | list
  rejected: str | list | None
  tools: list | None = None  # descriptions of what may be called
  desirable: bool | None = None  # the label of a single response
  reference_weights: tuple | None = None  # K that sum to 1; see WeightColumn
  is_tie: bool = False  # does the row score both responses the same?


def read(path):
  """Iterates over a file's pairs; rows are checked as they are reached."""
  return pairs_of_rows(rows(path), path)


def rows(path, also=()):
  """Iterates over (place in words, row) of a file; `also` are more columns."""
  return rows_of(path, (*KNOWN, *also), prompts.PROMPTS)


def pairs_of(row, where):
  """The pairs of one row; messages start with `where`, "a.jsonl line 7"."""
  values.refuse_no_row(row, where)
  pairs = _pairs_of(_given(row), where)
  if pairs is None and "chosen" in row and "rejected" in row:
    pairs = [_given_pair(row, where)]  # says which is null
  if pairs is None:
    prompts.refuse_blank(row, where)
    raise InputError(
      f"{where}: a key is missing; the row's keys are {values.keys_of(row)}; "
      f"give one of the layouts {LAYOUTS}"
    )
  system = instructions.system(row, where)
  tools = messages.tools(row.get("tools"), f"{where}: tools")
  is_single = any(pair.rejected is None for pair in pairs)
  label = labels.label(row, where) if is_single else None
  is_tie = rankings.is_tie(row)
  for pair in pairs[:1]:
    if not dialogues.says_nothing(pair.chosen):  # else it is dropped
      prompts.refuse_unasked(row, pair.prompt, where)
  pairs = [_with_system(system, pair, where) for pair in pairs]
  for pair in pairs:
    marks.refuse(pair, where)
  for pair in pairs[:1]:  # all have one prompt
    beside.refuse_lost(_given(row), prompts.PROMPTS[1:], pair.prompt, where)
  for pair in pairs:
    for side in (pair.chosen, pair.rejected):
      if isinstance(side, list):  # a text has no turns, but many letters
        messages.refuse_unscored(side)
  return [
    dataclasses.replace(
      pair,
      prompt=messages.plain(pair.prompt),
      tools=tools,
      desirable=label,
      is_tie=is_tie,
    )
    for pair in pairs
  ]


def prompt_of(row, where):
  """The prompt of a row that need have no response, as a pair without one.

  What is read is what `pairs_of` reads of the row as one of preferences or of
  supervised training; `chosen` stands for any answer, and `rejected` is None.

  Raises:
    InputError: there is none, or an empty one.
  """
  values.refuse_no_row(row, where)
  given = {key: value for key, value in row.items() if value is not None}
  is_pair = "chosen" in given and "rejected" in given
  if is_pair:  # which may have its prompt within both
    prompt = _given_pair(given, where).prompt
  elif "prompt" not in given:
    raise InputError(
      f"{where}: there is no prompt; the row's keys are {values.keys_of(row)}"
    )
  else:
    prompt = values.as_text_or_turns(given["prompt"], f"{where}: prompt")
    for key in ANSWERS:
      if isinstance(given.get(key), str | list) and given[key]:
        response = values.as_text_or_turns(given[key], f"{where}: {key}")
        prompt = repeated.without_answer(prompt, [response], where)
    if any(isinstance(given.get(key), list) for key in ANSWERS):
      prompt = dialogues.asked_turns(prompt, where)
  if dialogues.says_nothing(prompt):
    raise prompts.empty(where, "the prompt")
  prompts.refuse_unasked(row, prompt, where)
  pair = _with_system(
    instructions.system(row, where), answerable(prompt), where
  )
  marks.refuse(pair, where)
  tools = messages.tools(row.get("tools"), f"{where}: tools")
  beside.refuse_lost(given, prompts.PROMPTS[1:], pair.prompt, where)
  prompt = messages.plain(pair.prompt)
  return dataclasses.replace(pair, prompt=prompt, rejected=None, tools=tools)


def answerable(prompt):
  """The pair of a prompt and of what most answers begin with."""
  said = (
    " The"
    if isinstance(prompt, str)
    else messages.as_turns_of("assistant", "The")
  )
  return PreferencePair(prompt, said, said)


def _given(row):
  """A row without nulls: in Parquet every row has every column.

  Where all prompts are null they stay, for a refusal to name them.
  """
  given = {key: value for key, value in row.items() if value is not None}
  if given.keys().isdisjoint(prompts.PROMPTS):
    given |= {key: None for key in prompts.PROMPTS if key in row}
  return given


# Layouts.


def _pairs_of(row, where):
  """The pairs of a row; None if it has no layout."""
  if "chosen" in row and "rejected" in row:
    return [_given_pair(row, where)]
  key, prompt = _prompt(row, where)
  if key and (ranking := rankings.ranked(row, where)):
    prompt = repeated.without_answer(prompt, ranking[0], where)
    if not isinstance(prompt, str):
      responses, scores = ranking
      if all(isinstance(one, str) for one in responses):
        responses = _answers(prompt, responses, where)
      ranking = (
        [messages.as_turns_of("assistant", one) for one in responses],
        scores,
      )
    return [
      _explicit(row, key, prompt, *pair, where)
      for pair in rankings.ordered(*ranking, where)
    ]
  if "text" in row and "score" in row:
    texts = rankings.responses_of(row["text"], f"{where}: text")
    scores = rankings.scores_of(row["score"], texts, f"{where}: score")
    return [
      _implicit(row, *pair, where)
      for pair in rankings.ordered(texts, scores, where)
    ]
  answer = _answer(row, key, prompt, where)
  return answer and [dataclasses.replace(answer, rejected=None)]


def _answer(row, key, prompt, where):
  """The pair whose chosen response a supervised row has; None without one."""
  answers = [name for name in ANSWERS if name in row]
  turns = [name for name in prompts.TURNS if name in row]
  if "chosen" in row or "rejected" in row or not (turns or answers and key):
    return None
  labels.refuse_judged(row, (answers or turns)[0], where)
  if len(answers) > 1:
    raise InputError(f"{where}: {' and '.join(answers)} are two; give one")
  if answers and key:
    beside.refuse_reasoning(row, answers[0], where)
    response = values.as_text_or_turns(
      row[answers[0]], f"{where}: {answers[0]}", empty=False
    )
    if isinstance(response, list) and not dialogues.has_answer(response[-1:]):
      raise InputError(
        f"{where}: the last turn of {answers[0]} is none of the assistant's; "
        "end it with the answer that is trained on"
      )
    prompt = repeated.without_answer(prompt, [response], where)
    return _explicit(row, key, prompt, response, response, where)
  return _last_answer(row, turns[0], where)


def _last_answer(row, key, where):
  """The pair of a conversation whose last turn is the response."""
  turns = values.as_turns(row[key], f"{where}: {key}")
  if not any(turn["role"] in messages.ASKING_ROLES for turn in turns[:-1]):
    raise InputError(
      f"{where}: {key} has no turn before an answer; want a question and the "
      "assistant's answer, or chosen and rejected beside it"
    )
  ends = dialogues.has_answer(turns[-1:])
  answer = turns[-1:] if ends else [dialogues.NO_ANSWER]
  start = turns[:-1] if ends else turns
  if not prompts.is_missing(row.get("prompt")):
    asked = values.as_text_or_turns(row["prompt"], f"{where}: prompt")
    exact, whole = not isinstance(asked, str), [*start, *answer]
    asked = dialogues.asked_turns(asked, where)
    repeated.after_turns(asked, whole, whole, where, exact=exact)
    beside.refuse_lost({"prompt": asked}, ["prompt"], start, where)
  return PreferencePair(start, answer, answer)


def _given_pair(row, where):
  rankings.refuse_verdict(row, where)
  chosen, rejected = (
    values.as_text_or_turns(row[key], f"{where}: {key}", empty=False)
    for key in ("chosen", "rejected")
  )
  key, prompt = _prompt(row, where)
  if key:
    prompt = repeated.without_answer(prompt, [chosen, rejected], where)
    return _explicit(row, key, prompt, chosen, rejected, where)
  return _implicit(row, chosen, rejected, where)


def _prompt(row, where):
  """(key, text or turns) of the prompt that a row names, (None, None) if none.

  A question in a column of its own is a turn; what says nothing is none.
  """
  given = [
    key for key in prompts.PROMPTS if not prompts.is_missing(row.get(key))
  ]
  if "prompt" in given:
    return "prompt", values.as_text_or_turns(row["prompt"], f"{where}: prompt")
  if "instruction" in row and "input" in given:
    given.remove("input")  # it is a part of it
    given = list(dict.fromkeys(["instruction", *given]))
  if not given:
    return None, None
  if len(given) > 1 and "conversations" not in given:
    names = " and ".join(map(repr, given))
    raise InputError(
      f"{where}: {names} could each be the prompt; name one of them prompt"
    )
  key = given[0]
  if key in prompts.TURNS:
    return key, values.as_turns(row[key], f"{where}: {key}")
  if key == "instruction":
    asked = instructions.instruction(row, where)
  else:
    asked = values.as_text_or_turns(row[key], f"{where}: {key}")
  return key, instructions.history(row, where) + messages.as_turns_of(
    "user", asked
  )


def _explicit(row, key, prompt, chosen, rejected, where):
  """The pair of a prompt and two responses, which may repeat it."""
  sides = [chosen, rejected]
  _refuse_written(where, key, row[key])
  _refuse_written(where, "chosen and rejected", *sides)
  kinds = {isinstance(side, str) for side in sides}
  if key != "prompt" and kinds == {True}:
    sides, kinds = _answers(prompt, sides, where), {False}
  if kinds == {False}:
    prompt = dialogues.asked_turns(prompt, where)
  if kinds != {isinstance(prompt, str)}:
    raise InputError(
      f"{where}: prompt, chosen and rejected mix strings and message lists; "
      "give three of one kind"
    )
  if isinstance(prompt, str):
    return PreferencePair(*repeated.after_text(prompt, *sides, where))
  if key in prompts.TURNS:
    repeated.refuse_third(prompt, sides, where)
  exact = not isinstance(row[key], str) or len(prompt) > 1
  split = repeated.after_turns(prompt, *sides, where, exact=exact)
  pair = PreferencePair(*repeated.turns_after(*split))
  if dialogues.says_nothing(pair.prompt):
    raise prompts.empty(where, key)
  return pair


def _refuse_written(where, name, *given):
  """InputError where texts are lists of turns that a program wrote."""
  if any(map(marks.is_written, given)):
    raise InputError(
      f"{where}: {name} would be read as plain text, but holds turns that are "
      "written as a string; give them as lists of objects"
    )


def _answers(prompt, sides, where):
  """Texts beside a question as turns, without the question if all repeat it."""
  if not sides or any(map(dialogues.is_whole, sides)):
    return [dialogues.turns_of_whole(one) for one in sides]
  asked = messages.content(prompt[-1]) if prompt else ""
  repeated.refuse_one_whole(asked, sides, where)
  if repeated.within_marks(asked, sides):
    raise InputError(
      f"{where}: chosen and rejected hold the question again, within marks; "
      "give the answers alone, or leave out the column of the question"
    )
  rests = repeated.answers_after(asked, sides)
  return [messages.as_turns_of("assistant", one) for one in rests]


def _implicit(row, chosen, rejected, where):
  is_text = isinstance(chosen, str)
  _refuse_written(where, "chosen and rejected", chosen, rejected)
  if is_text != isinstance(rejected, str):
    raise InputError(
      f"{where}: one response is a string, the other a message list; "
      "give two of one kind"
    )
  split = dialogues.split_texts if is_text else dialogues.split_turns
  pair = PreferencePair(*split(chosen, rejected, where))
  prompts.refuse_guess(row, pair, where)
  return pair


# Parts of layouts.


def _with_system(system, pair, where):
  """The pair with a system turn before its prompt; a text becomes turns."""
  if system is None:
    return pair
  if dialogues.is_dialogue(pair.prompt):
    pair = in_turns(pair, where)
  parts = pair.prompt, pair.chosen, pair.rejected
  roles = ("user", "assistant", "assistant")
  prompt, *sides = map(messages.as_turns_of, roles, parts)
  turn = {"role": "system", "content": system}
  if prompt and prompt[0]["role"] == "system":
    if prompt[0] != turn:
      raise InputError(
        f"{where}: the prompt begins with another system turn than the row's "
        "column says; give one"
      )
    return PreferencePair(prompt, *sides)
  return PreferencePair([turn, *prompt], *sides)


# Files.


def pairs_of_rows(rows, where, weights=None):
  """Iterates over the pairs of (place, row); `where` is named if there is none.

  With a WeightColumn `weights` they have the weights of their row.  How many
  rows prefer no response is said at the end, and how many pairs are `oddities`.
  """
  count = pairs = without = 0
  counts = oddities.Counts()
  for place, row in rows:
    found = pairs_of(row, place)
    count += 1
    pairs += len(found)
    without += not found
    for pair in found:
      counts.add(pair)
    if weights is not None and found:
      taken = weights.of(row, place)
      found = [
        dataclasses.replace(pair, reference_weights=taken) for pair in found
      ]
    yield from found
  if not count:
    raise InputError(f"{where}: has no rows; give at least one pair")
  if not pairs:
    raise InputError(f"{where}: no row prefers a response; give unequal scores")
  if without:
    logger.info(
      f"{where}: {without} of {count} rows prefer no response: all that they "
      "have are equally good, or there are not two"
    )
  counts.say(where)


def in_turns(pair, where):
  """A plain pair of Human: and Assistant: as turns; a conversation stays."""
  if not isinstance(pair.prompt, str):
    return pair
  sides = pair.chosen, pair.rejected
  prompt, chosen, rejected = dialogues.turns_of(pair.prompt, sides, where)
  return dataclasses.replace(
    pair, prompt=prompt, chosen=chosen, rejected=rejected
  )


def texts(pair):
  """The three texts of a pair, a conversation as its messages' contents."""
  for side in (pair.prompt, pair.chosen, pair.rejected or ""):
    if isinstance(side, str):
      yield side
    else:
      yield from map(messages.content, side)
