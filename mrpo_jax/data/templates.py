# SPDX-License-Identifier: Apache-2.0
"""Chat templates: named ones, files, and the place of each turn's content."""

import dataclasses
import datetime
import itertools
import json
import re

from mrpo_jax.data.chat.sandbox import OverBudget, sandbox
from mrpo_jax.errors import InputError
from mrpo_jax.files import path_of

LARGEST = 100_000  # bytes of a template's file
FIRST_MARK = 0xF0000  # private characters, one for each turn of a frame
DIRECTIVES = "aAbBcCdDeFgGhHIjklmMnpPrRSTtuUVwWxXyYZzf"  # of strftime
FLAGS = "-_0^"  # of those, as glibc has them
ANSWER, CONTINUE = "answer", "continue"  # a new turn, or the last one
MARK = re.compile("([\U000f0000-\U000ffffd])")


def _each(system, user, assistant, prompt):
  """A template from what stands for each role, and before an answer."""
  unknown = "raise_exception('unknown role ' + message['role'])"
  return (
    "{% for message in messages %}"
    f"{{% if message['role'] == 'system' %}}{{{{ {system} }}}}"
    f"{{% elif message['role'] == 'user' %}}{{{{ {user} }}}}"
    f"{{% elif message['role'] == 'assistant' %}}{{{{ {assistant} }}}}"
    f"{{% else %}}{{{{ {unknown} }}}}"
    "{% endif %}{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ {prompt} }}}}{{% endif %}}"
  )


_APART = r"('' if loop.first else '\n\n') + "
_CONTENT = "message['content']"
_ANSWER = "message['content'] + (eos_token or '')"
_CHATML_TURN = (
  r"'<|im_start|>' + message['role'] + '\n' + message['content'] "
  r"+ '<|im_end|>\n'"
)
TEMPLATES = {
  # HH-RLHF's layout, for conversations when the tokenizer has no template.
  "transcript": _each(
    _APART + _CONTENT,
    r"'\n\nHuman: ' + " + _CONTENT,
    r"'\n\nAssistant: ' + " + _ANSWER,
    r"'\n\nAssistant:'",
  ),
  "chatml": _each(
    *[_CHATML_TURN] * 3,
    r"'<|im_start|>assistant\n'",
  ),
  "alpaca": _each(
    _APART + _CONTENT,
    _APART + r"'### Instruction:\n' + " + _CONTENT,
    _APART + r"'### Response:\n' + " + _ANSWER,
    r"('\n\n' if messages else '') + '### Response:\n'",
  ),
  # No roles, for base models.
  "plain": _each(
    _APART + _CONTENT,
    _APART + _CONTENT,
    _APART + _ANSWER,
    r"'\n\n' if messages else ''",
  ),
}

DEFAULT = "transcript"  # where a tokenizer has no template


def load_template(name):
  """Jinja source of a chat template.

  Args:
    name: one of TEMPLATES, or the path of a .jinja file in UTF-8, at most
      100 kB.

  Raises:
    InputError: it is neither, cannot be read, or is not Jinja.
  """
  if name in TEMPLATES:
    return TEMPLATES[name]
  source = _read(name)
  check_syntax(f"chat template {name}", source)
  return source


def chat_template(tokenizer):
  """The template in use: the tokenizer's own, else the transcript's.

  The transcript starts with BOS when the tokenizer starts plain text so.

  Raises:
    InputError: the tokenizer has several, and none that is the default.
  """
  own = getattr(tokenizer, "chat_template", None)
  if not own:
    return template_for(tokenizer, DEFAULT)
  if isinstance(own, dict) and "default" not in own:
    names = ", ".join(sorted(own))
    raise InputError(
      f"the tokenizer has several chat templates, {names}, and none that is "
      "the default; name one of them in `template`"
    )
  return own["default"] if isinstance(own, dict) else own


def template_for(tokenizer, name):
  """`load_template`; a named one starts with BOS where plain text does.

  The name may also be of one of the templates that the tokenizer has.
  """
  own = getattr(tokenizer, "chat_template", None)
  if isinstance(own, dict) and name in own and name not in TEMPLATES:
    return own[name]
  source = load_template(name)
  bos = tokenizer.bos_token_id
  adds_bos = bos is not None and tokenizer("a").input_ids[:1] == [bos]
  return ("{{ bos_token }}" if adds_bos and name in TEMPLATES else "") + source


def writes_date(template):
  """Does the text of a conversation depend on the day?"""
  return "strftime_now" in template


def dated(template, date):
  """The template with `strftime_now` as of that datetime.date, midnight.

  A macro that comes first, so that the day is part of the template: of its
  text, and of every hash of it.
  """
  moment = datetime.datetime.combine(date, datetime.time())
  seconds = moment.replace(tzinfo=datetime.UTC).timestamp()
  # Two signs are one; what stands for them must not begin a directive.
  sign = chr(FIRST_MARK)
  replaced = [("%%", sign), ("%s", str(int(seconds)))]
  for letter in DIRECTIVES:
    for flag in ("", *FLAGS):
      directive = f"%{flag}{letter}"
      replaced.append((directive, moment.strftime(directive)))
  return (
    "{% macro strftime_now(format) %}{% set said = namespace(text=format) %}"
    f"{{% for old, new in {replaced!r} if old in format %}}"
    "{% set said.text = said.text | replace(old, new) %}"
    f"{{% endfor %}}{{{{ said.text | replace({sign!r}, '%') }}}}"
    "{% endmacro +%}" + template
  )


