# SPDX-License-Identifier: Apache-2.0
"""Tokenization of pairs: where the prompt ends and each response begins.

Prompt and response are tokenized together, as a model would see them, and
split afterwards; tokenizing them apart gives other ids where a token crosses
the border, and a second BOS where the tokenizer adds one.
"""

import dataclasses
import itertools

from mrpo_jax.data.rendered import CANNOT_BE_CUT
from mrpo_jax.data.templates import chat_template
from mrpo_jax.data.tokenized import pair_tokenizer
from mrpo_jax.errors import InputError

PAIRS_AT_ONCE = 333  # three texts a pair: about 1,000 in one tokenizer call


@dataclasses.dataclass(frozen=True)
class Encoded:
  """One pair as token ids.

  `prompt_ids + chosen_ids` is the whole chosen sequence, EOS included; which
  ids are the response follows from the lengths.  There is no mask: one made
  by comparing ids would lose the EOS of a tokenizer whose pad is its EOS.

  `characters` is how many of the two responses' contents are scored, white
  space that a template strips included: what the `Cut` keeps, else all of
  them, also where ids are cut to max_response afterwards.
  """

  prompt_ids: list[int]
  chosen_ids: list[int]
  rejected_ids: list[int]
  dropped: str | None = None  # why the pair cannot be used; then no ids
  truncated: bool = False  # the prompt or a response was cut
  response_cut: bool = False  # at a token, not by a Cut
  characters: tuple[int, int] = dataclasses.field(default=(0, 0), compare=False)
  left_out: str | None = None  # by the chat template, "a system turn"
  # Why its ids are others than earlier code made, "" if they are not: a store
  # must not give the figures that it has of those.
  border: str = dataclasses.field(default="", compare=False)


def encode(tokenizer, pair, *, max_prompt, max_response, cut=None):
  """One PreferencePair as `Encoded`; odd content is dropped, never raised.

  Plain text: prompt_ids + response_ids are tokenizer(prompt + response) and
  one EOS, if the tokenizer has one and the text does not end with it, white
  space after it or not.  A conversation: they are what
  `apply_chat_template` gives for prompt + response, nothing added; a
  tokenizer without a template uses `chat_template(tokenizer)`.  prompt_ids
  is the longest start that the prompt alone shares with both sequences, so
  a token that crosses the border belongs to the response.

  Something must predict the first response token: where nothing is shared,
  prompt_ids is one BOS, or EOS if there is no BOS; with neither, the pair
  is dropped.  Text that writes out further BOS at its start loses them.

  Args:
    tokenizer: a Hugging Face tokenizer.
    pair: .prompt, .chosen, .rejected: three strings, or three lists of
      {"role", "content"}.  Without rejected (None) it has no rejected_ids;
      with a label, .desirable, it may equal chosen.
    max_prompt: tokens; a longer prompt keeps its end, and its BOS.
    max_response: tokens; a longer response keeps its start.
    cut: a `Cut`: the text is cut so before it is tokenized.  A prompt keeps
      its BOS; neither EOS nor closing text follows a cut response.

  Returns:
    Encoded.  `dropped` is "empty response" (also without a turn of the
    assistant in a conversation), "equal responses" (also when cut
    to equality), "empty prompt", "not encodable: ...", "refused by the
    chat template: ..." or, with a Cut, "cannot be cut: ...".
  """
  limits = {"max_prompt": max_prompt, "max_response": max_response}
  cuts = None if cut is None else [cut]
  return encode_all(tokenizer, [pair], cuts=cuts, **limits)[0]


def encode_all(
  tokenizer, pairs, *, max_prompt, max_response, cuts=None, progress=None
):
  """`encode` for many pairs, about 1,000 texts in one tokenizer call.

  `cuts` has a Cut for each pair.  `progress` is called with the number of
  pairs just done, as in Progress.update.
  """
  check_limits(max_prompt, max_response)
  encoded, pairs = [], iter(pairs)
  cuts = itertools.repeat(None) if cuts is None else iter(cuts)
  tokenize_pairs = pair_tokenizer(tokenizer, chat_template(tokenizer))
  while chunk := list(itertools.islice(pairs, PAIRS_AT_ONCE)):
    kept = list(itertools.islice(cuts, len(chunk)))
    tokens = tokenize_pairs(chunk, kept)
    for pair, text, cut in zip(chunk, tokens, kept, strict=True):
      one = _limited(tokenizer, text, cut, max_prompt, max_response, pair)
      if isinstance(one, str):
        one = Encoded([], [], [], dropped=one)
      encoded.append(one)
    if progress is not None:
      progress(len(chunk))
  return encoded


def check_limits(max_prompt, max_response):
  """InputError unless both are at least one token."""
  for name, limit in (("prompt", max_prompt), ("response", max_response)):
    if not limit >= 1:
      raise InputError(f"max_{name} must be at least 1 token, is {limit}")


def _limited(tokenizer, tokens, cut, max_prompt, max_response, pair):
  """Encoded, or the reason why there is none."""
  if isinstance(tokens, str):
    return tokens
  prompt, responses, text = tokens.prompt, tokens.responses, tokens.text
  short = [response[:max_response] for response in responses]
  response_cut = short != responses
  too_long = response_cut or len(prompt) > max_prompt
  if too_long and cut is not None and not text.can_be_cut():
    return CANNOT_BE_CUT
  if pair.rejected is None:
    short[1] = []
  elif short[0] == short[1] and getattr(pair, "desirable", None) is None:
    return "equal responses"
  if len(prompt) > max_prompt:
    start = prompt[:1] if prompt[0] == tokenizer.bos_token_id else []
    prompt = start + prompt[len(prompt) - max_prompt + len(start) :]
  return Encoded(
    prompt,
    *short,
    truncated=too_long or bool(cut),
    response_cut=response_cut,
    characters=text.characters(),
    left_out=text.left_out(),
    border=tokens.border,
  )
