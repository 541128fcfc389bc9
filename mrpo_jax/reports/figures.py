# SPDX-License-Identifier: Apache-2.0
"""Figures of a run on held-out pairs, with bootstrap intervals."""

import numpy as np

from mrpo_jax.evaluation.statistics import paired_interval

# Of a line, to tell how fast its step was.
NEEDED = ("pairs", "seconds", "tokens/real", "tokens/slots")
NEAR = 0.01  # nats, and share of a log-probability, which rounding may change


def result(runs, *, beta, lines=(), evaluated=None):
  """The figures of one run, or the mean of several of one config.

  Args:
    runs: for each of them the records of its held-out pairs, the same pairs.
    beta: the loss's own, per nat.
    lines: of its metrics.jsonl.
    evaluated: pairs that it evaluated; None: those of the records.

  Returns:
    dict; what the runs have no yardstick for is None: `accuracy`, `interval`
    (95 %, prompts drawn with all their pairs) and `margin` (times beta),
    `margin_nats` (without) are against reference 0; `policy_accuracy`,
    `policy_mean_accuracy` and their intervals are of the policy alone; `nll` is
    of chosen responses, nats per token.
    Of several runs `accuracy_sd` is the deviation between them.
  """
  margin_RN = _of_all(runs, reference_margins)
  alone_RN = _of_all(runs, policy_margins)
  mean_RN = _of_all(runs, policy_mean_margins)
  nll_RN = _of_all(runs, chosen_nll)
  prompts = prompts_of(runs[0])
  found = {
    **_ranked("", margin_RN, prompts),
    **_ranked("policy_", alone_RN, prompts),
    **_ranked("policy_mean_", mean_RN, prompts),
    "margin": _mean(margin_RN, beta),
    "margin_nats": _mean(margin_RN),
    "nll": _mean(nll_RN),
    "beta": beta,
    "held_out_pairs": len(runs[0]),
    "evaluated_pairs": len(runs[0]) if evaluated is None else evaluated,
    **_speed(lines),
  }
  if len(runs) > 1 and margin_RN is not None:
    found["accuracy_sd"] = float(np.std(np.mean(margin_RN > 0, 1), ddof=1))
  return found


def same_config(config):
  """A config without what may differ between seeds of one experiment."""
  return {k: v for k, v in config.items() if k not in ("seed", "identity")}


def _of_all(runs, margins):
  """[R, N] of all runs by the pairs of the first; None where one lacks them."""
  found = [margins(pairs) for pairs in runs]
  if any(one is None for one in found):
    return None
  return np.array([[one[pair] for pair in found[0]] for one in found])


def prompts_of(pairs):
  """What the prompt of each pair is known by; None where one is not."""
  prompts = [one.get("prompt") for one in pairs]
  return None if None in prompts else prompts


def _ranked(name, margin_RN, prompts):
  """Share of strictly positive margins and its interval; None for none."""
  if margin_RN is None:
    return {f"{name}accuracy": None, f"{name}interval": None}
  right_N = np.mean(margin_RN > 0, axis=0)  # over the runs
  return {
    f"{name}accuracy": accuracy(margin_RN),
    f"{name}interval": paired_interval(right_N, prompts),
  }


def _mean(value_RN, factor=1.0):
  return None if value_RN is None else float(factor * value_RN.mean())


# Of one run: {pair: nats}, or None where it has no such yardstick.


def reference_margins(pairs):
  """Log-ratio difference against reference 0."""
  if not _ranks(pairs) or not all(one["references"] for one in pairs):
    return None
  return {one["pair"]: margin(one) for one in pairs}


def margin(pair):
  """Log-ratio difference against reference 0, nats, of one record."""
  return _gap(pair["policy"]) - _gap(pair["references"][0])


def reference_apart(pairs, others):
  """Share of pairs that reference 0 of two runs scores otherwise.

  Another model does, or the same one where texts are cut elsewhere.

  Args:
    pairs, others: records of the two, of the same pairs.

  Returns:
    0 to 1; None where one of them has no reference.
  """
  if not all(one["references"] for one in (*pairs, *others)):
    return None
  there = {one["pair"]: one["references"][0] for one in others}
  apart = [
    not np.allclose(one["references"][0], there[one["pair"]], NEAR, NEAR)
    for one in pairs
  ]
  return float(np.mean(apart))


def policy_margins(pairs):
  """Difference of the policy's own log-probabilities; of rewards, if it has."""
  if not _ranks(pairs):
    return None
  what = "rewards" if _rewarded(pairs) else "policy"
  return {one["pair"]: _gap(one[what]) for one in pairs}


def policy_mean_margins(pairs):
  """The same per token; a reward model has none."""
  if not _ranks(pairs) or _rewarded(pairs):
    return None
  return {
    one["pair"]: _gap(np.array(one["policy"]) / np.array(one["tokens"]))
    for one in pairs
  }


def chosen_nll(pairs):
  """Negative log-likelihood of the chosen response, per token.

  Of single responses with labels, some of which are bad, there is none.
  """
  if _rewarded(pairs) or any("desirable" in one for one in pairs):
    return None
  return {one["pair"]: -one["policy"][0] / one["tokens"][0] for one in pairs}


def _ranks(pairs):
  """Were both responses scored?  A supervised run reads the chosen one."""
  return all(one["tokens"][1] for one in pairs)


def _rewarded(pairs):
  """Are they of a reward model?"""
  return any("rewards" in one for one in pairs)


def _gap(pair):
  return float(pair[0] - pair[1])


def _speed(lines):
  """Of the lines of metrics.jsonl; the first step holds the compilation.

  A step that took no time, by its line, has no speed.
  """
  lines = [line for line in lines if {*NEEDED} <= {*line}]
  rates = [
    line["pairs"] / line["seconds"] for line in lines[1:] if line["seconds"] > 0
  ]
  real, slots = (
    sum(line[f"tokens/{kind}"] for line in lines) for kind in ("real", "slots")
  )
  return {
    "pairs_per_second": float(np.median(rates)) if rates else None,
    "real_token_share": real / slots if slots else None,
  }


def accuracy(margin_N):
  """Share of strictly positive margins."""
  return float(np.mean(np.asarray(margin_N) > 0))
