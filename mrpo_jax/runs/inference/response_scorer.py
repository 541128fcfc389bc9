# SPDX-License-Identifier: Apache-2.0
"""A model's folder as a function of texts: one number for each response."""

import functools
import hashlib
import json
import math

import jax
import numpy as np

from mrpo_jax import hub
from mrpo_jax.data import formats, pack
from mrpo_jax.data.chat.sandbox import sandbox
from mrpo_jax.data.encode import Encoded, encode_all
from mrpo_jax.data.formats import PreferencePair
from mrpo_jax.data.prompts import encode_prompts, turn_end
from mrpo_jax.data.tokenizer import (
  load_judges_tokenizer,
  tokenizer_fingerprint,
)
from mrpo_jax.errors import InputError
from mrpo_jax.rows import micro_batch, micro_batches

BATCH = 32  # responses at once
ROWS = 4  # of a micro-batch
NOTHING_SAID = "empty response"  # why `encode` drops one
SHORTEST = 128  # tokens of a row; longer ones double it, so that few compile


class ResponseTexts:
  """Texts as a model reads them that gives each response a number."""

  def __init__(self, name, config, tokenizer, *, what="reward", most=None):
    """
    Args:
      name: of the model, for messages.
      config: its ModelConfig.
      tokenizer: its tokenizer.
      what: that the number is, for messages.
      most: tokens of a prompt with its responses; None: what the model takes.
    """
    self._name, self._what = name, what
    self._config, self._tokenizer = config, tokenizer
    longest = config.longest or config.max_positions
    self._most = min(most or longest, longest)

  def numbers(self, prompts, responses, numbers_of):
    """A float for each response; one that recurs has one number.

    Args:
      prompts: texts, or lists of messages that the tokenizer's chat template
        writes.
      responses: texts.
      numbers_of: list of Encoded -> a float for each, on the chosen side.

    Raises:
      InputError: names the first response that the model cannot be given.
    """
    # By their texts: the same at two places of the rows rounds apart.
    texts = [*zip(prompts, responses, strict=True)]
    marks = [json.dumps(one) for one in texts]
    distinct = dict(zip(marks, texts, strict=True))
    found = numbers_of(self._encoded([*distinct.values()]))
    known = dict(zip(distinct, found, strict=True))
    return [known[mark] for mark in marks]

  def usable(self, pairs):
    """Encoded of those PreferencePairs that the model can be trained on."""
    return [
      one
      for one in self._of_pairs(pairs)
      if not (one.dropped or self._problem(one))
    ]

  def _of_pairs(self, pairs):
    limits = dict(max_prompt=self._most, max_response=self._most)
    encoded = [*encode_all(self._tokenizer, pairs, **limits)]
    sandbox.close()
    return encoded

  def _encoded(self, texts):
    """Encoded of each (prompt, response), on the chosen side.

    A response that says nothing is read at the token that ends it.
    """
    pairs = [
      PreferencePair(prompt, _as_turns(prompt, response), None)
      for prompt, response in texts
    ]
    found = self._of_pairs(pairs)
    empty = [n for n, one in enumerate(found) if one.dropped == NOTHING_SAID]
    asked = [formats.answerable(pairs[n].prompt) for n in empty]
    prompts = encode_prompts(self._tokenizer, asked)
    for n, prompt in zip(empty, prompts, strict=True):
      found[n] = self._without_response(prompt, pairs[n].prompt)
    sandbox.close()
    for (_, response), one in zip(texts, found, strict=True):
      if problem := one.dropped or self._problem(one):
        self._refuse(response, problem)
    return found

  def _without_response(self, ids, prompt):
    """Encoded of a prompt's PromptIds and the end of an empty response."""
    end = self._tokenizer.eos_token_id
    if not isinstance(prompt, str):
      of_turn = turn_end(self._tokenizer)
      end = end if isinstance(of_turn, str) else of_turn
    if ids.dropped or end is None:
      self._refuse("", ids.dropped or "the tokenizer has no eos_token")
    return Encoded(ids.ids, [end], [])

  def _problem(self, one):
    """Why the model cannot be given an Encoded, in words, or ""."""
    if pack.size(one) > self._most:
      return f"is longer than {self._most} tokens, the most that it may be"
    ids = *one.prompt_ids, *one.chosen_ids, *one.rejected_ids
    if max(ids) >= self._config.vocab_size:
      return "has a token that the model has no embedding for"
    return ""

  def _refuse(self, response, problem):
    raise InputError(
      f"{self._name} gives {str(response)[:40]!r} no {self._what}: {problem}"
    )


class ResponseScorer:
  """A folder and a step as a function (prompts, responses) -> floats.

  Attributes:
    config: the ModelConfig of the folder.
  """

  def __init__(self, folder, step, *, what="reward", dtype=None):
    """Reads the config; the weights are read when it is first asked.

    Args:
      folder: of Hugging Face files.
      step: f(config, params, rows, pairs) -> value_BC of one micro-batch of
        Rows, 0 for a response that does not stand in them.
      what: that the number is, for messages.
      dtype: floating type of the weights; None keeps that of the folder.
    """
    self.config = hub.read_config(folder)
    self._folder, self._what, self._dtype = folder, what, dtype
    self._step = jax.jit(functools.partial(step, self.config), static_argnums=2)

  @functools.cached_property
  def tokenizer(self):
    """The tokenizer of the folder."""
    return load_judges_tokenizer(self._folder)

  @functools.cached_property
  def _texts(self):
    return ResponseTexts(
      self._folder, self.config, self.tokenizer, what=self._what
    )

  @functools.cached_property
  def _params(self):
    return hub.load(self._folder, dtype=self._dtype)[1]

  @functools.cached_property
  def fingerprint(self):
    """SHA-256 of the config, the weights and what the tokenizer does."""
    parts = hub.fingerprint(self._folder), tokenizer_fingerprint(self.tokenizer)
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()

  def __call__(self, prompts, responses):
    """A float for each response; one that recurs has one number.

    Args:
      prompts: texts, or lists of messages that the tokenizer's chat template
        writes.
      responses: texts.

    Raises:
      InputError: names the first response that the model cannot be given.
    """

    def numbers_of(encoded):
      found = []
      for first in range(0, len(encoded), BATCH):
        found += self._values(encoded[first : first + BATCH])
      return found

    return self._texts.numbers(prompts, responses, numbers_of)

  def _values(self, encoded):
    """Floats of at most BATCH Encoded."""
    longest = max(map(pack.size, encoded))
    length = max(SHORTEST, 2 ** math.ceil(math.log2(longest)))
    rows = pack.pack(encoded, length=length, rows=ROWS, few_pairs=True)
    value_BC = sum(
      np.asarray(self._step(self._params, micro_batch(rows, a), BATCH))
      for a in range(int(micro_batches(rows)))
    )
    return value_BC[: len(encoded), 0].tolist()


def _as_turns(prompt, response):
  if isinstance(prompt, str):
    return response
  return [{"role": "assistant", "content": response}]
