# SPDX-License-Identifier: Apache-2.0
"""Preference pairs of a policy's own responses, with where each came from."""

import collections
import dataclasses
import itertools
import math
from typing import ClassVar, NamedTuple

from mrpo_jax.data.encode import Encoded
from mrpo_jax.data.formats import PreferencePair
from mrpo_jax.data.truncate import Cut

CUT = "length"  # how a sample finished that had to end


@dataclasses.dataclass(frozen=True)
class Response:
  """What the policy said after a prompt."""

  text: str
  ids: list[int]  # the token that ended it included
  logp: list[float]  # of each under the policy that said it, nats
  behaviour_logp: list[float]  # of each under what it was drawn from, nats
  finish: str  # "stop", or "length" where it had to end


@dataclasses.dataclass(frozen=True)
class Answered:
  """A prompt and the responses to it."""

  index: int  # of the prompt in its file
  prompt: str | list  # text or messages
  ids: list[int]  # of the prompt
  responses: list[Response]


class Side(NamedTuple):
  """A response of a pair."""

  text: str
  ids: list[int]
  logp: float  # of all of them under the policy that said it, nats
  finish: str
  reward: float


@dataclasses.dataclass(frozen=True)
class Pair:
  """The better and the worse of two responses, and who says so."""

  FILE: ClassVar[str] = "pairs.jsonl"  # of a round

  index: int  # of the prompt in its file
  prompt: str | list
  prompt_ids: list[int]
  chosen: Side
  rejected: Side
  labelled_by: str

  def line(self, number):
    """The object of its line in the file of a round."""
    found = {
      "prompt": self.prompt,
      "chosen": self._turns(self.chosen),
      "rejected": self._turns(self.rejected),
      "prompt_ids": [*map(int, self.prompt_ids)],
      "labelled_by": self.labelled_by,
      "round": number,
      "index": self.index,
    }
    for name in ("chosen", "rejected"):
      side = getattr(self, name)
      found[f"{name}_ids"] = [*map(int, side.ids)]
      for figure in ("logp", "finish", "reward"):
        found[f"{name}_{figure}"] = getattr(side, figure)
    return found

  def _turns(self, side):
    if isinstance(self.prompt, str):
      return side.text
    return [{"role": "assistant", "content": side.text}]

  @classmethod
  def of(cls, line):
    """The Pair of such an object; KeyError or TypeError where it is none."""
    sides = [
      Side(
        _text(line[name]),
        *(line[f"{name}_{figure}"] for figure in Side._fields[1:]),
      )
      for name in ("chosen", "rejected")
    ]
    prompt = line["index"], line["prompt"], line["prompt_ids"]
    return cls(*prompt, *sides, line["labelled_by"])

  def encoded(self):
    """data.encode.Encoded of the very ids that the policy said."""
    return Encoded(
      self.prompt_ids,
      self.chosen.ids,
      self.rejected.ids,
      characters=(len(self.chosen.text), len(self.rejected.text)),
    )

  def cut(self):
    """data.truncate.Cut that leaves a response its missing end."""
    return Cut(
      chosen=len(self.chosen.text) if self.chosen.finish == CUT else None,
      rejected=len(self.rejected.text) if self.rejected.finish == CUT else None,
    )

  def texts(self):
    """PreferencePair for those that read it with another tokenizer."""
    return PreferencePair(
      self.prompt, self._turns(self.chosen), self._turns(self.rejected)
    )


def _text(side):
  return side if isinstance(side, str) else side[-1]["content"]


def pair_of(answered, rewards, labelled_by):
  """The Pair of the best and the worst response; None where they tie.

  Of several that are the best or the worst the first counts.

  Args:
    answered: Answered.
    rewards: of its responses.
    labelled_by: who gave them.
  """
  best, worst = rewards.index(max(rewards)), rewards.index(min(rewards))
  if rewards[best] == rewards[worst]:
    return None

  def side(place):
    one = answered.responses[place]
    logp = math.fsum(one.logp)
    return Side(one.text, one.ids, logp, one.finish, rewards[place])

  prompt = answered.index, answered.prompt, answered.ids
  return Pair(*prompt, side(best), side(worst), labelled_by)


# Figures of what was said.


def figures(answered):
  """{name: mean over responses} of what a policy said in a round.

  `length/mean` in tokens, `ended` the share that ended by itself, `distinct_2`
  the share of different ones among all pairs of neighbouring words (distinct-2
  of Li et al., arXiv:1510.03055); 1 where there are none.
  """
  said = [one for some in answered for one in some.responses]
  return {
    "length/mean": _mean([len(one.ids) for one in said]),
    "ended": _mean([one.finish == "stop" for one in said]),
    "distinct_2": distinct([one.text for one in said], 2),
  }


def distinct(texts, n):
  """The share of different ones among the n-grams of words of all texts."""
  grams = collections.Counter(
    itertools.chain.from_iterable(
      zip(*(words[i:] for i in range(n)), strict=False)
      for words in (text.casefold().split() for text in texts)
    )
  )
  return len(grams) / grams.total() if grams else 1.0


def reward_figures(rewards):
  """`reward/mean` and `reward/sd` of the rewards of a round's responses."""
  mean = _mean(rewards)
  variance = _mean([(one - mean) ** 2 for one in rewards])
  return {"reward/mean": mean, "reward/sd": math.sqrt(variance)}


def _mean(values):
  return math.fsum(values) / len(values)


def agreement(rewards, others):
  """How often one reward orders two responses as another does; of how many.

  Args:
    rewards: for each prompt the rewards of two responses.
    others: the same by another judge; where that one ties, it does not count,
      and a tie of the first is half right.

  Returns:
    (share, pairs that count); the share is 0 where none does.
  """
  right = []
  for (one, two), (first, second) in zip(rewards, others, strict=True):
    if first != second:
      right.append(
        0.5 if one == two else float((one > two) == (first > second))
      )
  return (_mean(right) if right else 0.0), len(right)
