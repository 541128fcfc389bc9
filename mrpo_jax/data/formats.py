# SPDX-License-Identifier: Apache-2.0
"""PreferencePair, read from preference files in the layouts people publish.

Equal and empty responses and text that no tokenizer encodes come through:
dropping is the encoder's affair.
Where a row ranks several responses, every strictly ordered pair comes out.
"""

import dataclasses
import itertools
import math
import re

from mrpo_jax.data.row_files import rows_of
from mrpo_jax.errors import InputError

# Keys that mean something; PROMPTS hold a prompt or a part of it.
PROMPTS = ("prompt", "conversations", "instruction")
KNOWN = (
  *PROMPTS,
  *("chosen", "rejected", "system", "input", "history", "text", "tools"),
  *("responses", "completions", "outputs", "ranked"),
  *("scores", "score", "ranks", "rank"),
)
LAYOUTS = (
  "{prompt, chosen, rejected} {chosen, rejected} "
  "{conversations, chosen, rejected} {instruction, chosen, rejected} "
  "{prompt, responses, scores or ranks} {prompt, ranked} {text, score}"
)
ROLES = {"human": "user", "gpt": "assistant"}
ROLES |= {role: role for role in ("user", "assistant", "system")}
# Anthropic's transcripts, and the "## Human:" form of WebGPT's copies.
ASSISTANT = re.compile(r"\n\nAssistant:|(?:^|\n)## Assistant:")


@dataclasses.dataclass(frozen=True)
class PreferencePair:
  """Three strings, or three lists of {"role", "content"} (conversational)."""

  prompt: str | list
  chosen: str | list
  rejected: str | list


def read(path):
  """Iterates over a file's pairs; rows are checked as they are reached."""
  return _pairs_of_rows(path, rows_of(path, KNOWN, PROMPTS))


def pairs_of(row, where):
  """The pairs of one row; messages start with `where`, "a.jsonl line 7"."""
  if not isinstance(row, dict):
    raise InputError(f"{where}: is {_kind(row)}, want one object per row")
  if "chosen" in row and "rejected" in row:
    return [_given_pair(row, where)]
  ranking = _ranking(row, where) if "prompt" in row else None
  if ranking:
    prompt = _text_or_turns(row["prompt"], f"{where}: prompt")
    return [
      _explicit(prompt, *_as_turns(prompt, pair), where)
      for pair in _ordered(*ranking)
    ]
  if "text" in row and "score" in row:
    texts = _responses(row, "text", where)
    scores = _scores(row, "score", texts, where)
    return [_implicit(*pair, where) for pair in _ordered(texts, scores)]
  keys = ", ".join(map(repr, row)) or "none"
  raise InputError(
    f"{where}: a key is missing; the row's keys are {keys}; "
    f"give one of the layouts {LAYOUTS}"
  )


# Layouts.


def _given_pair(row, where):
  chosen, rejected = (
    _text_or_turns(row[key], f"{where}: {key}", empty=False)
    for key in ("chosen", "rejected")
  )
  if "prompt" in row:
    prompt = _text_or_turns(row["prompt"], f"{where}: prompt")
    return _explicit(prompt, chosen, rejected, where)
  if "conversations" in row:
    prompt = _turns(row["conversations"], f"{where}: conversations")
    return _explicit(_system(row, where) + prompt, chosen, rejected, where)
  if "instruction" in row and isinstance(chosen, str):
    prompt = _alpaca_prompt(row, where)
    chosen, rejected = _as_turns(prompt, (chosen, rejected))
    return _explicit(prompt, chosen, rejected, where)
  return _implicit(chosen, rejected, where)


def _explicit(prompt, chosen, rejected, where):
  texts = [isinstance(value, str) for value in (prompt, chosen, rejected)]
  if texts == [True, False, False]:
    # UltraFeedback: both lists begin with the turns that lead to the response.
    if "assistant" not in (chosen[0]["role"], rejected[0]["role"]):
      return _implicit(chosen, rejected, where)
    prompt = [{"role": "user", "content": prompt}]
  elif len(set(texts)) > 1:
    raise InputError(
      f"{where}: prompt, chosen and rejected mix strings and message lists; "
      "give three of one kind"
    )
  return PreferencePair(prompt, chosen, rejected)


def _implicit(chosen, rejected, where):
  if isinstance(chosen, str) != isinstance(rejected, str):
    raise InputError(
      f"{where}: one response is a string, the other a message list; "
      "give two of one kind"
    )
  shorter = min(len(chosen), len(rejected))
  differs = (i for i in range(shorter) if chosen[i] != rejected[i])
  shared = next(differs, shorter)
  if not isinstance(chosen, str):
    shared = min(shared, shorter - 1)
  elif turns := [m.end() for m in ASSISTANT.finditer(chosen[:shared])]:
    shared = turns[-1]
  else:
    # One character stays: a text that is the other's beginning is a response.
    shared = _word_boundary(chosen, rejected, min(shared, max(shorter - 1, 0)))
  return PreferencePair(chosen[:shared], chosen[shared:], rejected[shared:])


def _word_boundary(chosen, rejected, shared):
  following = chosen[shared : shared + 1] + rejected[shared : shared + 1]
  if following and not following.isspace():
    while shared and not chosen[shared - 1].isspace():
      shared -= 1
  # As TRL does it: the space goes with the word after it, as in tokenizers.
  return shared - chosen[:shared].endswith(" ")


