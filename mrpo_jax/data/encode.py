# SPDX-License-Identifier: Apache-2.0
"""Text to token ids: where the prompt ends and each response begins.

Prompt and response are tokenized together, as a model would see them, and
split afterwards; tokenizing them apart gives other ids where a token crosses
the border, and a second BOS where the tokenizer adds one.
"""

import dataclasses
import itertools
from collections import Counter

from mrpo_jax.errors import InputError

PAIRS_AT_ONCE = 333  # three texts a pair: about 1,000 in one tokenizer call

# HH-RLHF's layout, for conversations when the tokenizer has no template.
TRANSCRIPT_TEMPLATE = (
  r"{% for message in messages %}"
  r"{% if message['role'] == 'system' %}"
  r"{{ ('' if loop.first else '\n\n') + message['content'] }}"
  r"{% elif message['role'] == 'user' %}"
  r"{{ '\n\nHuman: ' + message['content'] }}"
  r"{% elif message['role'] == 'assistant' %}"
  r"{{ '\n\nAssistant: ' + message['content'] + (eos_token or '') }}"
  r"{% else %}{{ raise_exception('unknown role ' + message['role']) }}"
  r"{% endif %}{% endfor %}"
  r"{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class Encoded:
  """One pair as token ids.

  `prompt_ids + chosen_ids` is the whole chosen sequence, EOS included; which
  ids are the response follows from the lengths.  There is no mask: one made
  by comparing ids would lose the EOS of a tokenizer whose pad is its EOS.
  """

  prompt_ids: list[int]
  chosen_ids: list[int]
  rejected_ids: list[int]
  dropped: str | None = None  # why the pair cannot be used; then no ids
  truncated: bool = False  # the prompt or a response was cut
  response_cut: bool = False


def encode(tokenizer, pair, *, max_prompt, max_response):
  """One PreferencePair as `Encoded`; odd content is dropped, never raised.

  Plain text: prompt_ids + response_ids are tokenizer(prompt + response) and
  one EOS, if the tokenizer has one.  A conversation: they are what
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
      {"role", "content"}.
    max_prompt: tokens; a longer prompt keeps its end, and its BOS.
    max_response: tokens; a longer response keeps its start.

  Returns:
    Encoded.  `dropped` is "empty response", "equal responses" (also when cut
    to equality), "empty prompt", "not encodable: ..." or "refused by the
    chat template: ...".
  """
  limits = {"max_prompt": max_prompt, "max_response": max_response}
  return encode_all(tokenizer, [pair], **limits)[0]


def encode_all(tokenizer, pairs, *, max_prompt, max_response, progress=None):
  """`encode` for many pairs, about 1,000 texts in one tokenizer call.

  `progress` is called with the number of pairs just done, as in tqdm.update.
  """
  for name, limit in (("prompt", max_prompt), ("response", max_response)):
    if not limit >= 1:
      raise InputError(f"max_{name} must be at least 1 token, is {limit}")
  encoded, pairs = [], iter(pairs)
  template = chat_template(tokenizer)
  while chunk := list(itertools.islice(pairs, PAIRS_AT_ONCE)):
    jobs = [_texts(tokenizer, template, pair) for pair in chunk]
    ids = _tokenize(tokenizer, jobs)
    for job in jobs:
      pair = _split(tokenizer, job, ids, max_prompt, max_response)
      if isinstance(pair, str):
        pair = Encoded([], [], [], dropped=pair)
      encoded.append(pair)
    if progress is not None:
      progress(len(chunk))
  return encoded


def count(encoded):
  """How many pairs were kept, dropped, cut, and the reasons by frequency."""
  reasons = Counter(
    pair.dropped.partition(":")[0] for pair in encoded if pair.dropped
  )
  return {
    "kept": len(encoded) - reasons.total(),
    "dropped": reasons.total(),
    "truncated": sum(pair.truncated for pair in encoded),
    "reasons": dict(reasons.most_common()),
  }


def chat_template(tokenizer):
  """The template in use: the tokenizer's own, else the transcript's.

  The transcript starts with BOS when the tokenizer starts plain text so.
  """
  if getattr(tokenizer, "chat_template", None):
    return tokenizer.get_chat_template()
  bos = tokenizer.bos_token_id
  adds_bos = bos is not None and tokenizer("a").input_ids[:1] == [bos]
  return ("{{ bos_token }}" if adds_bos else "") + TRANSCRIPT_TEMPLATE


# Below, a string in place of a list is the reason to drop the pair.


def _texts(tokenizer, template, pair):
  """Prompt alone and both whole sequences, each as (text, is it plain)."""
  plain = isinstance(pair.prompt, str)
  for side in (pair.chosen, pair.rejected):
    said = side if plain else "".join(map(_content, side))
    if not said.strip():
      return "empty response"
  whole = [pair.prompt + side for side in (pair.chosen, pair.rejected)]
  if plain:
    return [(text, plain) for text in (pair.prompt, *whole)]
  try:
    texts = [_render(tokenizer, template, messages) for messages in whole]
    alone = _render_prompt(tokenizer, template, pair.prompt)
  except ImportError:  # jinja2 is missing: no fault of the row
    raise
  except Exception as error:  # templates fail in any way they like
    return f"refused by the chat template: {_first_line(error)}"
  return [(text, plain) for text in (alone, *texts)]


def _content(message):
  return str(message.get("content") or "")


def _render(tokenizer, template, messages, **options):
  # As a batch of one, because an empty conversation alone is an error.
  return tokenizer.apply_chat_template(
    [messages], chat_template=template, tokenize=False, **options
  )[0]


def _render_prompt(tokenizer, template, messages):
  try:
    return _render(tokenizer, template, messages, add_generation_prompt=True)
  except Exception:
    if messages:
      raise
    return ""


def _tokenize(tokenizer, jobs):
  """{(text, plain): ids} for all texts of the jobs."""
  ids = {}
  jobs = [job for job in jobs if not isinstance(job, str)]
  for plain in (True, False):
    texts = [text for job in jobs for text, kind in job if kind == plain]
    try:
      found = _call(tokenizer, texts, plain)
    except Exception:  # tokenizers raises bare Exception; find the culprit
      found = [_call_one(tokenizer, text, plain) for text in texts]
    ids |= {(t, plain): f for t, f in zip(texts, found, strict=True)}
  return ids


def _call(tokenizer, texts, plain):
  if not texts:
    return []
  return tokenizer(
    texts,
    add_special_tokens=plain,  # a chat template writes its own
    return_attention_mask=False,
    return_token_type_ids=False,
    verbose=False,  # what is longer than model_max_length is cut later
  ).input_ids


def _call_one(tokenizer, text, plain):
  try:
    text.encode()  # its error names the lone surrogate, the tokenizer's not
    return _call(tokenizer, [text], plain)[0]
  except Exception as error:
    return f"not encodable: {_first_line(error)}"


def _first_line(error):
  return (str(error).strip() or repr(error)).splitlines()[0]


def _split(tokenizer, job, ids, max_prompt, max_response):
  """Encoded, or the reason why there is none."""
  if isinstance(job, str):
    return job
  sequences = [ids[key] for key in job]
  for sequence in sequences:
    if isinstance(sequence, str):
      return sequence
  bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
  if job[0][1]:  # plain text
    sequences = [_one_bos(sequence, bos) for sequence in sequences]
    sequences[1:] = [_one_eos(sequence, eos) for sequence in sequences[1:]]
  whole, length = sequences[1:], _shared_length(sequences)
  if not length and all(s[:1] == [bos] for s in whole):
    length = 1
  prompt = whole[0][:length] or [eos if bos is None else bos]
  if prompt == [None]:
    return "empty prompt"
  responses = [sequence[length:] for sequence in whole]
  if any(response in ([], [eos]) for response in responses):
    return "empty response"
  cut = [response[:max_response] for response in responses]
  if cut[0] == cut[1]:
    return "equal responses"
  response_cut = cut != responses
  truncated = response_cut or len(prompt) > max_prompt
  if len(prompt) > max_prompt:
    start = prompt[:1] if prompt[0] == bos else []
    prompt = start + prompt[len(prompt) - max_prompt + len(start) :]
  return Encoded(prompt, *cut, truncated=truncated, response_cut=response_cut)


def _one_bos(ids, bos):
  while bos is not None and ids[:2] == [bos, bos]:
    ids = ids[1:]
  return ids


def _one_eos(ids, eos):
  return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]


def _shared_length(sequences):
  together = enumerate(zip(*sequences, strict=False))
  apart = (i for i, tokens in together if len(set(tokens)) > 1)
  return next(apart, min(map(len, sequences)))
