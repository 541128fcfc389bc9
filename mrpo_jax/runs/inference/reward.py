# SPDX-License-Identifier: Apache-2.0
"""Rewards of trained models: their folders as functions of texts."""

import functools
import hashlib
import json
import logging
import os

import jax.numpy as jnp

from mrpo_jax.errors import InputError
from mrpo_jax.models import packed
from mrpo_jax.online.rewards import DIFFERENCE, reward_of
from mrpo_jax.runs.inference.response_scorer import ResponseScorer

logger = logging.getLogger(__name__)


class RewardModel:
  """The folder of a reward model as a function (prompts, responses) -> rewards.

  Attributes:
    script: SHA-256 of its config, weights and tokenizer, as rewards of other
      kinds have that of their program.
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
    self._folder = folder
    self._scorer = ResponseScorer(folder, packed.rewards, dtype=dtype)
    if self._scorer.config.head != "scalar":
      raise InputError(
        f"{folder}: its model has no scalar head, so it gives no rewards; mrpo "
        "train with policy.head='scalar' makes one"
      )
    self.script = self._scorer.fingerprint
    self._warn_of_padding()

  def __call__(self, prompts, responses):
    """A float for each response; see `ResponseScorer`."""
    return self._scorer(prompts, responses)

  def _warn_of_padding(self):
    """Says where transformers reads the reward at another token."""
    pad = json.loads(self._scorer.config.source or "{}").get("pad_token_id")
    ends = (self._scorer.config.eos_id, self._scorer.tokenizer.eos_token_id)
    if pad is not None and pad in ends:
      logger.warning(
        f"warning: the padding token {pad} of {self._folder} also ends texts, "
        "so transformers reads the reward before a text's last such token; "
        "here it is read at the last token"
      )


UNITS = ("mean", "sum")


class LikelihoodDifference:
  """How much likelier one language model finds a response than another.

      reward = log p_first(y | x) / |y|  -  log p_second(y | x) / |y|

  Each model reads the texts with its own tokenizer and template, and divides
  by its own count of tokens, of that response alone: neither padding nor what
  else is in a batch counts.  The end token counts, as in training.

  Attributes:
    script: SHA-256 of both models and tokenizers.

  Source: D2PO, arXiv:2405.01511: contrastive distillation, a large model less
  a small one; its code divides by the padded length.
  """

  def __init__(self, first, second, *, unit="mean", dtype=None):
    """Reads the configs; the weights are read when it is first asked.

    Args:
      first, second: folders of language models.
      unit: "mean", nats per token, or "sum", nats.
      dtype: floating type of the weights; None keeps those of the folders.

    Raises:
      InputError: a folder holds no language model, or there is no such unit.
    """
    if unit not in UNITS:
      raise InputError(f"unit={unit!r}; known: {', '.join(UNITS)}")
    step = functools.partial(_logp, mean=unit == "mean")
    self._scorers = [
      ResponseScorer(folder, step, what="log-probability", dtype=dtype)
      for folder in (first, second)
    ]
    for folder, one in zip((first, second), self._scorers, strict=True):
      if one.config.head != "tokens":
        raise InputError(
          f"{folder} is a reward model, which has no probabilities of tokens; "
          "give a language model"
        )
    marks = " ".join(one.fingerprint for one in self._scorers)
    self.script = hashlib.sha256(marks.encode()).hexdigest()

  def __call__(self, prompts, responses):
    """A float for each response, nats."""
    first, second = (one(prompts, responses) for one in self._scorers)
    return [a - b for a, b in zip(first, second, strict=True)]


def _logp(config, params, rows, pairs, *, mean):
  """value_BC: log-probability of every response, or its mean per token."""
  tokens = packed.token_figures(config, params, rows, pairs)
  logp_BC = packed.per_response(tokens["logp"], rows.slots_RM, pairs)
  if not mean:
    return logp_BC
  return logp_BC / jnp.maximum(packed.response_lengths(rows, pairs), 1.0)


def named_reward(text, **given):
  """`reward_of` with rewards of trained models; its other arguments."""
  return reward_of(
    text,
    of_folder=RewardModel,
    of_difference=LikelihoodDifference,
    **given,
  )


def rewards_of(config):
  """{name: reward} of config.data.rewards; InputError where one is none."""
  return {
    name: named_reward(
      one.reward,
      options=one.options,
      flag=f"config.data.rewards.{name}.reward",
      timeout=config.data.reward_timeout,
      timeout_flag="config.data.reward_timeout",
    )
    for name, one in config.data.rewards.items()
  }


def material_of(reward, options):
  """Key material of a reward's column: all that is known of its numbers.

  Of a trained model that is what its folders hold, wherever they are; of a
  program its name and the file of it.
  """
  name = reward.name
  if name.startswith(DIFFERENCE):
    name = "difference of likelihoods"
  elif os.path.isdir(name):
    name = "reward model"
  elif reward.script is None:
    logger.warning(
      f"warning: {name}: its program cannot be read, so that a changed one is "
      "not told from it; give it another name when it changes"
    )
  return {"reward": name, "script": reward.script, "options": dict(options)}
