# SPDX-License-Identifier: Apache-2.0
"""Labels of single responses: true where a response is good, false where bad.

The rows of KTO: TRL's unpaired preferences, LLaMA-Factory's `kto_tag`.
"""

from mrpo_jax.data.reading import rankings, values
from mrpo_jax.errors import InputError

LABELS = ("label", "kto_tag")
# Of the other response of a pair, which then is no single one.
OTHER = ("rejected_response", "rejected_messages")
# Keys that judge a response, which alone is then no supervised one.
JUDGED = (*OTHER, *LABELS, "labels")
JUDGED += ("rating", "ratings", *rankings.ORDERS, "overall_score")
JUDGED += ("reward", "rewards", "votes", "upvotes", "downvotes", "is_safe")
JUDGED += ("desirable", "is_desirable", "is_good")
JUDGED += ("preference", "preferred", "is_preferred", "accepted")
JUDGED += ("helpfulness", "correctness", "coherence", "harmlessness")


def label(row, where):
  """True or False of a row's label; None where it has none.

  Raises:
    InputError: it is anything else, or two labels contradict each other.
  """
  given = {key: row[key] for key in LABELS if row.get(key) is not None}
  for key, value in given.items():
    if not isinstance(value, bool):
      shown = value if isinstance(value, int | float) else values.kind_of(value)
      raise InputError(
        f"{where}: {key} is {shown}, want true (a good response) or false"
      )
  if len(set(given.values())) > 1:
    raise InputError(
      f"{where}: {' and '.join(given)} contradict each other; give one"
    )
  return next(iter(given.values()), None)


def refuse_judged(row, beside, where):
  """InputError where a row's one response is judged, but by no label.

  Args:
    row: without nulls.
    beside: the key of the response.
    where: place of the row, in words.
  """
  names = {name.lower(): name for name in row}
  judged = [names[name] for name in JUDGED if name in names]
  if label(row, where) is not None and not {*OTHER} & {*judged}:
    return
  if judged:
    raise InputError(
      f"{where}: {judged[0]!r} stands beside {beside!r}: a response that is "
      "judged is no supervised one, and alone it is no pair; give a label, "
      "true or false, or leave the column out if the response is good"
    )
