# SPDX-License-Identifier: Apache-2.0
"""Preference pairs of a policy's own responses, with where each came from."""

import collections
import dataclasses
import itertools
import math

from mrpo_jax.data.encode import Encoded
from mrpo_jax.data.formats import PreferencePair


@dataclasses.dataclass(frozen=True)
class Response:
  """What the policy said after a prompt."""

  text: str
  ids: list[int]  # the token that ended it included
  logp: float  # of all of them under the policy that said it, nats
  finish: str  # "stop", or "length" where it had to end


@dataclasses.dataclass(frozen=True)
class Answered:
  """A prompt and the responses to it."""

  index: int  # of the prompt in its file
  prompt: str | list  # text or messages
  ids: list[int]  # of the prompt
  responses: list[Response]


@dataclasses.dataclass(frozen=True)
class Pair:
  """The better and the worse of two responses, and who says so."""

  answered: Answered
  chosen: Response
  rejected: Response
  chosen_reward: float
  rejected_reward: float
  labelled_by: str

  def line(self, number):
    """The object of its line in the file of a round."""
    return {
      "prompt": self.answered.prompt,
      "chosen": self._turns(self.chosen.text),
      "rejected": self._turns(self.rejected.text),
      "prompt_ids": [*map(int, self.answered.ids)],
      "chosen_ids": [*map(int, self.chosen.ids)],
      "rejected_ids": [*map(int, self.rejected.ids)],
      "chosen_logp": self.chosen.logp,
      "rejected_logp": self.rejected.logp,
      "chosen_finish": self.chosen.finish,
      "rejected_finish": self.rejected.finish,
      "chosen_reward": self.chosen_reward,
      "rejected_reward": self.rejected_reward,
      "labelled_by": self.labelled_by,
      "round": number,
      "index": self.answered.index,
    }

  def _turns(self, text):
    if isinstance(self.answered.prompt, str):
      return text
    return [{"role": "assistant", "content": text}]

  @classmethod
  def of(cls, line):
    """The Pair of such an object; KeyError or TypeError where it is none."""
    chosen, rejected = (
      Response(
        _text(line[side]),
        line[f"{side}_ids"],
        line[f"{side}_logp"],
        line[f"{side}_finish"],
      )
      for side in ("chosen", "rejected")
    )
    answered = Answered(
      line["index"], line["prompt"], line["prompt_ids"], [chosen, rejected]
    )
    rewards = line["chosen_reward"], line["rejected_reward"]
    return cls(answered, chosen, rejected, *rewards, line["labelled_by"])

  def encoded(self):
    """data.encode.Encoded of the very ids that the policy said."""
    return Encoded(
      self.answered.ids,
      self.chosen.ids,
      self.rejected.ids,
      characters=(len(self.chosen.text), len(self.rejected.text)),
    )

  def texts(self):
    """PreferencePair for those that read it with another tokenizer."""
    return PreferencePair(
      self.answered.prompt,
      self._turns(self.chosen.text),
      self._turns(self.rejected.text),
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
  return Pair(
    answered,
    answered.responses[best],
    answered.responses[worst],
    rewards[best],
    rewards[worst],
    labelled_by,
  )


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
