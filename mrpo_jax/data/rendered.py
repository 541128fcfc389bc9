# SPDX-License-Identifier: Apache-2.0
"""Pairs as texts: rendered by a chat template, cut, and where a prompt ends.

Below, a string in place of a result is the reason to drop the pair.
"""

import dataclasses
import os

from mrpo_jax.data import templates
from mrpo_jax.data.chat import messages, unwritten
from mrpo_jax.data.templates import ANSWER, CONTINUE, Conversation, Refused

REFUSED = "refused by the chat template: "
CANNOT_BE_CUT = "cannot be cut: the chat template changes its text"
REWRITTEN = (
  "prompt rewritten: the chat template writes its end in another way before an "
  "answer"
)
NOT_CONTINUED = (
  "prompt ends in an assistant turn: it cannot be one with the response's first"
)
TOOLS_BESIDE_TEXT = "tools beside plain text"
NOT_WHOLE = f"{REFUSED}it leaves out a part of the response"
# Plain text is a prompt and a response with nothing around them.
PLAIN = [
  templates.Frame(("", ""), (0,)),
  *[templates.Frame(("", "", ""), (0, 1))] * 2,
]


@dataclasses.dataclass(frozen=True)
class PairText:
  """A pair as texts: the prompt alone, then it and each response."""

  plain: bool  # no chat template
  contents: list  # of the turns of each text; plain text has one on each side
  roles: tuple  # of the turns of the prompt; none in plain text
  wholes: list  # the three texts, nothing cut
  frames: list  # of each, see `templates.find`
  kept: tuple  # characters of each response that are kept, None for all
  texts: list  # as tokenized
  starts: list  # of each: (place in the whole, characters of BOS before it)
  beside: tuple = (0, 0)  # characters of each response beside its contents
  unwritten: tuple = ()  # what of the prompt the template passes over
  border: str = ""  # what put its prompt's end elsewhere than it once was

  @property
  def prompt_size(self):
    """Characters of the prompt's contents."""
    return sum(map(len, self.contents[0]))

  def characters(self):
    """How many of each response are kept; of tool calls only where all is."""
    return tuple(
      size + beside if kept is None else min(kept, size)
      for kept, size, beside in zip(
        self.kept, self.sizes, self.beside, strict=True
      )
    )

  @property
  def sizes(self):
    """Characters of each response's contents."""
    return [
      sum(map(len, contents)) - self.prompt_size
      for contents in self.contents[1:]
    ]

  def can_be_cut(self):
    """Are the contents found in all three texts?"""
    return all(self.places(i) is not None for i in range(3))

  def places(self, i):
    """Where the contents stand in a whole text, see `templates.find`."""
    return templates.find(self.wholes[i], self.frames[i], self.contents[i])

  def left_out(self):
    """The turns of the prompt that are not whole in the text, in words.

    Those of tools are not among them: `unwritten` looks for them.
    """
    frame, found = self.frames[1], []
    if self.roles and self.places(1) is None:
      written = _bare(self.wholes[1])
    else:
      written = None  # what the frame writes is whole
    for i, role in enumerate(self.roles):
      said = _bare(self.contents[0][i])
      if not said or role in messages.TOOL_ROLES:
        continue
      turn = _turn_of(role)
      if frame and i not in frame.order:
        found.append(turn)
      elif written is not None and said not in written:
        found.append(f"a part of {turn}" if frame else turn)
    return " and ".join(dict.fromkeys([*found, *self.unwritten])) or None

  def is_whole(self, side, turns):
    """Is all in the whole text that some turns, a response, say?

    White space and case are not compared: templates trim the former, or write
    it around reasoning that they find in a content.
    """
    places = self.places(side + 1)
    if places is not None:
      first = len(places) - len(turns)
      written = [place is not None for place in places[first:]]
    else:
      shared = len(os.path.commonprefix(self.wholes))
      whole = _bare(self.wholes[side + 1])
      before = _bare(self.wholes[side + 1][:shared])
      # What only the prompt says is not the response's.
      written = [
        all(whole.count(one) > before.count(one) for one in _texts(turn))
        for turn in turns
      ]
    return all(
      is_written or turn.get("role") in messages.TOOL_ROLES or not _texts(turn)
      for is_written, turn in zip(written, turns, strict=True)
    )


def _turn_of(role):
  """ "a user turn", for a role that may be any text."""
  role = " ".join(role.split())[:40]
  return f"{'an' if role[:1].lower() in tuple('aeio') else 'a'} {role} turn"


def _bare(text):
  """A text without white space and without capitals."""
  return "".join(text.split()).casefold()


def _texts(turn):
  """What a turn says, in each of its parts, bare."""
  said = turn.get("content")
  if isinstance(said, list):
    said = [part.get("text", "") for part in said if isinstance(part, dict)]
  else:
    said = [messages.content(turn)]
  return [text for text in map(_bare, map(str, said)) if text]


