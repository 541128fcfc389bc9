# SPDX-License-Identifier: Apache-2.0
"""Pairs tokenized: as texts, as whole sequences of ids, and their border.

`encode` limits it to a length, `truncate` finds places of tokens in it.
Below, a string in place of a result is the reason to drop the pair.
"""

import dataclasses
import functools

from mrpo_jax.data import templates
from mrpo_jax.errors import first_line

CANNOT_BE_CUT = "cannot be cut: the chat template changes its text"
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


@dataclasses.dataclass(frozen=True)
class PairTokens:
  """A pair as ids of any length, split into prompt and responses."""

  text: PairText
  prompt: list
  responses: list
  shared: int  # tokens of the prompt that stand in both sequences
  encodings: list  # the tokenizer's, of both sequences
  skipped: list  # tokens left out at their starts

  def spans(self, side):
    """Places of prompt and response ids, as (start, stop) in the text."""
    end = len(self.text.texts[side + 1])
    length = self.shared + len(self.responses[side])
    spans = self.encodings[side].offsets[self.skipped[side] :][:length]
    if spans[-1] == (0, 0):  # an EOS that the tokenizer adds
      spans[-1] = (end, end)
    return spans + [(end, end)] * (length - len(spans))

  def characters(self, places, side, position):
    """Characters of the contents before a position in the text cut."""
    start, head = self.text.starts[side + 1]
    position = start + max(position - head, 0)
    return templates.characters_before(places, position)


def pair_tokenizer(tokenizer, template):
  """A function of pairs, and the Cut or None of each, to their PairTokens.

  It calls the tokenizer once for all texts of a kind.
  """
  frame = functools.cache(
    functools.partial(templates.frame, tokenizer, template)
  )

  def tokenize_pairs(pairs, cuts):
    some = [
      _pair_text(tokenizer, template, frame, _with_two(pair), cut)
      for pair, cut in zip(pairs, cuts, strict=True)
    ]
    found = _tokenize(tokenizer, some)
    return [_pair_tokens(tokenizer, one, found) for one in some]

  return tokenize_pairs


def _with_two(pair):
  """A supervised pair with its response on both sides."""
  if pair.rejected is None:
    return dataclasses.replace(pair, rejected=pair.chosen)
  return pair


def _pair_text(tokenizer, template, frame, pair, cut):
  plain = isinstance(pair.prompt, str)
  kept = (cut.chosen, cut.rejected) if cut else (None, None)
  wholes = [pair.prompt + side for side in (pair.chosen, pair.rejected)]
  if plain:
    contents = [[pair.prompt, side] for side in (pair.chosen, pair.rejected)]
    contents.insert(0, [pair.prompt])
  else:
    turns = [pair.prompt, *wholes]
    contents = [list(map(templates.content, some)) for some in turns]
  for response, size in zip(contents[1:], kept, strict=True):
    if not "".join(response[len(contents[0]) :])[:size].strip():
      return "empty response"
  if plain:
    roles, texts, frames = [()], [pair.prompt, *wholes], PLAIN
  else:
    try:
      texts = [templates.render(tokenizer, template, some) for some in wholes]
      texts.insert(0, _render_prompt(tokenizer, template, pair.prompt))
    except ImportError:  # jinja2 is missing: no fault of the row
      raise
    except Exception as error:  # templates fail in any way they like
      return f"refused by the chat template: {first_line(error)}"
    roles = [tuple(str(t.get("role")) for t in some) for some in turns]
    frames = [frame(roles[0], generation=True), *map(frame, roles[1:])]
  starts = [(0, 0)] * 3
  whole = PairText(
    plain, contents, roles[0], texts, frames, kept, texts, starts
  )
  return _cut(tokenizer, whole, cut.prompt if cut else 0)


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


def _render_prompt(tokenizer, template, turns):
  try:
    return templates.render(
      tokenizer, template, turns, add_generation_prompt=True
    )
  except Exception:
    if turns:
      raise
    return ""


def _tokenize(tokenizer, pairs):
  """{(text, plain): (ids, Encoding)} for all texts of some PairTexts."""
  found = {}
  pairs = [pair for pair in pairs if not isinstance(pair, str)]
  for plain in (True, False):
    texts = [t for pair in pairs if pair.plain == plain for t in pair.texts]
    try:
      some = _call(tokenizer, texts, plain)
    except Exception:  # tokenizers raises bare Exception; find the culprit
      some = [_call_one(tokenizer, text, plain) for text in texts]
    found |= {(t, plain): f for t, f in zip(texts, some, strict=True)}
  return found


def _call(tokenizer, texts, plain):
  if not texts:
    return []
  made = tokenizer(
    texts,
    add_special_tokens=plain,  # a chat template writes its own
    return_attention_mask=False,
    return_token_type_ids=False,
    verbose=False,  # what is longer than model_max_length is cut later
  )
  # Places of tokens are worked out only where an Encoding is asked for them.
  return list(zip(made.input_ids, made.encodings, strict=True))


def _call_one(tokenizer, text, plain):
  try:
    text.encode()  # its error names the lone surrogate, the tokenizer's not
    return _call(tokenizer, [text], plain)[0]
  except Exception as error:
    return f"not encodable: {first_line(error)}"


def _pair_tokens(tokenizer, pair, found):
  if isinstance(pair, str):
    return pair
  results = [found[text, pair.plain] for text in pair.texts]
  for result in results:
    if isinstance(result, str):
      return result
  sequences, encodings = map(list, zip(*results, strict=True))
  bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
  if pair.plain:
    sequences = [_one_bos(sequence, bos) for sequence in sequences]
  skipped = [
    len(encoding.ids) - len(sequence)
    for sequence, encoding in zip(sequences, encodings, strict=True)
  ]
  whole = sequences[1:]
  if pair.plain:
    ends = zip(whole, encodings[1:], pair.kept, strict=True)
    whole = [_one_eos(*end, eos) for end in ends]
  length = _shared_length([sequences[0], *whole])
  if not length and all(s[:1] == [bos] for s in whole):
    length = 1
  prompt = whole[0][:length] or [eos if bos is None else bos]
  if prompt == [None]:
    return "empty prompt"
  responses = [sequence[length:] for sequence in whole]
  if any(response in ([], [eos]) for response in responses):
    return "empty response"
  return PairTokens(pair, prompt, responses, length, encodings[1:], skipped[1:])


def _one_bos(ids, bos):
  while bos is not None and ids[:2] == [bos, bos]:
    ids = ids[1:]
  return ids


def _one_eos(ids, encoding, kept, eos):
  if kept is None:
    return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]
  added = encoding.special_tokens_mask[-1:] == [1]
  return ids[:-1] if added and ids[-1:] == [eos] else ids


def _shared_length(sequences):
  together = enumerate(zip(*sequences, strict=False))
  apart = (i for i, tokens in together if len(set(tokens)) > 1)
  return next(apart, min(map(len, sequences)))
