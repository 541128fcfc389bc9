# SPDX-License-Identifier: Apache-2.0
"""Pairs that are trained on as they are, but may not be meant so: counted."""

import logging

from mrpo_jax.data.chat import messages
from mrpo_jax.data.reading import dialogues, values

logger = logging.getLogger(__name__)


class Counts:
  """How many pairs have which oddity."""

  def __init__(self):
    self._pairs = self._ties = self._asking = self._repeating = 0

  def add(self, pair):
    """Looks at a PreferencePair."""
    self._pairs += 1
    self._ties += pair.is_tie
    sides = pair.chosen, pair.rejected or ""
    self._asking += any(map(dialogues.asks_again, sides))
    self._repeating += _one_repeats(pair)

  def say(self, where):
    """Says what there was, if anything."""
    if self._ties:
      logger.info(
        f"{where}: {self._ties} of {self._pairs} pairs give the chosen and the "
        "rejected response the same score, and are trained on as they stand; "
        "leave them out, if ties are not meant so"
      )
    if self._asking:
      logger.info(
        f"{where}: {self._asking} of {self._pairs} pairs have a turn of the "
        "user, the system or a tool within a response, which is trained on "
        "with it; give one answer each, if it is not meant so"
      )
    if self._repeating:
      logger.info(
        f"{where}: in {self._repeating} of {self._pairs} pairs one response "
        "alone begins with the prompt, and is trained on so; leave it out "
        "there, if it is no answer"
      )


def _one_repeats(pair):
  """Does one of two responses begin with all that the prompt asked last?"""
  if not pair.prompt or pair.rejected is None:
    return False
  said = messages.content(messages.as_turns_of("user", pair.prompt)[-1]).strip()
  firsts = [
    messages.content(messages.as_turns_of("assistant", side)[0]).strip()
    for side in (pair.chosen, pair.rejected)
  ]
  found = [one.startswith(said) for one in firsts]
  return values.is_phrase(said) and found[0] != found[1]
