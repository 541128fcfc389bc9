# SPDX-License-Identifier: Apache-2.0
"""Truncation: one cut of a pair's text for all tokenizers of a run."""

import dataclasses
import hashlib
import itertools
import json

from mrpo_jax.data import encode
from mrpo_jax.data.templates import chat_template
from mrpo_jax.data.tokenized import pair_tokenizer


@dataclasses.dataclass(frozen=True)
class Cut:
  """What is kept of a pair's text, in characters; true where some is cut.

  Of a conversation the contents of the turns are counted, in order.
  """

  prompt: int = 0  # left out at its start
  chosen: int | None = None  # kept; None: all of it and its EOS
  rejected: int | None = None

  def __bool__(self):
    return self != Cut()


def cut_to_fit(tokenizers, pairs, *, max_prompt, max_response, progress=None):
  """The longest prompt ends and response starts that every tokenizer fits.

  Cuts are at token boundaries of the tokenizer that needs most tokens.  The
  text cut is tokenized again, which can take more tokens, and cut again until
  it fits everywhere.  Order and number of the other tokenizers do not matter.

  A response of which not a character fits keeps 0, so `encode` drops it.
  Limits below what a template writes between prompt and response are left to
  `encode`, which cuts that at a token.

  Args:
    tokenizers: Hugging Face tokenizers.
    pairs: as in `encode`.
    max_prompt: tokens of every tokenizer, BOS included.
    max_response: tokens, with the EOS or closing text of a whole response.
    progress: called with the number of pairs just done, as in Progress.update.

  Returns:
    A Cut for each pair; Cut() for what fits and what a tokenizer drops.
  """
  encode.check_limits(max_prompt, max_response)
  cuts, pairs = [], iter(pairs)
  tokenizings = [pair_tokenizer(one, chat_template(one)) for one in tokenizers]
  while chunk := list(itertools.islice(pairs, encode.PAIRS_AT_ONCE)):
    cuts += _fit(tokenizers, tokenizings, chunk, max_prompt, max_response)
    if progress is not None:
      progress(len(chunk))
  return cuts


def fingerprint(pair, cut):
  """SHA-256 of a pair and its Cut: equal ones are the same text."""
  parts = [pair.prompt, pair.chosen, pair.rejected, dataclasses.astuple(cut)]
  text = json.dumps(parts, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _fit(tokenizers, tokenizings, pairs, max_prompt, max_response):
  cuts = [Cut()] * len(pairs)
  left = list(range(len(pairs)))
  while left:
    some = [pairs[i] for i in left], [cuts[i] for i in left]
    views = [tokenize_pairs(*some) for tokenize_pairs in tokenizings]
    before, left = left, []
    for i, *pair_views in zip(before, *views, strict=True):
      if any(isinstance(pair, str) for pair in pair_views):
        continue  # `encode` gives the reason
      found = [
        _tighter(tokenizer, pair, cuts[i], max_prompt, max_response)
        for tokenizer, pair in zip(tokenizers, pair_views, strict=True)
      ]
      cut = _tightest(found)
      if cut != cuts[i]:
        cuts[i] = cut
        left.append(i)
  return cuts


def _tightest(cuts):
  """The Cut that leaves out whatever one of some does."""

  def least(kept):
    return min((k for k in kept if k is not None), default=None)

  return Cut(
    max(cut.prompt for cut in cuts),
    least(cut.chosen for cut in cuts),
    least(cut.rejected for cut in cuts),
  )


def _tighter(tokenizer, pair, cut, max_prompt, max_response):
  """A Cut of more characters where something is too long, else the same."""
  prompt, kept = cut.prompt, [cut.chosen, cut.rejected]
  if len(pair.prompt) > max_prompt and (places := pair.text.places(1)):
    bos = pair.prompt[0] == tokenizer.bos_token_id
    prompt = _later(pair, places, prompt, max_prompt - bos)
  for side, response in enumerate(pair.responses):
    if len(response) > max_response and (places := pair.text.places(side + 1)):
      kept[side] = _earlier(pair, places, side, kept[side], max_response)
  return Cut(prompt, *kept)


def _later(pair, places, cut, tokens):
  """How much of the prompt to leave out for its last tokens to remain."""
  spans = pair.spans(0)[: pair.shared]
  size = pair.text.prompt_size
  for i in range(pair.shared - tokens, pair.shared):
    found = min(pair.characters(places, 0, spans[i][0]), size)
    if found > cut:
      return found
  return size


def _earlier(pair, places, side, kept, tokens):
  """How much of a response to keep for its first tokens to remain."""
  spans = pair.spans(side)[pair.shared :]
  for i in range(tokens, 0, -1):
    stop = spans[i - 1][1]
    found = pair.characters(places, side, stop) - pair.text.prompt_size
    if kept is None or found < kept:
      return max(found, 0)
  return 0
