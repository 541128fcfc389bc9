# SPDX-License-Identifier: Apache-2.0
"""Messages of a chat: tool calls, reasoning and parts, beside role and text."""

import json
import unicodedata

from mrpo_jax import files
from mrpo_jax.errors import InputError

REASONING = ("reasoning_content", "thinking", "reasoning")  # the first is ours
TOOL_ROLES = ("tool", "function", "observation", "ipython")
# Pairs that no file holds may have the second name; rows are read as the first.
USER_ROLES = ("user", "human")
ANSWER_ROLES = ("assistant", "model")
ASKING_ROLES = (*USER_ROLES, "system", "developer")
# Keys of what is no text, in rows, messages and parts.
MEDIA = ("image", "images", "image_url", "video", "videos", "audio", "audios")
MEDIA += ("input_audio", "attachments")
UNREAD = (*MEDIA, "function_call", "functions")  # tools and tool_calls now
# Keys of whether a turn is trained on, and their value if it is.
ONCE = {"weight": 1, "train": True, "training": True, "train_on_turn": True}
ONCE |= {"loss": True, "masked": False, "mask": False}
# Keys of what a template may know by another name, or not at all.
PASSED = ("channel", "tools", "tool_plan", "thoughts", "thought", "refusal")
OTHER_ARGUMENTS = ("parameters", "args", "kwargs", "input")
# What is not shown, beside white space and Unicode's category Cf.
UNSEEN = "\u034f\u115f\u1160\u2800\u3164\uffa0"
TEXT = "text"  # the one type of part that a language model reads


def parts(value, where):
  """A content given as a list of parts, each {"type": "text", "text"}.

  A single one is its text, which every template writes, many no lists.
  """
  found = []
  for i, part in enumerate(value):
    part = without_nulls(part)
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != TEXT or not isinstance(part.get("text"), str):
      raise InputError(
        f"{where}[{i}] is a part of type {kind!r}, want "
        '{"type": "text", "text": ...}: only text can be trained on'
      )
    _refuse_unread(part, f"{where}[{i}]")
    found.append({"type": TEXT, "text": part["text"]})
  return found[0]["text"] if len(found) == 1 else found


def beside_content(turn, role, where):
  """What a message holds beside role and content: {} of an ordinary one.

  Lists and texts that are empty, and nulls, count as absent.

  Raises:
    InputError: it holds what cannot be trained on.
  """
  found = {}
  _refuse_unread(turn, where)
  _refuse_passed(turn, where)
  if calls := _calls(turn.get("tool_calls"), f"{where}.tool_calls"):
    found["tool_calls"] = calls
  said = [turn[key] for key in REASONING if turn.get(key)]
  if said:
    if not isinstance(said[0], str):
      raise InputError(f"{where}.{REASONING[0]} is not a string; give one")
    if any(one != said[0] for one in said):
      raise InputError(f"{where}: {' and '.join(REASONING)} differ; give one")
    found[REASONING[0]] = said[0]
  if role in TOOL_ROLES:
    given = {key: turn.get(key) for key in ("name", "tool_call_id")}
    found |= {key: one for key, one in given.items() if isinstance(one, str)}
  return found


def _calls(value, where):
  """Calls of functions, with their arguments as objects, not as JSON."""
  calls = _objects(value, where)
  for i, call in enumerate(calls):
    named = call.get("function", call)
    if not isinstance(named, dict) or not isinstance(named.get("name"), str):
      raise InputError(
        f"{where}[{i}] names no function; want "
        '{"function": {"name": ..., "arguments": {...}}}'
      )
    given = named.get("arguments")
    if isinstance(given, str):  # as OpenAI's services give them
      place = f"{where}[{i}].arguments"
      given = _of_json(given, place) if given.strip() else {}
      named["arguments"] = given
    other = next((key for key in OTHER_ARGUMENTS if named.get(key)), None)
    if other or not isinstance(given, dict | type(None)):
      raise InputError(
        f"{where}[{i}].{other or 'arguments'} would not be written by a chat "
        'template; want "arguments": {...}, an object'
      )
  return calls


def _refuse_unread(value, where):
  for key in UNREAD:
    if value.get(key):
      raise InputError(
        f"{where}.{key} cannot be trained on; give texts, tool_calls and "
        f"{REASONING[0]}, or leave the row out"
      )


