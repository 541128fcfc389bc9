# SPDX-License-Identifier: Apache-2.0
"""Rewards of a trained reward model: its folder as a function of texts."""

import functools
import json
import logging
import math

import jax
import numpy as np

from mrpo_jax import hub
from mrpo_jax.data import pack
from mrpo_jax.data.chat.sandbox import sandbox
from mrpo_jax.data.encode import Encoded, encode_all
from mrpo_jax.data.formats import PreferencePair
from mrpo_jax.data.prompts import encode_prompts
from mrpo_jax.data.tokenizer import load_tokenizer
from mrpo_jax.errors import InputError
from mrpo_jax.models import packed
from mrpo_jax.rows import micro_batch, micro_batches

logger = logging.getLogger(__name__)

BATCH = 32  # responses at once
ROWS = 4  # of a micro-batch
SHORTEST = 128  # tokens of a row; longer ones double it, so that few compile


class RewardModel:
  """The folder of a reward model as a function (prompts, responses) -> rewards.

  Attributes:
    script: SHA-256 of its config and weights, as rewards of other kinds have
      that of their program.
  """

  def __init__(self, folder, *, dtype=None):
    """Reads the config; the weights are read when it is first asked.

    Args:
      folder: what `mrpo export` writes of a run with `policy.head="scalar"`,
        or any sequence classifier of one label that `hub.load` reads.
      dtype: floating type of the weights; None keeps that of the folder.

    Raises:
      InputError: the folder holds no reward model.
    """
    config = hub.read_config(folder)
    if config.head != "scalar":
      raise InputError(
        f"{folder}: its model has no scalar head, so it gives no rewards; mrpo "
        "train with policy.head='scalar' makes one"
      )
    self._folder, self._dtype, self._config = folder, dtype, config
    self._tokenizer = load_tokenizer(folder)
    self._texts = RewardTexts(folder, config, self._tokenizer)
    self._step = jax.jit(
      functools.partial(packed.rewards, config), static_argnums=2
    )
    self.script = hub.fingerprint(folder)
    self._warn_of_padding()

  @functools.cached_property
  def _params(self):
    return hub.load(self._folder, dtype=self._dtype)[1]

  def __call__(self, prompts, responses):
    """A float for each response; one that recurs has one reward.

    Args:
      prompts: texts, or lists of messages that the tokenizer's chat template
        writes.
      responses: texts.

    Raises:
      InputError: names the first response that the model cannot be given.
    """

    def rewards_of(encoded):
      found = []
      for first in range(0, len(encoded), BATCH):
        found += self._rewards(encoded[first : first + BATCH])
      return found

    return self._texts.rewards(prompts, responses, rewards_of)

  def _warn_of_padding(self):
    """Says where transformers reads the reward at another token."""
    pad = json.loads(self._config.source or "{}").get("pad_token_id")
    ends = (self._config.eos_id, self._tokenizer.eos_token_id)
    if pad is not None and pad in ends:
      logger.warning(
        f"warning: the padding token {pad} of {self._folder} also ends texts, "
        "so transformers reads the reward before a text's last such token; "
        "here it is read at the last token"
      )

  def _rewards(self, encoded):
    """Floats of at most BATCH Encoded."""
    longest = max(map(pack.size, encoded))
    length = max(SHORTEST, 2 ** math.ceil(math.log2(longest)))
    rows = pack.pack(encoded, length=length, rows=ROWS)
    reward_BC = sum(
      np.asarray(self._step(self._params, micro_batch(rows, a), BATCH))
      for a in range(int(micro_batches(rows)))
    )
    return reward_BC[: len(encoded), 0].tolist()


class RewardTexts:
  """Texts as a reward model reads them."""

  def __init__(self, name, config, tokenizer):
    """
    Args:
      name: of the model, for messages.
      config: its ModelConfig.
      tokenizer: its tokenizer.
    """
    self._name, self._config, self._tokenizer = name, config, tokenizer

  def rewards(self, prompts, responses, rewards_of):
    """A float for each response; one that recurs has one reward.

    Args:
      prompts: texts, or lists of messages.
      responses: texts.
      rewards_of: list of Encoded -> a float for each, on the chosen side.

    Raises:
      InputError: names the first response that the model cannot be given.
    """
    # By their texts: the same at two places of the rows rounds apart.
    texts = [*zip(prompts, responses, strict=True)]
    marks = [json.dumps(one) for one in texts]
    distinct = dict(zip(marks, texts, strict=True))
    found = rewards_of(self._encoded([*distinct.values()]))
    known = dict(zip(distinct, found, strict=True))
    return [known[mark] for mark in marks]

  def encoded_pairs(self, pairs):
    """Encoded of each PreferencePair in its tokens, to train on.

    Raises:
      InputError: names the first that the model cannot be given.
    """
    most = self._config.longest or self._config.max_positions
    limits = dict(max_prompt=most, max_response=most)
    encoded = [*encode_all(self._tokenizer, pairs, **limits)]
    sandbox.close()
    for pair, one in zip(pairs, encoded, strict=True):
      problem = one.dropped or self._problem(one, most)
      if problem:
        said = str(pair.chosen)[:40]
        raise InputError(f"{self._name} gives {said!r} no reward: {problem}")
    return encoded

  def _encoded(self, texts):
    """Encoded of each (prompt, response), on the chosen side.

    An empty response is read at the token that ends it.
    """
    said = [n for n, (_, response) in enumerate(texts) if response]
    pairs = [
      PreferencePair(prompt, _as_turns(prompt, response), None)
      for prompt, response in texts
    ]
    found = dict(
      zip(said, self.encoded_pairs([pairs[n] for n in said]), strict=True)
    )
    empty = [n for n in range(len(texts)) if n not in found]
    prompts = encode_prompts(self._tokenizer, [pairs[n] for n in empty])
    found |= {
      n: self._without_response(one)
      for n, one in zip(empty, prompts, strict=True)
    }
    return [found[n] for n in range(len(texts))]

  def _without_response(self, prompt):
    """Encoded of a PromptIds and the end of an empty response."""
    end = self._tokenizer.eos_token_id
    if prompt.dropped or end is None:
      why = prompt.dropped or "the tokenizer has no eos_token"
      raise InputError(f"{self._name} gives '' no reward: {why}")
    return Encoded(prompt.ids, [end], [])

  def _problem(self, one, most):
    """Why the model cannot be given an Encoded, in words, or ""."""
    if pack.size(one) > most:
      return f"is longer than the {most} tokens that the model takes"
    ids = *one.prompt_ids, *one.chosen_ids, *one.rejected_ids
    if max(ids) >= self._config.vocab_size:
      return "has a token that the model has no embedding for"
    return ""


def _as_turns(prompt, response):
  if isinstance(prompt, str):
    return response
  return [{"role": "assistant", "content": response}]