def pair_texts(tokenizer, template, frame, pairs, cuts):
  """The PairText of each pair, or the reason why there is none.

  Args:
    tokenizer: a Hugging Face tokenizer.
    template: its chat template.
    frame: `templates.frame` of both, a function of a frame key.
    pairs, cuts: lists; a cut may be None.
  """
  asked = [
    conversations(pair) if isinstance(pair.prompt, list) else None
    for pair in pairs
  ]
  every = [c for three in asked if isinstance(three, list) for c in three]
  told = iter(templates.render(tokenizer, template, every))
  found = []
  for pair, cut, three in zip(pairs, cuts, asked, strict=True):
    kept = (cut.chosen, cut.rejected) if cut else (None, None)
    if three is None:
      found.append(_plain_text(pair, kept))
    elif isinstance(three, str):
      found.append(three)
    else:
      wholes = [next(told) for _ in three]
      found.append(_chat_text(frame, pair, three, wholes, kept))
  found = _with_unwritten(tokenizer, template, asked, found)
  found = [
    NOT_WHOLE
    if isinstance(one, PairText)
    and not (
      one.plain
      or one.is_whole(0, pair.chosen)
      and one.is_whole(1, pair.rejected)
    )
    else one
    for one, pair in zip(found, pairs, strict=True)
  ]
  return [
    one
    if isinstance(one, str)
    else _cut(tokenizer, one, cut.prompt if cut else 0)
    for one, cut in zip(found, cuts, strict=True)
  ]


def conversations(pair):
  """The Conversation of the prompt alone, then of it and each response.

  A response goes on with the turn of the assistant that the prompt ends in.
  One without a turn of the assistant is empty: nothing in it is an answer.
  """
  sides, ending = (pair.chosen, pair.rejected), ANSWER
  if not all(any(map(messages.is_answer, side)) for side in sides):
    return "empty response"
  if not all(messages.is_answer(side[0]) for side in sides):
    return "response begins with another turn than the assistant's"
  last = pair.prompt[-1].get("role") if pair.prompt else None
  if last in messages.ANSWER_ROLES:
    wholes, ending = [_continued(pair.prompt, side) for side in sides], CONTINUE
  else:
    wholes = [pair.prompt + side for side in sides]
  if None in wholes:
    return NOT_CONTINUED
  tools = getattr(pair, "tools", None)
  return [
    Conversation(pair.prompt, ending, tools),
    *(Conversation(whole, tools=tools) for whole in wholes),
  ]


def _continued(prompt, response):
  """Both as one list of turns, None where two turns cannot be one."""
  last, first = prompt[-1], response[0]
  said = last.get("content"), first.get("content")
  if (
    first.get("role") != last["role"]
    or not all(isinstance(one, str) for one in said)
    or "tool_calls" in last
    or messages.REASONING[0] in first
  ):
    return None
  joined = {**last, **first, "content": "".join(said)}
  return [*prompt[:-1], joined, *response[1:]]


def _plain_text(pair, kept):
  if getattr(pair, "tools", None):
    return TOOLS_BESIDE_TEXT
  sides = pair.chosen, pair.rejected
  contents = [[pair.prompt], *([pair.prompt, side] for side in sides)]
  wholes = ["".join(some) for some in contents]
  return _said(
    PairText(True, contents, (), wholes, PLAIN, kept, wholes, [(0, 0)] * 3)
  )


def _chat_text(frame, pair, asked, wholes, kept):
  contents = [list(map(messages.content, one.messages)) for one in asked]
  roles = tuple(str(turn.get("role")) for turn in pair.prompt)
  if not pair.prompt and isinstance(wholes[0], Refused):
    wholes[0] = ""
  frames, starts = [None] * 3, [(0, 0)] * 3
  sides = pair.chosen, pair.rejected
  beside = tuple(map(messages.size_beside, sides))
  calls = tuple(any("tool_calls" in turn for turn in side) for side in sides)
  one = PairText(
    False, contents, roles, wholes, frames, kept, wholes, starts, beside
  )
  one = _said(one, calls)
  if isinstance(one, str):
    return one
  for text in wholes:
    if isinstance(text, Refused):
      return f"{REFUSED}{text}"
  frames[:] = [frame(one.frame_key()) for one in asked]
  continued = asked[0].ending == CONTINUE
  if all(whole.startswith(wholes[0]) for whole in wholes):
    return dataclasses.replace(one, border="continued") if continued else one
  return REWRITTEN if continued else _with_border(one)


def _said(pair, calls=(False, False)):
  """The PairText itself, unless it keeps nothing of a response."""
  for whole, size, has_calls in zip(
    pair.contents[1:], pair.kept, calls, strict=True
  ):
    if messages.is_blank("".join(whole)[pair.prompt_size :][:size]):
      if not has_calls:
        return "empty response"
      if size is not None:
        return "cannot be cut: the response is a tool call"
  return pair


