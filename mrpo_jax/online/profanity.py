# SPDX-License-Identifier: Apache-2.0
"""Rewards of a response's profanity, by a linear model of its words, English.

The model is that of the package alt-profanity-check.
"""

from mrpo_jax.errors import InputError

try:
  import profanity_check
except ModuleNotFoundError as error:
  if error.name != "profanity_check":
    raise
  raise InputError(
    "profanity needs alt-profanity-check: pip install 'mrpo-jax[rewards]'"
  ) from None


def profane(prompts, responses):
  """The probability, 0 to 1, that a response is profane."""
  if not responses:  # which the model refuses
    return []
  return profanity_check.predict_prob(responses)


def clean(prompts, responses):
  """1 - `profane`, the larger the better: HPO's kind of safety (2405.17956)."""
  return [1.0 - one for one in profane(prompts, responses)]
