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
from mrpo_jax.data.encode import encode_all
from mrpo_jax.data.formats import PreferencePair
from mrpo_jax.data.tokenizer import id_count, load_tokenizer
from mrpo_jax.errors import InputError
from mrpo_jax.models import packed
from mrpo_jax.rows import micro_batch, micro_batches

logger = logging.getLogger(__name__)

BATCH = 32  # responses at once
ROWS = 4  # of a micro-batch
SHORTEST = 128  # tokens of a row; longer ones double it, so that few compile


def reward_of_folder(folder, *, dtype=None):
  """The function (prompts, responses) -> rewards of a reward model's folder.

  Args:
    folder: what `mrpo export` writes of a run with `policy.head="scalar"`, or
      any sequence classifier of one label that `hub.load` reads.
    dtype: floating type of the weights; None keeps that of the folder.

  Returns:
    f(prompts, responses): a float for each response.  Prompts are texts, or
    lists of messages that the tokenizer's chat template writes; responses are
    texts.  An InputError names the first that the model cannot be given.

  Raises:
    InputError: the folder holds no reward model.
  """
  config = hub.read_config(folder)
  if config.head != "scalar":
    raise InputError(
      f"{folder}: its model has no scalar head, so it gives no rewards; mrpo "
      "train with policy.head='scalar' makes one"
    )
  tokenizer = load_tokenizer(folder)
  _warn_of_padding(folder, config, tokenizer)
  # Read when it is first asked: models that answer come before.
  load = functools.cache(lambda: hub.load(folder, dtype=dtype)[1])
  step = jax.jit(functools.partial(packed.rewards, config), static_argnums=2)

  def rewards(prompts, responses):
    # A response that recurs has one reward: places in rows round apart.
    texts = zip(prompts, responses, strict=True)
    marks = [json.dumps(one) for one in texts]
    places = {mark: place for place, mark in enumerate(marks)}
    distinct, found = [*places.values()], []
    for first in range(0, len(distinct), BATCH):
      some = distinct[first : first + BATCH]
      encoded = _encoded(
        folder,
        config,
        tokenizer,
        [prompts[place] for place in some],
        [responses[place] for place in some],
      )
      found += _rewards(step, load(), encoded)
    known = dict(zip(places, found, strict=True))
    return [known[mark] for mark in marks]

  return rewards


def _warn_of_padding(folder, config, tokenizer):
  """Says where transformers reads the reward at another token."""
  pad = json.loads(config.source or "{}").get("pad_token_id")
  if pad is not None and pad in (config.eos_id, tokenizer.eos_token_id):
    logger.warning(
      f"warning: the padding token {pad} of {folder} also ends texts, so "
      "transformers reads the reward before a text's last such token; here it "
      "is read at the last token"
    )


def _encoded(folder, config, tokenizer, prompts, responses):
  """Encoded of each prompt with its response on the chosen side."""
  pairs = [
    PreferencePair(prompt, _as_turns(prompt, response), None)
    for prompt, response in zip(prompts, responses, strict=True)
  ]
  most = config.longest or config.max_positions
  encoded = [*encode_all(tokenizer, pairs, max_prompt=most, max_response=most)]
  sandbox.close()
  largest = (
    config.vocab_size if id_count(tokenizer) > config.vocab_size else None
  )
  for place, one in enumerate(encoded):
    problem = one.dropped
    if not problem and pack.size(one) > most:
      problem = f"is longer than the {most} tokens that {folder} takes"
    if (
      not problem
      and largest
      and max(*one.prompt_ids, *one.chosen_ids) >= largest
    ):
      problem = f"has a token that {folder} has no embedding for"
    if problem:
      shown = str(responses[place])[:40]
      raise InputError(f"{folder} gives {shown!r} no reward: {problem}")
  return encoded


def _as_turns(prompt, response):
  if isinstance(prompt, str):
    return response
  return [{"role": "assistant", "content": response}]


def _rewards(step, params, encoded):
  """Floats of at most BATCH Encoded."""
  longest = max(map(pack.size, encoded))
  length = max(SHORTEST, 2 ** math.ceil(math.log2(longest)))
  rows = pack.pack(encoded, length=length, rows=ROWS)
  reward_BC = sum(
    np.asarray(step(params, micro_batch(rows, a), BATCH), np.float64)
    for a in range(int(micro_batches(rows)))
  )
  return reward_BC[: len(encoded), 0].tolist()
