# SPDX-License-Identifier: Apache-2.0
"""Pairs tokenized: as whole sequences of ids, and their border.

`encode` limits it to a length, `truncate` finds places of tokens in it.
Below, a string in place of a result is the reason to drop the pair.
"""

import dataclasses
import functools

from mrpo_jax.data import rendered, templates
from mrpo_jax.errors import first_line, panics


@dataclasses.dataclass(frozen=True)
class PairTokens:
  """A pair as ids of any length, split into prompt and responses."""

  text: rendered.PairText
  prompt: list
  responses: list
  shared: int  # tokens of the prompt that stand in both sequences
  encodings: list  # the tokenizer's, of both sequences
  skipped: list  # tokens left out at their starts
  border: str  # that of the text, or that it writes EOS before white space

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
  frame = functools.lru_cache(maxsize=10_000)(
    functools.partial(templates.frame, tokenizer, template)
  )

  def tokenize_pairs(pairs, cuts):
    pairs = [with_two(pair) for pair in pairs]
    some = rendered.pair_texts(tokenizer, template, frame, pairs, cuts)
    found = tokenize(tokenizer, some)
    return [_pair_tokens(tokenizer, one, found) for one in some]

  return tokenize_pairs


def with_two(pair):
  """A supervised pair with its response on both sides."""
  if pair.rejected is None:
    return dataclasses.replace(pair, rejected=pair.chosen)
  return pair


def tokenize(tokenizer, pairs):
  """{(text, plain): (ids, Encoding)} for all texts of some PairTexts.

  A string in place of the two says why a text is not encodable.
  """
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
  with panics():
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
    sequences = [one_bos(sequence, bos) for sequence in sequences]
  skipped = [
    len(encoding.ids) - len(sequence)
    for sequence, encoding in zip(sequences, encodings, strict=True)
  ]
  whole, border = sequences[1:], pair.border
  if pair.plain:
    if any(_is_only_end(tokenizer, said) for _, said in pair.contents[1:]):
      return "empty response"
    whole, border = _with_ends(tokenizer, pair, whole, encodings[1:])
  length = _shared_length([sequences[0], *whole])
  if not length and all(s[:1] == [bos] for s in whole):
    length = 1
  prompt = whole[0][:length] or [eos if bos is None else bos]
  if prompt == [None]:
    return "empty prompt"
  responses = [sequence[length:] for sequence in whole]
  if any(response in ([], [eos]) for response in responses):
    return "empty response"
  return PairTokens(
    pair, prompt, responses, length, encodings[1:], skipped[1:], border
  )


def one_bos(ids, bos):
  while bos is not None and ids[:2] == [bos, bos]:
    ids = ids[1:]
  return ids


def _with_ends(tokenizer, pair, whole, encodings):
  """Ids with one EOS each, and the `border` of the pair."""
  eos, ends, blind = tokenizer.eos_token, [], []
  for ids, encoding, kept, text in zip(
    whole, encodings, pair.kept, pair.texts[1:], strict=True
  ):
    written = bool(eos) and text.rstrip().endswith(eos)
    written = written and tokenizer.eos_token_id in ids
    given = ids, encoding, kept, tokenizer.eos_token_id
    ends.append(_one_eos(*given, written))
    blind.append(_one_eos(*given, False))
  return ends, "ended" if ends != blind else ""


def _is_only_end(tokenizer, text):
  eos = tokenizer.eos_token
  return bool(eos) and not text.replace(eos, "").strip()


def _one_eos(ids, encoding, kept, eos, written):
  """`written`: does the text end in EOS, white space after it or not?"""
  added = encoding.special_tokens_mask[-1:] == [1] and ids[-1:] == [eos]
  if kept is not None or written:
    return ids[:-1] if added else ids
  return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]


def _shared_length(sequences):
  together = enumerate(zip(*sequences, strict=False))
  apart = (i for i, tokens in together if len(set(tokens)) > 1)
  return next(apart, min(map(len, sequences)))