def _read(name):
  path = path_of(name)
  known = ", ".join(TEMPLATES)
  if path.suffix != ".jinja" or not path.is_file():
    raise InputError(
      f"chat template {name!r}: no such .jinja file; the named are {known}"
    )
  try:
    with path.open("rb") as file:
      source = file.read(LARGEST + 1)
    if len(source) > LARGEST:
      raise InputError(f"chat template {name}: more than {LARGEST} bytes")
    return source.decode("utf-8-sig")
  except OSError as error:
    raise InputError(f"chat template {name}: {error.strerror}") from None
  except UnicodeDecodeError:
    raise InputError(f"chat template {name}: is not UTF-8") from None


def check_syntax(name, source):
  """InputError, "{name} line 2: ...", where a template is not Jinja."""
  # That it refuses an empty conversation is no fault.
  (answer,) = _answers(name, source, [{"conversations": [[]]}])
  if answer.get("line"):
    raise InputError(f"{name} line {answer['line']}: {answer['error']}")


# Rendering, and the places of contents.


class Refused(str):
  """In place of a text: why the template gives none."""


@dataclasses.dataclass(frozen=True)
class Conversation:
  """What a template is given."""

  messages: list
  ending: str = ""  # ANSWER or CONTINUE, where more follows
  tools: list | None = None

  def frame_key(self):
    """JSON of what a frame depends on: all but the contents."""
    turns = [
      {
        **message,
        "content": _marked(message.get("content"), chr(FIRST_MARK + i)),
      }
      for i, message in enumerate(self.messages)
    ]
    return json.dumps([turns, self.ending, self.tools], sort_keys=True)

  @classmethod
  def of_key(cls, key):
    """The Conversation of a `frame_key`, a mark in place of each content."""
    return cls(*json.loads(key))


def render(tokenizer, template, conversations):
  """What `apply_chat_template` gives of each Conversation, or Refused.

  Raises:
    InputError: the template takes too much time or memory, or writes too much.
  """
  requests = [
    {
      **tokenizer.special_tokens_map,
      "conversations": [list(map(_without_none, one.messages))],
      "tools": one.tools,
      "add_generation_prompt": one.ending == ANSWER,
      "continue_final_message": one.ending == CONTINUE,
    }
    for one in conversations
  ]
  return [
    answer["text"] if "text" in answer else Refused(answer["error"])
    for answer in _answers("a chat template", template, requests)
  ]


def _answers(name, template, requests):
  try:
    return sandbox.render(template, requests)
  except OverBudget as error:
    raise InputError(f"{name} {error}; name another in `template`") from None


def _without_none(message):
  return {key: one for key, one in message.items() if one is not None}


def _marked(said, mark):
  """The mark in place of a content, in a part where there are parts."""
  if isinstance(said, list):
    return [{"type": "text", "text": mark}]
  return mark if said is not None else None


@dataclasses.dataclass(frozen=True)
class Frame:
  """What a template writes around the contents of turns of given roles."""

  literals: tuple  # before, between and after the contents
  order: tuple  # index of the turn between two literals

  def until(self, turns, ending):
    """The Frame of the first so many turns, with another last literal."""
    kept = [i for i in self.order if i < turns]
    return Frame((*self.literals[: len(kept)], ending), tuple(kept))


def frame(tokenizer, template, key):
  """The Frame of a `frame_key`, None where the template refuses it."""
  conversation = Conversation.of_key(key)
  (text,) = render(tokenizer, template, [conversation])
  if isinstance(text, Refused):
    return None
  parts = MARK.split(text)
  order = tuple(ord(mark) - FIRST_MARK for mark in parts[1::2])
  if any(i >= len(conversation.messages) for i in order):
    return None
  return Frame(tuple(parts[::2]), order)


@dataclasses.dataclass(frozen=True)
class Place:
  """Where the content of one turn stands in the whole text, in characters."""

  before: int  # of the contents of the turns before it
  size: int  # of the content, white space that is stripped included
  lead: int  # of those, stripped at its start
  start: int  # in the whole text
  stop: int


def find(text, frame, contents, turns=None):
  """A Place for each content, None for one that the template leaves out.

  None in place of the list: the text is not the frame around the contents,
  stripped or not, each once and in order.  With `turns` only the first so many
  contents are looked for; any text may follow them.
  """
  if frame is None or list(frame.order) != sorted(set(frame.order)):
    return None
  if turns is not None:
    frame, contents = frame.until(turns, ""), contents[:turns]
  places = [None] * len(contents)
  before = [0, *itertools.accumulate(map(len, contents))]
  if not text.startswith(frame.literals[0]):
    return None
  at = len(frame.literals[0])
  for i, after in zip(frame.order, frame.literals[1:], strict=True):
    said = contents[i]
    for kept in (said, said.rstrip(), said.lstrip(), said.strip()):
      if text.startswith(kept + after, at):
        break
    else:
      return None
    lead = said.index(kept)
    places[i] = Place(before[i], len(said), lead, at, at + len(kept))
    at += len(kept) + len(after)
  return places if turns is not None or at == len(text) else None


def start_of(places, characters):
  """Position in the text after so many characters of the contents.

  Where two turns meet it is the later one's start; after all of them the end
  of the last.
  """
  places = [place for place in places if place]
  for place in places:
    if characters < place.before + place.size:
      return _inside(place, characters)
  return places[-1].stop if places else 0


def stop_of(places, characters):
  """As `start_of`, but where two turns meet it is the earlier one's end."""
  inside = [p for p in places if p and p.before < characters]
  return _inside(inside[-1], characters) if inside else 0


def characters_before(places, position):
  """How many characters of the contents stand before a position."""
  count = 0
  for place in filter(None, places):
    if position < place.stop:
      inside = position - place.start
      return place.before + place.lead + inside if inside > 0 else count
    count = place.before + place.size
  return count


def _inside(place, characters):
  offset = max(characters - place.before - place.lead, 0)
  return min(place.start + offset, place.stop)
