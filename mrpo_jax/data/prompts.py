# SPDX-License-Identifier: Apache-2.0
"""Prompts without a response as token ids: the ids that pairs have there."""

import dataclasses
import itertools

from mrpo_jax.data import rendered, templates
from mrpo_jax.data.encode import PAIRS_AT_ONCE
from mrpo_jax.data.tokenized import (
  one_bos,
  pair_tokenizer,
  tokenize,
  with_two,
)

ANSWER = [{"role": "assistant", "content": "x"}]


@dataclasses.dataclass(frozen=True)
class PromptIds:
  """A prompt as a model reads it before it answers."""

  ids: list[int]
  dropped: str | None = None  # why there are none
  left_out: str | None = None  # by the chat template, "a system turn"


@dataclasses.dataclass(frozen=True)
class _Alone:
  """The text of a prompt, as `tokenize` reads it."""

  plain: bool
  texts: list


def encode_prompts(tokenizer, pairs):
  """A PromptIds for each pair of `formats.prompt_of`, in their order.

  They are the `prompt_ids` that `encode` gives of the prompt and an answer,
  but for a token that only one answer makes cross from the one to the other.
  Of a plain text they are those that the tokenizer gives of it alone, without
  an end; of a conversation, what the chat template writes before an answer.
  """
  template = templates.chat_template(tokenizer)
  tokenize_pairs = pair_tokenizer(tokenizer, template)
  found, pairs = [], iter(pairs)
  while chunk := [*map(with_two, itertools.islice(pairs, PAIRS_AT_ONCE))]:
    told = iter(tokenize_pairs(*_conversations(chunk)))
    some = [
      _Alone(True, [pair.prompt])
      if isinstance(pair.prompt, str)
      else _written(tokenizer, template, pair, next(told))
      for pair in chunk
    ]
    alone = [one for one in some if isinstance(one, _Alone)]
    ids = tokenize(tokenizer, alone)
    found += [
      _of_alone(tokenizer, pair, one, ids) if isinstance(one, _Alone) else one
      for pair, one in zip(chunk, some, strict=True)
    ]
  return found


def _conversations(pairs):
  """(those that are, the Cut of each)."""
  some = [pair for pair in pairs if not isinstance(pair.prompt, str)]
  return some, [None] * len(some)


def _written(tokenizer, template, pair, tokens):
  """The PromptIds of a conversation, or its text alone as an _Alone."""
  if tokens in (rendered.REWRITTEN, rendered.NOT_WHOLE):
    # No pair can be made of it; it can be answered all the same.
    asked = rendered.conversations(pair)[0]
    return _Alone(False, templates.render(tokenizer, template, [asked]))
  if isinstance(tokens, str):
    return PromptIds([], dropped=tokens)
  return PromptIds(tokens.prompt, left_out=tokens.text.left_out())


def _of_alone(tokenizer, pair, alone, found):
  if alone.plain and pair.tools:
    return PromptIds([], dropped=rendered.TOOLS_BESIDE_TEXT)
  result = found[alone.texts[0], alone.plain]
  if isinstance(result, str):
    return PromptIds([], dropped=result)
  ids, encoding = result
  if alone.plain:
    ids = one_bos(ids[: len(ids) - _ends(encoding)], tokenizer.bos_token_id)
  return PromptIds(ids, dropped=None if ids else "empty prompt")


def _ends(encoding):
  """How many tokens the tokenizer adds at the end of a text."""
  added = itertools.takewhile(bool, reversed(encoding.special_tokens_mask))
  count = len(list(added))
  return 0 if count == len(encoding.ids) else count


def turn_end(tokenizer):
  """What the chat template writes after an answer: a token, or a text.

  The id of the first special token there; where there is none the text
  without white space around it, which may be "".
  """
  template = templates.chat_template(tokenizer)
  turns = [{"role": "user", "content": "x"}, *ANSWER]
  key = templates.Conversation(turns).frame_key()
  found = templates.frame(tokenizer, template, key)
  if found is None or found.order[-1:] != (1,):
    return ""
  tail = found.literals[-1]
  special = {
    one
    for one, token in tokenizer.added_tokens_decoder.items()
    if token.special
  }
  ids = tokenizer(tail, add_special_tokens=False).input_ids
  return next((one for one in ids if one in special), tail.strip())
