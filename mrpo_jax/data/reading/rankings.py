# SPDX-License-Identifier: Apache-2.0
"""Several responses to a prompt, ranked or scored, as ordered pairs."""

import itertools
import math

from mrpo_jax.data.reading import values
from mrpo_jax.errors import InputError

RESPONSES, ORDERS = (
  ("responses", "completions", "outputs"),
  ("scores", "score", "ranks", "rank"),
)

# Columns of what each of two responses is worth, and of which is better.
WORTH = ("score", "rating", "reward", "avg_rating", "average_rating", "rank")
SIDES = tuple(
  f"{start}{join}{end}"
  for worth in WORTH
  for start, end in (("chosen", worth), (worth, "chosen"))
  for join in ("_", "-")
)
CHOICES = ("preference", "preferred", "winner", "choice", "label")
VERDICTS = (*SIDES, *(key.replace("chosen", "rejected") for key in SIDES))
VERDICTS += CHOICES


def ranked(row, where):
  """Responses and their scores, higher is better; None without such keys."""
  given = [key for key in RESPONSES if key in row]
  order = [key for key in ORDERS if key in row]
  if given and order:
    _refuse_second(row, given, where)
    responses = responses_of(row[given[0]], f"{where}: {given[0]}")
    scores = [_order(row, key, responses, where) for key in order]
    for key, other in zip(order[1:], scores[1:], strict=True):
      _refuse_contradiction(scores[0], other, f"{where}: {order[0]} and {key}")
    return responses, scores[0]
  if "completions" in row:
    return _scored_objects(row["completions"], f"{where}: completions")
  if "ranked" in row:
    best_first = responses_of(row["ranked"], f"{where}: ranked")
    return best_first, range(len(best_first), 0, -1)
  return None


def _refuse_second(row, given, where):
  """InputError where a row has two lists of responses that differ."""
  if "ranked" in row:
    given = [*given, "ranked"]
  if any(row[key] != row[given[0]] for key in given):
    raise InputError(f"{where}: {' and '.join(given)} are two; give one")


def _order(row, key, responses, where):
  """Numbers of a column of scores or ranks, higher is better."""
  scores = scores_of(row[key], responses, f"{where}: {key}")
  return [-score for score in scores] if "rank" in key else scores


def _refuse_contradiction(scores, others, where):
  for i, j in itertools.permutations(range(len(scores)), 2):
    if scores[i] > scores[j] and others[i] < others[j]:
      raise InputError(
        f"{where} contradict each other on responses {i + 1} and {j + 1}; a "
        "higher score is better, a lower rank is; give one of both"
      )


def _scored_objects(value, where):
  """UltraFeedback: each response is an object, with its score beside it."""
  if not isinstance(value, list | dict) or not all(
    isinstance(one, dict) for one in value if isinstance(value, list)
  ):
    return None
  responses, scores = (
    values.column(value, key, where) for key in ("response", "overall_score")
  )
  responses = responses_of(responses, f"{where}.response")
  return responses, scores_of(scores, responses, f"{where}.overall_score")


def ordered(responses, scores, where):
  """(better, worse) of every strictly ordered pair.

  Raises:
    InputError: of two responses each is better than the other: one stands
      twice, with another score.
  """
  scored = zip(responses, scores, strict=True)
  found = [
    (better, worse)
    for (better, high), (worse, low) in itertools.permutations(scored, 2)
    if high > low
  ]
  texts = {tuple(map(repr, pair)) for pair in found}
  if any((b, a) in texts for a, b in texts if a != b):
    raise InputError(
      f"{where}: a response stands twice, once better and once worse than "
      "another; leave one of both out"
    )
  return found


def refuse_verdict(row, where):
  """InputError where a column says that the rejected response is better."""
  for key, other, chosen, rejected in _worths(row):
    if (rejected < chosen) if "rank" in key else (chosen < rejected):
      raise InputError(
        f"{where}: {key} is {row[key]} and {other} is {row[other]}: the "
        "rejected response would be the better one; swap them, or leave the "
        "columns out"
      )
  for key in CHOICES:
    if isinstance(row.get(key), str) and row[key].strip().lower() == "rejected":
      raise InputError(
        f"{where}: {key!r} says that the rejected response is the better one; "
        "swap them, or leave the column out"
      )


def is_tie(row):
  """Do all columns that judge both responses say that they are equally good?"""
  found = [(a, b) for _, _, a, b in _worths(row) if a == a and b == b]
  return bool(found) and all(a == b for a, b in found)


def _worths(row):
  """(its column, the other's, what the chosen and the rejected one is worth)"""
  for key in SIDES:
    other = key.replace("chosen", "rejected")
    yield key, other, _worth(row.get(key)), _worth(row.get(other))


def _worth(value):
  """A number, also of a decimal or a text; NaN, which decides nothing, else."""
  if isinstance(value, bool):
    return math.nan
  try:
    return float(value)
  except (TypeError, ValueError, OverflowError):
    return math.nan


def responses_of(value, where):
  """The list of responses in a column; none may be empty."""
  return [
    values.as_text_or_turns(one, f"{where}[{i}]", empty=False)
    for i, one in enumerate(values.as_list(value, where))
  ]


def scores_of(value, responses, where):
  """The number of each response."""
  scores = values.as_list(value, where)
  if len(scores) != len(responses):
    raise InputError(
      f"{where} has {len(scores)} entries for {len(responses)} "
      "responses; give one each"
    )
  for i, score in enumerate(scores):
    number = isinstance(score, int | float) and not isinstance(score, bool)
    if not number or not -math.inf < score < math.inf:
      kind = score if number else values.kind_of(score)
      raise InputError(f"{where}[{i}] is {kind}, want a finite number")
  return scores
