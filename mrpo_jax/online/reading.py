# SPDX-License-Identifier: Apache-2.0
"""Rewards of how easily a response reads: the Flesch-Kincaid grade, English."""

import re

from mrpo_jax.errors import InputError
from mrpo_jax.online.words import letters

# White space follows the stop of a sentence, so that 3.5 holds none; so does an
# empty line end one, as headings have no stop.
END = re.compile(r"[.!?]+[\"')\]]*(?:\s|$)|\n\s*\n")
VOWELS = re.compile(r"[aeiouy]+")
# An e that is not heard: make, makes, baked, safely; but table, boxes, wanted.
SILENT = re.compile(
  r"(?<=[^aeiouy])(?<![^aeiouy]l)e$"
  r"|(?<=[^aeiouycgsxzhl])es$|(?<=[aeiouy]l)es$"
  r"|(?<=[^aeiouytd])ed$"
  r"|(?<=[^aeiouy])e(?=(?:ly|less|ful|ty|ment|ments|ness)$)"
)
# Vowels beside each other that are heard apart: radio, diet, being, create.
APART = re.compile(
  r"(?<![cgstx])i[ao]|(?<!fr)ie(?=[nt])(?<![ct]ie)|(?<=sc)ie(?=n)"
  r"|e[ou](?=ms?$|s$)|iu(?=m)|[aeoy]ing|[ay]er|oe(?=m|t)|eo$"
  r"|(?<=cr)ea(?=t)|(?<=r)ea(?=[cl][tiu])|(?<![qg])ua(?!r|d)|uou|isms?$"
)
EXCEPTIONS = {
  **{"maybe": 2, "something": 2, "sometimes": 2, "someone": 2, "anyone": 3},
  **{"everything": 3, "idea": 3, "ideas": 3, "area": 3, "areas": 3},
  **{"recipe": 3, "recipes": 3, "business": 2, "familiar": 3, "opinion": 3},
}


def syllables(word):
  """How many syllables an English word has, by rule.

  Vowels that stand together are one syllable, but for some pairs; an e at the
  end is not heard, but in some places.  Of the words of HH's helpful and
  harmless answers, as they occur, 99.0 % have as many in the CMU dictionary.
  """
  if word in EXCEPTIONS:
    return EXCEPTIONS[word]
  count = len(VOWELS.findall(SILENT.sub("", word))) + len(APART.findall(word))
  return max(1, count)


def grade(prompts, responses):
  """The Flesch-Kincaid grade: the school year that a response asks for.

  0.39 words / sentences + 11.8 syllables / words - 15.59, lower is easier.  A
  word is a run of letters; a sentence ends with a stop and white space, or with
  an empty line.  A response without a word has grade 0.

  Source: Kincaid and others, 1975, Derivation of new readability formulas.
  """
  return [_grade(text) for text in responses]


def _grade(text):
  words = letters(text)
  if not words:
    return 0.0
  sentences = sum(bool(letters(one)) for one in END.split(text))
  heard = sum(map(syllables, words))
  return 0.39 * len(words) / sentences + 11.8 * heard / len(words) - 15.59


def readable(prompts, responses, *, easiest=4.0, hardest=9.0):
  """How easily a response reads, from 0 (hardest) to 1 (easiest).

  clip((hardest - grade) / (hardest - easiest), 0, 1); the defaults are HPO's
  auxiliary reward, clip((9 - grade) / 5, 0, 1) (2405.17956).
  """
  width = hardest - easiest
  if not 0 < width < float("inf"):
    raise InputError(f"easiest={easiest} is not below hardest={hardest}")
  return [
    min(max((hardest - one) / width, 0.0), 1.0)
    for one in grade(prompts, responses)
  ]
