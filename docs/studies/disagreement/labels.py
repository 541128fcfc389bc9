# SPDX-License-Identifier: Apache-2.0
"""Human labels that say how far people disagree, and the pairs to score."""

import collections
import itertools
from typing import NamedTuple

import numpy as np

from mrpo_jax import files
from mrpo_jax.data.reading.row_files import rows_of
from mrpo_jax.errors import InputError

TIE = 0  # of a label; 1 and 2 say which response is better


class Item(NamedTuple):
  """What people judged: responses to one prompt."""

  prompt: str
  responses: tuple  # two, or four
  measures: dict  # name of a measure -> 0, people agree, to 1

  def rows(self):
    """Pairs of the responses, as rows of a preference file.

    Which one is called chosen does not matter: entropies are of each.
    """
    said = [[_turn("assistant", text)] for text in self.responses]
    for first, second in zip(said[::2], said[1::2], strict=True):
      yield {
        "prompt": [_turn("user", self.prompt)],
        "chosen": first,
        "rejected": second,
      }


class Labels(NamedTuple):
  """Items of one file."""

  title: str
  about: str  # what people did
  sha256: str
  measure: str  # the one that the verdict takes
  items: list

  @property
  def per_item(self):
    """Rows of an item."""
    return len(self.items[0].responses) // 2


def pandalm(path):
  """The Labels of PandaLM's human test set.

  Three people judge each pair: 1, 2, or 0 for a tie.  `disagreement` is the
  share of the three pairs of people who said otherwise; `undecided` is 1 less
  the size of the mean vote of +1, 0 and -1, so that three ties are undecided,
  though all agree.
  """

  def item(row):
    labels = [row[f"annotator{n}"] for n in (1, 2, 3)]
    prompt = "\n\n".join(filter(None, (row["instruction"], row["input"])))
    # A few responses are JSON booleans: text that was read as something else.
    texts = tuple(str(row[f"response{n}"]) for n in (1, 2))
    return Item(
      prompt,
      texts,
      {"disagreement": disagreement(labels), "undecided": undecided(labels)},
    )

  about = "Three people judge each pair of responses"
  return _labels("PandaLM", about, path, "disagreement", item)


def qa_feedback(path):
  """The Labels of the rankings of QA-Feedback.

  One person ranks four responses; `ties` is the share of their six comparisons
  without a preference.  It is how far that person was undecided: who else
  would say otherwise is not in the file.
  """

  def item(row):
    verdicts = row["preference"]
    ties = verdicts.count(TIE) / len(verdicts)
    return Item(row["question"], tuple(row["predictions"]), {"ties": ties})

  about = "One person ranks four responses to each question"
  return _labels("QA-Feedback", about, path, "ties", item)


def _labels(title, about, path, measure, item):
  items = []
  for where, row in rows_of(path):
    try:
      items.append(item(row))
    except (KeyError, TypeError, AttributeError) as error:
      raise InputError(
        f"{where}: no row of {title}: {type(error).__name__} {error}"
      ) from None
  if not items:
    raise InputError(f"{path}: there is no row of {title}")
  return Labels(title, about, files.sha256_of(path), measure, items)


def disagreement(labels):
  """Share of the pairs of people who gave different labels."""
  pairs = [*itertools.combinations(labels, 2)]
  return sum(one != other for one, other in pairs) / len(pairs)


def undecided(labels):
  """1 less the size of the mean vote, which is 0 for a tie."""
  votes = {TIE: 0, 1: 1, 2: -1}
  return 1 - abs(np.mean([votes[one] for one in labels]))


def counts(items, measure):
  """{value: items that have it}, in order of the values."""
  found = collections.Counter(
    round(float(one.measures[measure]), 3) for one in items
  )
  return dict(sorted(found.items()))


def _turn(role, content):
  return {"role": role, "content": content}
