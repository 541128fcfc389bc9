# SPDX-License-Identifier: Apache-2.0
"""PreferencePair, read from preference files in the layouts people publish.

Equal and empty responses and text that no tokenizer encodes come through:
dropping is the encoder's affair.
Where a row ranks several responses, every strictly ordered pair comes out.
"""

import dataclasses
import gzip
import io
import itertools
import json
import math
import pathlib
import re
import zlib

from mrpo_jax.data.chat import messages
from mrpo_jax.errors import InputError

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
LAYOUTS = (
  "{prompt, chosen, rejected} {chosen, rejected} "
  "{conversations, chosen, rejected} {instruction, chosen, rejected} "
  "{prompt, responses, scores or ranks} {prompt, ranked} {text, score}"
)
ROLES = {"human": "user", "gpt": "assistant"}
ROLES |= {role: role for role in ("user", "assistant", "system")}
BOM = b"\xef\xbb\xbf"
# Anthropic's transcripts, and the "## Human:" form of WebGPT's copies.
ASSISTANT = re.compile(r"\n\nAssistant:|(?:^|\n)## Assistant:")


@dataclasses.dataclass(frozen=True)
class PreferencePair:
  """Three strings, or three lists of messages (conversational).

  A message is {"role", "content"}, with "tool_calls", "reasoning_content",
  "name" and "tool_call_id" where the row has them; beside "tool_calls" the
  content may be None.  A content may be a list of {"type": "text", "text"}.
  """

  prompt: str | list
  chosen: str | list
  rejected: str | list
  tools: list | None = None  # descriptions of what may be called


def read(path):
  """Iterates over a file's pairs; rows are checked as they are reached."""
  path = pathlib.Path(path)
  if not path.name.lower().endswith(SUFFIXES):
    known = ", ".join(SUFFIXES)
    raise InputError(f"{path}: unknown file type; the known are {known}")
  if path.is_dir():
    raise InputError(f"{path}: is a directory; name a file in it")
  if not path.exists():
    raise InputError(f"{path}: no such file; check the path")
  return _pairs_of_file(path)


def pairs_of(row, where):
  """The pairs of one row; messages start with `where`, "a.jsonl line 7"."""
  if not isinstance(row, dict):
    raise InputError(f"{where}: is {_kind(row)}, want one object per row")
  tools = messages.tools(row.get("tools"), f"{where}: tools")
  pairs = _pairs_of(row, where)
  return [dataclasses.replace(one, tools=tools) for one in pairs]


def _pairs_of(row, where):
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
  if (
    isinstance(turn, dict)
    and "role" in turn
    and ("content" in turn or turn.get("tool_calls"))
  ):
    role = _text(turn["role"], f"{where}.role")
    beside = messages.beside_content(turn, role, where)
    content = turn.get("content")
    if isinstance(content, list):
      content = messages.parts(content, f"{where}.content")
    elif content is not None or "tool_calls" not in beside:
      content = _text(content, f"{where}.content")
  elif isinstance(turn, dict) and {"from", "value"} <= turn.keys():
    role = ROLES.get(_text(turn["from"], f"{where}.from"), "")
    content, beside = _text(turn["value"], f"{where}.value"), {}
  else:
    raise InputError(
      f"{where} is {_kind(turn)}, want a message with role and content"
    )
  if not role:
    given = turn.get("from", "")
    known = ", ".join(ROLES)
    raise InputError(f"{where}: unknown role {given!r}; the known are {known}")
  return {"role": role, "content": content, **beside}


def _kind(value):
  if isinstance(value, dict):
    return f"an object with the keys {', '.join(map(repr, value)) or 'none'}"
  kinds = {bool: "a boolean", int: "a number", float: "a number"}
  kinds |= {str: "a string", list: "a list", type(None): "null"}
  kinds |= {bytes: "bytes that are not UTF-8"}
  return kinds.get(type(value), f"a {type(value).__name__}")


# Files.


def _pairs_of_file(path):
  parquet = path.name.lower().endswith(".parquet")
  rows = pairs = 0
  for where, row in (_parquet_rows if parquet else _json_rows)(path):
    rows += 1
    for pair in pairs_of(row, where):
      pairs += 1
      yield pair
  if not rows:
    raise InputError(f"{path}: has no rows; give at least one pair")
  if not pairs:
    raise InputError(f"{path}: no row prefers a response; give unequal scores")


def _json_rows(path):
  name = path.name.lower()
  try:
    with (gzip.open if name.endswith(".gz") else open)(path, "rb") as file:
      if name.endswith((".json", ".json.gz")):
        whole = file.read()
        if whole.removeprefix(BOM).lstrip().startswith(b"["):
          for i, row in enumerate(_parsed(whole, path), 1):
            yield f"{path} row {i}", row
          return
        # The hub is full of .json files that hold JSON lines.
        file = io.BytesIO(whole)
      # Bytes, because a str would also be split at U+2028.
      for i, line in enumerate(file, 1):
        if line.strip():
          yield f"{path} line {i}", _parsed(line.rstrip(), path, i)
  except (EOFError, gzip.BadGzipFile, zlib.error) as error:
    raise _damaged(path, "gzip", error) from None
  except OSError as error:
    raise InputError(
      f"{path}: cannot be read: {error.strerror or error}"
    ) from None


def _parsed(text, path, line=1):
  try:
    return json.loads(text.decode("utf-8-sig"))
  except UnicodeDecodeError as error:
    line += error.object[: error.start].count(b"\n")
    problem = "is not UTF-8; save the file as UTF-8"
  except json.JSONDecodeError as error:
    line += error.lineno - 1
    problem = f"is not JSON ({error.msg}, column {error.colno}); want one "
    problem += "object per line, or in a .json file a list of objects"
  except (ValueError, RecursionError) as error:
    problem = f"is not usable JSON ({error}); remove it"
  raise InputError(f"{path} line {line}: {problem}")


def _parquet_rows(path):
  import pyarrow
  import pyarrow.parquet

  number = 0
  try:
    with pyarrow.parquet.ParquetFile(path) as table:
      for batch in table.iter_batches(batch_size=1024):
        for row in batch.to_pylist():
          number += 1
          yield f"{path} row {number}", row
  except UnicodeDecodeError:
    where = f"{path} after row {number}"
    raise InputError(f"{where}: a text is not UTF-8; write it anew") from None
  except (pyarrow.ArrowException, OSError) as error:
    raise _damaged(path, "Parquet", error) from None


def _damaged(path, kind, error):
  reason = " ".join(str(error).split())
  return InputError(f"{path}: damaged {kind} file ({reason}); copy it again")


def texts(pair):
  """The three texts of a pair, a conversation as its messages' contents."""
  for side in (pair.prompt, pair.chosen, pair.rejected):
    if isinstance(side, str):
      yield side
    else:
      yield from map(messages.content, side)