def _alpaca_prompt(row, where):
  prompt = _system(row, where)
  history = _list(row.get("history") or [], f"{where}: history")
  for i, turn in enumerate(history):
    if not isinstance(turn, list) or len(turn) != 2:
      raise InputError(
        f"{where}: history[{i}] is {_kind(turn)}, want [question, answer]"
      )
    for role, text in zip(("user", "assistant"), turn, strict=True):
      text = _text(text, f"{where}: history[{i}]")
      prompt.append({"role": role, "content": text})
  parts = [_text(row["instruction"], f"{where}: instruction")]
  if row.get("input") not in (None, ""):
    parts.append(_text(row["input"], f"{where}: input"))
  return [*prompt, {"role": "user", "content": "\n".join(parts)}]


def _system(row, where):
  if row.get("system") in (None, ""):
    return []
  text = _text(row["system"], f"{where}: system")
  return [{"role": "system", "content": text}]


def _ranking(row, where):
  """Responses and their scores, higher is better; None without such keys."""
  given = [k for k in ("responses", "completions", "outputs") if k in row]
  order = [k for k in ("scores", "score", "ranks", "rank") if k in row]
  if given and order:
    responses = _responses(row, given[0], where)
    scores = _scores(row, order[0], responses, where)
    return responses, [-s for s in scores] if "rank" in order[0] else scores
  if "ranked" in row:
    best_first = _responses(row, "ranked", where)
    return best_first, range(len(best_first), 0, -1)
  return None


def _ordered(responses, scores):
  scored = zip(responses, scores, strict=True)
  for (better, high), (worse, low) in itertools.permutations(scored, 2):
    if high > low:
      yield better, worse


def _as_turns(prompt, responses):
  """Answers given as strings become turns where the prompt has turns."""
  if isinstance(prompt, str):
    return responses
  return [
    [{"role": "assistant", "content": r}] if isinstance(r, str) else r
    for r in responses
  ]


# Values.


def _responses(row, key, where):
  values = _list(row[key], f"{where}: {key}")
  return [
    _text_or_turns(value, f"{where}: {key}[{i}]", empty=False)
    for i, value in enumerate(values)
  ]


def _scores(row, key, responses, where):
  scores = _list(row[key], f"{where}: {key}")
  if len(scores) != len(responses):
    raise InputError(
      f"{where}: {key} has {len(scores)} entries for {len(responses)} "
      "responses; give one each"
    )
  for i, score in enumerate(scores):
    number = isinstance(score, int | float) and not isinstance(score, bool)
    if not number or not -math.inf < score < math.inf:
      kind = score if number else _kind(score)
      raise InputError(f"{where}: {key}[{i}] is {kind}, want a finite number")
  return scores


def _list(value, where):
  if not isinstance(value, list):
    raise InputError(f"{where} is {_kind(value)}, want a list")
  return value


def _text_or_turns(value, where, empty=True):
  if not isinstance(value, list | dict):
    return _text(value, where, "a string or a list of messages")
  turns = _turns(value, where)
  if not turns and not empty:
    raise InputError(f"{where} is an empty list, want at least one message")
  return turns


def _text(value, where, want="a string"):
  if not isinstance(value, str):
    raise InputError(f"{where} is {_kind(value)}, want {want}")
  return value


def _turns(value, where):
  if isinstance(value, dict):
    value = _rows_of_columns(value, where)
  turns = _list(value, where)
  return [_turn(turn, f"{where}[{i}]") for i, turn in enumerate(turns)]


def _rows_of_columns(value, where):
  # TFDS and Hugging Face turn a list of objects into an object of lists.
  columns = [v for v in value.values() if isinstance(v, list)]
  if not columns:
    return [value]
  if len(columns) < len(value) or len({len(c) for c in columns}) > 1:
    raise InputError(f"{where} has lists of unequal length; give one each")
  rows = zip(*columns, strict=True)
  return [dict(zip(value, row, strict=True)) for row in rows]


def _turn(turn, where):
  if isinstance(turn, dict) and {"role", "content"} <= turn.keys():
    role = _text(turn["role"], f"{where}.role")
    content = _text(turn["content"], f"{where}.content")
  elif isinstance(turn, dict) and {"from", "value"} <= turn.keys():
    role = ROLES.get(_text(turn["from"], f"{where}.from"), "")
    content = _text(turn["value"], f"{where}.value")
  else:
    raise InputError(
      f"{where} is {_kind(turn)}, want a message with role and content"
    )
  if not role:
    given = turn.get("from", "")
    known = ", ".join(ROLES)
    raise InputError(f"{where}: unknown role {given!r}; the known are {known}")
  return {"role": role, "content": content}


def _kind(value):
  if isinstance(value, dict):
    return f"an object with the keys {', '.join(map(repr, value)) or 'none'}"
  kinds = {bool: "a boolean", int: "a number", float: "a number"}
  kinds |= {str: "a string", list: "a list", type(None): "null"}
  kinds |= {bytes: "bytes that are not UTF-8"}
  return kinds.get(type(value), f"a {type(value).__name__}")


# Files.


def _pairs_of_rows(path, rows):
  count = pairs = 0
  for where, row in rows:
    count += 1
    for pair in pairs_of(row, where):
      pairs += 1
      yield pair
  if not count:
    raise InputError(f"{path}: has no rows; give at least one pair")
  if not pairs:
    raise InputError(f"{path}: no row prefers a response; give unequal scores")


def texts(pair):
  """The three texts of a pair, a conversation as its messages' contents."""
  for side in (pair.prompt, pair.chosen, pair.rejected):
    if isinstance(side, str):
      yield side
    else:
      yield from (message["content"] for message in side)
