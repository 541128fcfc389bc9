# SPDX-License-Identifier: Apache-2.0
"""Mismatched responses: beside each row's own response that of another prompt.

KTO estimates a divergence from them: how much likelier than under the reference
the policy finds what answers something else.
"""

import collections
import dataclasses

from mrpo_jax.data import source
from mrpo_jax.data.reading import dialogues
from mrpo_jax.errors import InputError


def with_mismatched(pairs, origin):
  """Pairs of a row's own response and, as the rejected one, another prompt's.

  Which one depends on the rows alone, neither on their order nor on a seed:
  they stand in a ring by a hash of their prompts, and each row is given the
  response of the one that is as far behind it as the largest number of rows of
  one prompt.  So every response is given once, plain texts to plain texts and
  conversations to conversations.

  Args:
    pairs: list of PreferencePair with one response each.
    origin: what they are from, in words.

  Raises:
    InputError: more than half of them have one prompt.
  """
  found = list(pairs)
  for is_text in (True, False):
    ring = [
      place
      for place, pair in enumerate(pairs)
      if isinstance(pair.prompt, str) is is_text
      and not dialogues.says_nothing(pair.chosen)  # which is dropped
    ]
    _fill(found, ring, origin)
  return found


def _fill(pairs, ring, origin):
  """Gives the pairs at these places each other's responses."""
  prompts = {place: source.prompt_id(pairs[place]) for place in ring}
  ids = {place: source.pair_id(pairs[place]) for place in ring}
  ring = sorted(ring, key=lambda place: (prompts[place], ids[place]))
  apart = max(collections.Counter(prompts.values()).values(), default=0)
  if 2 * apart > len(ring):
    raise InputError(
      f"{origin}: {apart} of {len(ring)} rows have one prompt, so that not "
      "every row can be given the response of another one, which kto_unpaired "
      "estimates its divergence from; apo_zero_unpaired has none"
    )
  responses = [pairs[place].chosen for place in ring]
  for place, response in zip(
    ring, responses[apart:] + responses[:apart], strict=True
  ):
    pairs[place] = dataclasses.replace(pairs[place], rejected=response)
