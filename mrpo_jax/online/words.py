# SPDX-License-Identifier: Apache-2.0
"""Rewards of a response's words: how many there are, and which."""

import re

from mrpo_jax import files
from mrpo_jax.errors import InputError

WORD = re.compile(r"[^\W\d_]+")  # a run of letters
# Everyday words that are no grammar, for the word collector.
COLLECTED = tuple(
  "people time day work home place water food friend family school house book "
  "story music money city world morning night light hand good great long small "
  "new start learn help".split()
)


def collected(prompts, responses, *, words=COLLECTED, repeats=False):
  """How many of the given words a response holds (D2PO's word collector).

  A word is a run of letters, so that "book's" holds "book", and "books" does
  not; upper and lower case are one.  Each given word counts once, with
  repeats=True as often as it stands there.

  Source: 2405.01511, whose task has 30 words; these are others.
  """
  if isinstance(words, str):
    raise InputError(f"words={words!r} is one text; give a list of words")
  for word in words:
    if not isinstance(word, str) or not WORD.fullmatch(word.casefold()):
      raise InputError(f"words={word!r} is no run of letters")
  wanted = {word.casefold() for word in words}
  kind = list if repeats else set
  return [
    len([one for one in kind(letters(text)) if one in wanted])
    for text in responses
  ]


def letters(text):
  """The runs of letters in a text, in lower case."""
  return WORD.findall(text.casefold())


def length(prompts, responses, *, unit="words", cap=None):
  """How long a response is.

  Args:
    prompts: not looked at.
    responses: texts.
    unit: "words", which white space divides, or "characters" (code points).
    cap: what is longer counts as this much; None: no cap.
  """
  sizes = {"words": lambda text: len(text.split()), "characters": len}
  if unit not in sizes:
    raise InputError(f"unit={unit!r} is none of {', '.join(sizes)}")
  if cap is not None and not (files.is_figure(cap) and cap >= 0):
    raise InputError(f"cap={cap!r} must be a number from 0 up")
  found = [sizes[unit](text) for text in responses]
  return found if cap is None else [min(one, cap) for one in found]
