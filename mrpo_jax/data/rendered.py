# SPDX-License-Identifier: Apache-2.0
"""Pairs as texts: rendered by a chat template, cut, and where a prompt ends.

Below, a string in place of a result is the reason to drop the pair.
"""

import dataclasses
import os

from mrpo_jax.data import templates
from mrpo_jax.data.templates import ANSWER, CONTINUE, Conversation, Refused

CANNOT_BE_CUT = "cannot be cut: the chat template changes its text"
REWRITTEN = (
  "prompt rewritten: the chat template writes its end in another way before an "
  "answer"
)
NOT_CONTINUED = (
  "prompt ends in an assistant turn: it cannot be one with the response's first"
)
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

  @property
  def prompt_size(self):
    """Characters of the prompt's contents."""
    return sum(map(len, self.contents[0]))

  def characters(self):
    """How many of each response's contents are kept."""
    return tuple(
      min(size if kept is None else kept, size)
      for kept, size in zip(self.kept, self.sizes, strict=True)
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
    """The turns of the prompt that the template does not write, in words."""
    frame, found = self.frames[1], []
    for i, role in enumerate(self.roles):
      said = self.contents[0][i].strip()
      written = i in frame.order if frame else said in self.wholes[1]
      if said and not written and role in ("system", "user"):
        found.append(f"a {role} turn")
    return " and ".join(dict.fromkeys(found)) or None


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
      one = _plain_text(pair, kept)
    elif isinstance(three, str):
      one = three
    else:
      one = _chat_text(frame, pair, three, [next(told) for _ in three], kept)
    if isinstance(one, PairText):
      one = _cut(tokenizer, one, cut.prompt if cut else 0)
    found.append(one)
  return found


def conversations(pair):
  """The Conversation of the prompt alone, then of it and each response.

  A response goes on with the turn of the assistant that the prompt ends in.
  """
  sides = pair.chosen, pair.rejected
  if not pair.prompt or pair.prompt[-1].get("role") != "assistant":
    wholes = [pair.prompt + side for side in sides]
    return [Conversation(pair.prompt, ANSWER), *map(Conversation, wholes)]
  *before, last = pair.prompt
  wholes = []
  for side in sides:
    first = side[0] if side else {"role": "assistant", "content": ""}
    said = last.get("content"), first.get("content")
    texts = all(isinstance(one, str) for one in said)
    if first.get("role") != "assistant" or not texts:
      return NOT_CONTINUED
    wholes.append([*before, {**first, "content": "".join(said)}, *side[1:]])
  return [Conversation(pair.prompt, CONTINUE), *map(Conversation, wholes)]


def _plain_text(pair, kept):
  sides = pair.chosen, pair.rejected
  contents = [[pair.prompt], *([pair.prompt, side] for side in sides)]
  wholes = ["".join(some) for some in contents]
  return _said(
    PairText(True, contents, (), wholes, PLAIN, kept, wholes, [(0, 0)] * 3)
  )


def _chat_text(frame, pair, asked, wholes, kept):
  contents = [list(map(templates.content, one.messages)) for one in asked]
  roles = tuple(str(turn.get("role")) for turn in pair.prompt)
  if not pair.prompt and isinstance(wholes[0], Refused):
    wholes[0] = ""
  frames = [None] * 3
  one = _said(
    PairText(False, contents, roles, wholes, frames, kept, wholes, [(0, 0)] * 3)
  )
  if isinstance(one, str):
    return one
  for text in wholes:
    if isinstance(text, Refused):
      return f"refused by the chat template: {text}"
  frames[:] = [frame(one.frame_key()) for one in asked]
  if all(whole.startswith(wholes[0]) for whole in wholes):
    return one
  return REWRITTEN if asked[0].ending == CONTINUE else _with_border(one)


def _said(pair):
  """The PairText itself, unless it keeps nothing of a response."""
  for whole, size in zip(pair.contents[1:], pair.kept, strict=True):
    if not "".join(whole)[pair.prompt_size :][:size].strip():
      return "empty response"
  return pair


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
  return dataclasses.replace(pair, wholes=wholes, frames=frames, texts=wholes)


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
