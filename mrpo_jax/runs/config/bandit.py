# SPDX-License-Identifier: Apache-2.0
"""The config of a bandit: losses on a table of arms, at several betas."""

from typing import Annotated, Literal

from annotated_types import MinLen

from mrpo_jax.errors import InputError
from mrpo_jax.runs.config.section import (
  Count,
  Count32,
  Named,
  Positive,
  Section,
  key,
)
from mrpo_jax.runs.config.sections import (
  Loss,
  Names,
  Tracking,
  tracking_key,
)


class Links(Named):
  """The losses that are trained, by name."""

  each = Loss
  __pydantic_extra__: dict[str, Loss]
  names: Names = key("their order", ())


class Bandit(Section):
  """Arms with rewards, and the pairs of them that are compared."""

  lr: Positive = key("learning rate")
  average: Count = key("last steps over which the policy is averaged", 1)
  rewards: Annotated[tuple[float, ...], MinLen(1)] = key("reward of each arm")
  winners: Annotated[tuple[int, ...], MinLen(1)] = key(
    "arm that each pair prefers, counted from 1"
  )
  losers: Annotated[tuple[int, ...], MinLen(1)] = key("the other arm of each")
  betas: Annotated[tuple[Positive, ...], MinLen(1)] = key(
    "betas at which each loss is trained"
  )
  links: Links


class BanditConfig(Section):
  """A run that trains a table of arms; it has these keys alone."""

  # It draws nothing, takes a minute, and is scored at its end.
  seed: Literal[0] = key("draws nothing", 0)
  steps: Count32 = key("steps of gradient descent")
  batch: Count = key("pairs; each step sees all")
  log_every: Count = key("steps between lines of metrics.jsonl", 1)
  eval_every: Literal[0] = key("is scored at its end", 0)
  checkpoint_every: Literal[0] = key("takes a minute", 0)
  tracking: Tracking = tracking_key()
  bandit: Bandit

  def checked(self):
    """Itself, where its keys agree."""
    bandit = self.bandit
    arms, pairs = len(bandit.rewards), len(bandit.winners)
    for name in ("winners", "losers"):
      for pair, arm in enumerate(getattr(bandit, name)):
        if not 1 <= arm <= arms:
          raise InputError(
            f"config.bandit.{name}[{pair}] must be one of the {arms} arms, "
            f"counted from 1, got {arm}"
          )
    if len(bandit.losers) != pairs:
      raise InputError(
        f"config.bandit has {pairs} winners, but {len(bandit.losers)} losers"
      )
    for pair, both in enumerate(
      zip(bandit.winners, bandit.losers, strict=True)
    ):
      if len({*both}) == 1:
        raise InputError(
          f"config.bandit: pair {pair} has arm {both[0]} on both sides"
        )
    if len({*bandit.betas}) < len(bandit.betas):
      raise InputError(
        f"config.bandit.betas repeats a number: {[*bandit.betas]}"
      )
    _check_links(bandit.links)
    if self.batch != pairs:
      raise InputError(
        f"config.batch is {self.batch}, but every step of a bandit sees all of "
        f"its {pairs} pairs"
      )
    return self


def _check_links(links):
  if not links.names:
    raise InputError("config.bandit.links.names is empty: name a loss")
  for name, link in links.items():
    # One that has `betas` reads no other.
    for own in ("beta", "betas"):
      if own in link.keywords:
        raise InputError(
          f"config.bandit.links.{name}.{own} belongs into config.bandit.betas"
        )
    link.check(f"config.bandit.links.{name}")
