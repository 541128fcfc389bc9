# SPDX-License-Identifier: Apache-2.0
"""Rewards of a trained reward model: its folder as a function of texts."""

import functools
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
from mrpo_jax.rows import micro_batch

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
  _, params = hub.load(folder, dtype=dtype)
  step = jax.jit(functools.partial(packed.rewards, config), static_argnums=2)

  def rewards(prompts, responses):
    found = []
    for first in range(0, len(responses), BATCH):
      some = slice(first, first + BATCH)
      encoded = _encoded(
        folder, config, tokenizer, prompts[some], responses[some]
      )
      found += _rewards(step, params, encoded)
    return found

  return rewards


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
    for a in range(len(rows.tokens_RT))
  )
  return reward_BC[: len(encoded), 0].tolist()
