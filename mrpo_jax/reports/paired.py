# SPDX-License-Identifier: Apache-2.0
"""Paired differences of runs: interval and test on the same held-out pairs."""

import numpy as np

from mrpo_jax.evaluation.statistics import paired_interval, sign_test
from mrpo_jax.reports import figures
from mrpo_jax.text import with_interval

# Figures of which the difference is that of shares of pairs ranked rightly.
RANKED = {
  "accuracy": figures.reference_margins,
  "policy_accuracy": figures.policy_margins,
  "policy_mean_accuracy": figures.policy_mean_margins,
}
MEANS = {
  "margin_nats": figures.reference_margins,
  "nll": figures.chosen_nll,
}

AGAINST = ("accuracy", "margin_nats")  # those that need the same reference 0
MOST = 0.5  # share of pairs on which it may score otherwise


def differences(series):
  """{label: its difference to the first series of the same data}.

  Where both have seeds in common, these are paired, and are what is uncertain
  beside the pairs; else each is the mean over its own seeds.

  Args:
    series: {label: list of Run, of other seeds}, in their order.

  Returns:
    dict for each but the firsts: `to`, label of the first; `pairs`, `prompts`
    (None: not known, then pairs are drawn one by one), `seeds`, those in
    common; and by figure `difference`, `interval` (95 %, paired bootstrap by
    prompt) and, of shares, `p` of the sign test by prompt for each seed.
    Where reference 0 of the two scores most pairs otherwise, there are no
    figures against it, and `reference_apart` is the share of those pairs.
  """
  firsts, found = {}, {}
  for label, runs in series.items():
    first = firsts.setdefault(runs[0].data, label)
    if first != label:
      found[label] = {"to": first, **_difference(runs, series[first])}
  return found


def _difference(runs, others):
  pairs = [one["pair"] for one in runs[0].pairs]
  prompts = figures.prompts_of(runs[0].pairs)
  by_seed = [{run.seed: run for run in some} for some in (runs, others)]
  seeds = [seed for seed in by_seed[0] if seed in by_seed[1]]
  found = {
    "pairs": len(pairs),
    "prompts": prompts and len(set(prompts)),
    "seeds": seeds,
  }
  shares = [
    figures.reference_apart(one.pairs, others[0].pairs) or 0.0
    for one in (*runs, *others[1:])
  ]
  is_apart = max(shares) > MOST
  if is_apart:
    found["reference_apart"] = max(shares)
  for figure, of in (RANKED | MEANS).items():
    if is_apart and figure in AGAINST:
      continue
    if figure == "nll" and len({run.tokenizer for run in runs + others}) > 1:
      continue  # nats a token of other tokens
    values = [_values(of, some, pairs) for some in by_seed]
    if any(one is None for one in values):
      continue
    if figure in RANKED:
      values = [{seed: v > 0 for seed, v in one.items()} for one in values]
    found[figure] = _compared(*values, seeds, prompts, ranked=figure in RANKED)
  return found


def _values(of, by_seed, pairs):
  """{seed: value_N} in the order of `pairs`; None where a run has none."""
  found = {seed: of(run.pairs) for seed, run in by_seed.items()}
  if any(one is None for one in found.values()):
    return None
  return {
    seed: np.array([one[pair] for pair in pairs]) for seed, one in found.items()
  }


def _compared(here, there, seeds, prompts, *, ranked):
  if seeds:
    difference_RN = np.array(
      [_number(here[seed]) - _number(there[seed]) for seed in seeds]
    )
  else:
    means = [np.mean([*one.values()], axis=0) for one in (here, there)]
    difference_RN = (means[0] - means[1])[None]
  found = {
    "difference": float(difference_RN.mean()),
    "interval": paired_interval(difference_RN, prompts),
  }
  if ranked and (seeds or len(here) == len(there) == 1):
    found["p"] = [
      sign_test(difference_N, prompts) for difference_N in difference_RN
    ]
  return found


def _number(value_N):
  return np.asarray(value_N, np.float64)


# As text.

HEADER = (
  "run",
  "accuracy [95 %]",
  "p",
  "margin [95 %]",
  "alone [95 %]",
  "nll [95 %]",
)
LEGEND = """\
differences are of the same pairs: intervals by paired bootstrap of prompts, or
of pairs where prompts are not known, and of seeds; p: exact sign test of
prompts (of pairs where none repeats or they are not known, which is McNemar's
test), of each seed, from the least to the largest.  [all agree]: each prompt
has the same mean, of which no interval follows.  Margins are in nats; nll is
compared under one tokenizer alone."""


def rows_of(found):
  """Rows of text below HEADER, of what `differences` gives of one first."""
  for label, one in found.items():
    yield (
      label,
      _text(one.get("accuracy"), "+.3f"),
      p_text(one),
      _text(one.get("margin_nats"), "+.3f"),
      _text(one.get("policy_accuracy"), "+.3f"),
      _text(one.get("nll"), "+.3f"),
    )


def size_text(one):
  """ "427 held-out pairs of 401 prompts, 3 seeds" of a difference."""
  text = f"{one['pairs']} held-out pairs"
  if one["prompts"] and one["prompts"] < one["pairs"]:
    text += f" of {one['prompts']} prompts"
  return f"{text}, {len(one['seeds'])} seeds" if len(one["seeds"]) > 1 else text


def _text(one, form):
  if one is None:
    return "-"
  return with_interval(one["difference"], one["interval"], form)


def not_compared(first, found):
  """A sentence for each that is not compared by what needs one reference 0."""
  for label, one in found.items():
    if share := one.get("reference_apart"):
      yield (
        f"{label}: accuracy and margin are not compared: reference 0 scores "
        f"{share:.0%} of the pairs otherwise than in {first}"
      )


def p_text(one):
  """p of each seed: the least and the largest; "-" where there is none.

  Of the accuracy against reference 0; of the policy alone where none has one.
  """
  figure = one.get("accuracy") or one.get("policy_accuracy") or {}
  if "reference_apart" in one:
    figure = {}
  found = sorted(figure.get("p") or ())
  if not found:
    return "-"
  least, largest = (f"{value:.2g}" for value in (found[0], found[-1]))
  return least if least == largest else f"{least} to {largest}"