def _refuse_passed(turn, where):
  """InputError where a message says more by keys that are not read."""
  keys = [*PASSED]
  if not any(turn.get(key) for key in REASONING):
    keys.append("reasoning_details")
  said = turn.get("content"), turn.get("value")
  if not turn.get("tool_calls") and not any(said):
    keys.append("text")  # in place of a content
  for key in keys:
    value = without_nulls(turn.get(key))
    blank = isinstance(value, str) and is_blank(value)
    if value and not blank and (key, value) != ("channel", "final"):
      raise InputError(
        f"{where}.{key} would not be read; give content, tool_calls and "
        f"{REASONING[0]}, and tools beside the messages, or leave it out"
      )


class Unscored(dict):
  """A message that says that it is not trained on, equal to one that does not.

  It may lead to a response, but not be in one.
  """

  def __init__(self, message, why):
    super().__init__(message)
    self.why = why


def unscored(turn, where):
  """Why a message does not count once; None if it does.

  Files for fine-tuning services give turns 0, not to train on them, or 1;
  others say so by a switch.
  """
  for key, counts in ONCE.items():
    if turn.get(key) is not None and turn[key] != counts:
      return (
        f"{where}.{key} is {turn[key]!r}, but a response counts once: "
        "leave the row out, or the key"
      )
  return None


def refuse_unscored(response):
  """Raises InputError where a turn of a response is not to be trained on."""
  for turn in response:
    if isinstance(turn, Unscored):
      raise InputError(turn.why)


def tools(value, where):
  """Descriptions of tools: a list of objects or the JSON of one; else None."""
  return _objects(value, where) or None


def _objects(value, where):
  if isinstance(value, str):  # as Parquet files hold it
    # In JSON a null is meant: no union of columns made it.
    value = _of_json(value, where) if value.strip() else []
  else:
    value = without_nulls(value)
  if not value:
    return []
  if not isinstance(value, list) or not all(
    isinstance(one, dict) for one in value
  ):
    raise InputError(f"{where} is not a list of objects; give one")
  try:
    return json.loads(json.dumps(value))
  except (TypeError, ValueError):
    raise InputError(f"{where} holds what JSON cannot; give texts") from None


def _of_json(text, where):
  try:
    return json.loads(text, object_pairs_hook=files.once)
  except InputError as error:
    raise InputError(f"{where}: {error}") from None
  except ValueError:
    raise InputError(f"{where} is a string that is not JSON") from None


def without_nulls(value):
  """The nested value without keys that are null: Parquet fills unions so."""
  if isinstance(value, dict):
    return {k: without_nulls(v) for k, v in value.items() if v is not None}
  if isinstance(value, list):
    return [without_nulls(one) for one in value]
  return value


def plain(turns):
  """Turns as dicts alone; a text stays."""
  return turns if isinstance(turns, str) else [*map(dict, turns)]


def as_turns_of(role, value):
  """A text as a list of one turn; turns stay."""
  if isinstance(value, str):
    return [{"role": role, "content": value}]
  return value


def is_answer(message):
  """Is it the turn of the model, by whichever name?"""
  return message.get("role") not in (*ASKING_ROLES, *TOOL_ROLES)


def is_plain(message):
  """Is it a role and a text, nothing else?"""
  return message.keys() == {"role", "content"} and isinstance(
    message["content"], str
  )


def one_text(answer):
  """An answer as one text; None where it is other than that."""
  if isinstance(answer, str):
    return answer
  if len(answer) != 1 or not is_plain(answer[0]):
    return None
  return content(answer[0])


def is_blank(text):
  """Does a text show nothing: white space, marks of width 0 and fillers?"""
  return all(
    one.isspace() or one in UNSEEN or unicodedata.category(one) == "Cf"
    for one in text
  )


def content(message):
  """What a turn says, as a string."""
  said = message.get("content")
  if isinstance(said, list) and all(isinstance(one, dict) for one in said):
    return "".join(str(part.get("text", "")) for part in said)
  return str(said or "")


def size_beside(messages):
  """Characters of tool calls and reasoning, the former as JSON."""
  held = [
    {k: one[k] for k in ("tool_calls", REASONING[0]) if k in one}
    for one in messages
  ]
  return sum(len(json.dumps(one)) for one in held if one)
