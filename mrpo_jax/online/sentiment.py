# SPDX-License-Identifier: Apache-2.0
"""Rewards of a response's sentiment: VADER's compound score, English."""

import functools

from mrpo_jax.errors import InputError

try:
  from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
except ModuleNotFoundError as error:
  if error.name != "vaderSentiment":
    raise
  raise InputError(
    "sentiment needs vaderSentiment: pip install 'mrpo-jax[rewards]'"
  ) from None


@functools.cache
def _analyzer():
  return SentimentIntensityAnalyzer()  # reads its word list


def compound(prompts, responses):
  """VADER's compound score: -1, most negative, to 1, most positive.

  A response without a word of its list has 0.

  Source: Hutto and Gilbert, 2014, by the package vaderSentiment.
  """
  score = _analyzer().polarity_scores
  return [score(text)["compound"] for text in responses]
