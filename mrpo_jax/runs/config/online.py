# SPDX-License-Identifier: Apache-2.0
"""The section of a config that trains on the policy's own responses."""

from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from mrpo_jax.errors import InputError
from mrpo_jax.external import TIMEOUT
from mrpo_jax.runs.config.section import (
  Count,
  Count32,
  NotNegative,
  Place,
  Positive,
  Section,
  Whole,
  Whole32,
  key,
)


class Discriminator(Section):
  """D2PO: a reward model that labels, and learns from the gold it is bought."""

  path: Place = key(
    "folder of a reward model to start from; policy: the policy's start with a "
    "head of zeros; empty: none",
    "",
  )
  buy: Whole32 = key("pairs that the reward labels at a time; 0: none ever", 4)
  every: Count32 = key("rounds between purchases", 1)
  choice: Literal["confidence", "random"] = key(
    "which pairs are bought: those that the discriminator tells apart least",
    "confidence",
  )
  passes: Whole32 = key("times over the pairs just bought; 0: it stays", 2)
  batch: Count = key("pairs in one of its steps", 16)
  peak_lr: Positive = key("its learning rate, which stays", 1e-4)


class Rollouts(Section):
  """What tokens of a response are worth, for the losses apa, awr and ppo."""

  gamma: Annotated[float, Ge(0), Le(1)] = key("discount of a token", 1.0)
  lam: Annotated[float, Ge(0), Le(1)] = key(
    "decay of the trace of generalised advantage estimation", 0.95
  )
  kl_penalty: NotNegative = key(
    "of a token's reward, times log policy / reference", 0.0
  )
  whiten: bool = key("are advantages whitened over a step's tokens?", True)


class Online(Section):
  """Rounds: the policy answers prompts, a reward labels, and it trains."""

  prompts: Place = key(
    "file of prompts, as mrpo generate takes them; empty: no online run",
    "",
  )
  reward: str = key(
    "what says which response is better: module:name, command:WORDS, the "
    "folder of a reward model, or difference:DIR,DIR",
    "",
  )
  reward_options: dict[str, Any] = key(
    "further keywords of the reward's function", {}
  )
  reward_timeout: Positive = key(
    "seconds that a reward's command may take for an answer", float(TIMEOUT)
  )
  rounds: Count32 = key("how many; they share the steps", 1)
  samples: Count = key(
    "responses to each prompt; the best and the worst are its pair", 2
  )
  passes: Count = key("times that a round's pairs are trained on", 1)
  temperature: Positive = key("of the samples", 1.0)
  top_k: Whole = key("likeliest tokens that are drawn from; 0: all", 0)
  top_p: Annotated[float, Gt(0), Le(1)] = key(
    "share of probability that is drawn from", 1.0
  )
  max_new_tokens: Count32 = key("tokens of a sample, at most", 64)
  min_new_tokens: Whole32 = key("tokens before a sample may end", 0)
  unended_penalty: NotNegative = key(
    "taken off the reward of a sample that had to end", 0.0
  )
  gold_budget: Whole32 = key(
    "pairs that the reward may label in the whole run; 0: any number", 0
  )
  measure: bool = key(
    "does the reward measure every sample, for figures alone, where the "
    "discriminator labels?",
    False,
  )
  discriminator: Discriminator
  rollouts: Rollouts

  @property
  def discriminates(self):
    """Does a discriminator label?"""
    return bool(self.discriminator.path)


def check_online(config):
  """Raises InputError where the section does not agree with the others."""
  online, data = config.online, config.data
  if not online.prompts:
    if online != Online.model_validate(Online.filled({})):
      raise InputError(
        "config.online.prompts is empty, so nothing would read the other keys "
        "of config.online: name a file of prompts, or leave them out"
      )
    if not data.train:
      raise InputError(
        "config.data.train is missing: name pairs to train on, or prompts in "
        "config.online.prompts"
      )
    return
  if not online.reward:
    raise InputError(
      "config.online.reward is empty: name what says which response is better"
    )
  of_pairs = ("train", "validation", "reference_weights", "weights", "unpair")
  for name in of_pairs:
    if getattr(data, name):
      raise InputError(
        f"config.data.{name} is of given pairs; config.online makes its own: "
        "leave it out"
      )
  if data.fraction != 1 or data.limit:
    raise InputError(
      "config.data.fraction and config.data.limit are of given pairs; "
      "config.online makes its own: leave them out"
    )
  for name, one in config.references.items():
    if one.mode != "online":
      raise InputError(
        f"config.references.{name}.mode={one.mode!r}: what the policy says "
        "anew has no scores; set it to 'online'"
      )
  _check_numbers(config)


def _check_numbers(config):
  """Raises InputError where numbers of rounds, steps and pairs disagree."""
  online, moves = config.online, config.rounds.count
  if config.steps % online.rounds:
    raise InputError(
      f"config.online.rounds={online.rounds} does not divide config.steps="
      f"{config.steps}"
    )
  if online.rounds % moves:
    raise InputError(
      f"config.rounds.count={moves} does not divide config.online.rounds="
      f"{online.rounds}: the reference moves between rounds of new pairs"
    )
  steps = config.steps // online.rounds
  if steps * config.batch % online.passes:
    raise InputError(
      f"config.online.passes={online.passes} does not divide the {steps} steps "
      f"of a round times config.batch={config.batch}"
    )
  if online.min_new_tokens > online.max_new_tokens:
    raise InputError(
      f"config.online.min_new_tokens={online.min_new_tokens} is more than "
      f"max_new_tokens={online.max_new_tokens}"
    )


def prompts_of_round(config, method):
  """How many prompts a round has: as many as pairs, fewer than rollouts.

  Args:
    config: Config with online.prompts.
    method: losses.Method of its loss.

  Raises:
    InputError: the numbers of the config do not agree with it.
  """
  online = config.online
  steps, samples = config.steps // online.rounds, online.samples
  many = steps * config.batch // online.passes
  if method.tokens is not None:
    if many % samples:
      raise InputError(
        f"config.online.samples={samples} does not divide the {many} rollouts "
        "of a round"
      )
    many //= samples
  elif samples < 2:
    raise InputError(
      "config.online.samples=1: a pair takes two responses, so it must be at "
      "least 2"
    )
  needed = online.rounds * many * samples / 2
  if online.gold_budget and not online.discriminates:
    if needed > online.gold_budget:
      raise InputError(
        f"config.online.gold_budget={online.gold_budget}, but the reward "
        f"labels {needed:,.0f} pairs in {online.rounds} rounds; make them "
        "fewer, or let config.online.discriminator.path label"
      )
  return many
