# SPDX-License-Identifier: Apache-2.0
"""Numbers of the study of second references: leads over DPO, pair weights."""

import functools

import numpy as np

from docs.studies.grid.results import mixture_margins, untrained
from mrpo_jax.reports import figures

DPO = "dpo"
# {second reference: with which one DPO's run has the same texts}: those of one
# tokenizer, and those of two.
DPO_OF = {
  **dict.fromkeys(("copy", "smaller", "larger", "tuned", "untrained"), "copy"),
  **dict.fromkeys(("other", "mistokenised"), "other"),
}
BETTER = ("larger", "tuned")
OTHER = ("other",)
BAD = ("untrained", "mistokenised")


def mixed(grid):
  """Variants that mix two references."""
  return [one for one in grid.variants if one[1] != DPO]


def lead(result, variant):
  """Difference to DPO in accuracy against the policy's start."""
  name, _ = variant
  return result.right(*variant) - result.right(DPO_OF[name], DPO)


def group_lead(grid, result, names):
  """The mean of `lead` over both methods and some references."""
  some = [one for one in mixed(grid) if one[0] in names]
  return np.mean([lead(result, one) for one in some], axis=0)


def statements(grid):
  """{statement: its lead, a function of Results}, of those that are run."""
  of = functools.partial(group_lead, grid)
  all_of_them = {
    "a better one helps": (BETTER, lambda result: of(result, BETTER)),
    "another one helps": (OTHER, lambda result: of(result, OTHER)),
    "a bad one harms": (BAD, lambda result: -of(result, BAD)),
    "a better one helps more than a bad one": (
      BETTER + BAD,
      lambda result: of(result, BETTER) - of(result, BAD),
    ),
  }
  there = {name for name, _ in mixed(grid)}
  return {
    text: lead_of
    for text, (names, lead_of) in all_of_them.items()
    if there.issuperset(names)
  }


def leads(grid):
  """{variant as text: its lead over DPO, a function of Results}."""
  return {
    " ".join(one): functools.partial(lead, variant=one) for one in mixed(grid)
  }


# What the virtual reference does to the gradient.


def pair_weight(margin, beta):
  """sigma(-beta h): what a pair's gradient is multiplied by, beside beta."""
  return 1 / (1 + np.exp(beta * margin))


def gradient(grid, result, variant):
  """Figures of the weights of held-out pairs, before and after training.

  Returns:
    dict: `start`, their deviation before a step, when DPO's are all 0.5;
    `right` and `wrong`, their means then over the pairs that the second
    reference ranks so, None where there are none; `end` and `dpo_end`, their
    deviation after training, and that in DPO's run; `correlation`, after
    training, with what the same policy's would be against its start alone;
    `more`, how much more the mean is than it then.
  """
  name, method = variant
  weights = "uniform" if method == "uniform" else "adaptive"
  of = functools.partial(mixture_margins, beta=grid.beta, weights=weights)
  weigh = functools.partial(pair_weight, beta=grid.beta)
  start_N = weigh(result.values(*variant, of=untrained(of)))[0]
  end_RN = weigh(result.values(*variant, of=of))
  alone_RN = weigh(result.values(*variant, of=figures.reference_margins))
  dpo_RN = weigh(result.values(DPO_OF[name], DPO, of=figures.reference_margins))
  is_right_N = result.values(*variant, of=second_margins)[0] > 0
  return {
    "start": start_N.std(),
    "right": _mean(start_N[is_right_N]),
    "wrong": _mean(start_N[~is_right_N]),
    "end": end_RN.std(axis=1).mean(),
    "dpo_end": dpo_RN.std(axis=1).mean(),
    "correlation": np.mean([*map(_correlation, end_RN, alone_RN)]),
    "more": (end_RN - alone_RN).mean(),
  }


def second_margins(pairs):
  """{pair: difference of the second reference's log-probabilities}."""
  return {
    one["pair"]: one["references"][1][0] - one["references"][1][1]
    for one in pairs
  }


def _mean(value_N):
  return float(value_N.mean()) if len(value_N) else None


def _correlation(one_N, other_N):
  return np.corrcoef(one_N, other_N)[0, 1]