def _with_unwritten(tokenizer, template, asked, found):
  """The PairTexts but those of which the template does not write something.

  Reasoning of an earlier turn is only told: templates that write it in the
  last answer leave it out on purpose.
  """
  tried = []  # (index of a pair, text of it, Probe)
  for at, (one, three) in enumerate(zip(found, asked, strict=True)):
    if isinstance(one, PairText) and three is not None:
      turns = len(one.contents[0])
      if three[0].ending == CONTINUE:
        turns -= 1
      for side, start in ((1, 0), (2, turns)):
        some = unwritten.probes(three[side], start)
        tried += [(at, one.wholes[side], probe) for probe in some]
  texts = templates.render(
    tokenizer, template, [probe.conversation for *_, probe in tried]
  )
  found = list(found)
  for (at, whole, probe), text in zip(tried, texts, strict=True):
    one = found[at]
    refused = isinstance(text, Refused) or isinstance(one, str)
    if refused or not probe.is_unwritten(text, whole):
      continue
    reasoning = messages.REASONING[0]
    earlier = probe.turn is not None and probe.turn < len(one.roles)
    if probe.what == reasoning and earlier and reasoning in template:
      what = (*one.unwritten, "reasoning of an earlier turn")
      found[at] = dataclasses.replace(one, unwritten=what)
    else:
      found[at] = f"{REFUSED}it does not write {probe.what}"
  return found


# Where the prompt ends.


def _with_border(pair):
  """The PairText, its prompt alone as it stands before the answers.

  A template may write the prompt alone in another way than before an answer:
  what both share then ends before the prompt does, and the rest of it would
  be scored.  Here the prompt becomes the start of the wholes up to its last
  content and to what the template writes there in both cases.
  """
  prompt, *wholes = pair.wholes
  shared = len(os.path.commonprefix(pair.wholes))
  turns = len(pair.contents[0])
  places = [
    templates.find(whole, frame, contents, turns)
    for whole, frame, contents in zip(
      wholes, pair.frames[1:], pair.contents[1:], strict=True
    )
  ]
  if None in places:
    return pair if shared >= _end_in_text(pair) else REWRITTEN
  ends = [_last(some) for some in places]
  if None in ends:
    return pair if ends == [None, None] else REWRITTEN
  if shared >= max(end.stop for end in ends):
    return pair
  return _moved_border(pair, ends)


def _last(places):
  """The Place of the last content that is written, None if none is."""
  return next(filter(None, reversed(places)), None)


def _end_in_text(pair):
  """Where the prompt's last content ends in the prompt alone, as it looks.

  Contents that are only written where their turn is the last are not scored.
  """
  prompt, *wholes = pair.wholes
  for said in filter(None, map(str.strip, reversed(pair.contents[0]))):
    at = prompt.rfind(said)
    if at < 0 and pair.frames[1]:
      return len(prompt)  # it is written, but changed
    if at >= 0 and any(said in whole for whole in wholes):
      return at + len(said)
  return 0


def _moved_border(pair, ends):
  wholes = pair.wholes[1:]
  turns, heads = len(pair.contents[0]), []
  alone, last = pair.frames[0], pair.frames[1].until(turns, "").order[-1]
  tail = alone.literals[-1] if alone and alone.order[-1:] == (last,) else ""
  for side, (whole, end) in enumerate(zip(wholes, ends, strict=True), 1):
    answers = (
      place.start for place in (pair.places(side) or [])[turns:] if place
    )
    around = os.path.commonprefix([tail, whole[end.stop : next(answers, None)]])
    heads.append(whole[: end.stop + len(around)])
  head = os.path.commonprefix(heads)
  if len(head) < max(end.stop for end in ends):
    return REWRITTEN
  frame = pair.frames[1].until(turns, head[ends[0].stop :])
  wholes, frames = [head, *wholes], [frame, *pair.frames[1:]]
  return dataclasses.replace(
    pair, wholes=wholes, frames=frames, texts=wholes, border="moved"
  )


def _cut(tokenizer, pair, prompt):
  """The PairText with its texts cut."""
  texts, starts, bos = [], [], tokenizer.bos_token
  for i, (whole, kept) in enumerate(
    zip(pair.wholes, (None, *pair.kept), strict=True)
  ):
    start, stop, head = 0, len(whole), ""
    if prompt or kept is not None:
      places = pair.places(i)
      if places is None:
        return CANNOT_BE_CUT
    if prompt:
      head = bos if bos and whole.startswith(bos) else ""
      start = templates.start_of(places[: len(pair.contents[0])], prompt)
      start = max(start, len(head))
    if kept is not None:
      stop = templates.stop_of(places, pair.prompt_size + kept)
    texts.append(head + whole[start:stop])
    starts.append((start, len(head)))
  return dataclasses.replace(pair, texts=texts, starts=starts)
