# SPDX-License-Identifier: Apache-2.0
"""Figures of a model on preference pairs: accuracy, margin, calibration.

A pair is ranked right where its margin, nats for the chosen response less those
for the rejected one, is above 0.
"""

import numpy as np

from mrpo_jax.evaluation.statistics import paired_interval, sign_test

BINS = 10  # of the confidence, from a half to one
GROUPS = ("chosen longer", "chosen shorter", "equally long")


def pair_figures(margin_N, mean_margin_N, token_NC, clusters_N, *, beta=None):
  """All figures of one model.

  Args:
    margin_N: nats, sums over the tokens of the responses.
    mean_margin_N: the same of each response's mean per token.
    token_NC: tokens of the chosen and the rejected responses.
    clusters_N: labels of the prompts.
    beta: of the loss, per nat of a log-ratio: beta times the margin is what
      the model takes for the log-odds of a preference.  None: not known.

  Returns:
    dict: `pairs`, `prompts`; `accuracy`, `margin` with their `interval` and
    `margin_interval`; `ties`, the pairs whose margin is 0, which are not right;
    `length_normalised`, the accuracy of the means, and its interval;
    `calibration`, see there, None without beta; `by_length`, the same of each
    of GROUPS that has pairs.
  """
  margin_N, mean_margin_N = np.asarray(margin_N), np.asarray(mean_margin_N)
  token_NC = np.asarray(token_NC)
  longer_N = np.sign(token_NC[:, 0] - token_NC[:, 1])
  by_length = {}
  for name, sign in zip(GROUPS, (1, -1, 0), strict=True):
    here = np.flatnonzero(longer_N == sign)
    if len(here):
      clusters = [clusters_N[n] for n in here]
      by_length[name] = _ranked(margin_N[here], mean_margin_N[here], clusters)
  return {
    **_ranked(margin_N, mean_margin_N, clusters_N),
    "calibration": None if beta is None else calibration(beta * margin_N),
    "by_length": by_length,
  }


def _ranked(margin_N, mean_margin_N, clusters_N):
  right, interval = _accuracy(margin_N, clusters_N)
  mean_right, mean_interval = _accuracy(mean_margin_N, clusters_N)
  return {
    "accuracy": right,
    "interval": interval,
    "margin": float(margin_N.mean()),
    "margin_interval": paired_interval(margin_N, clusters_N),
    "pairs": len(margin_N),
    "prompts": len(set(clusters_N)),
    "ties": int(np.sum(margin_N == 0)),
    "length_normalised": mean_right,
    "length_normalised_interval": mean_interval,
  }


def _accuracy(margin_N, clusters_N):
  right_N = margin_N > 0
  return float(right_N.mean()), paired_interval(right_N, clusters_N)


def calibration(margin_N):
  """How far sigmoid(margin) is from how often the model is right.

  Args:
    margin_N: log-odds, beta times nats.

  A model's confidence in the response that it ranks first is sigmoid(|margin|),
  from a half to one; it is right where that is the chosen one, and half right
  where the margin is 0.  The expected calibration error is the mean, over the
  pairs, of |accuracy - confidence| of each pair's bin (Guo et al., 2017).

  Returns:
    dict: `expected_error`; `bins`, for each that holds a pair its ends `from`
    and `to`, `pairs`, their mean `confidence` and `accuracy`.
  """
  margin_N = np.asarray(margin_N, np.float64)
  confidence_N = 1 / (1 + np.exp(-np.abs(margin_N)))
  right_N = (np.sign(margin_N) + 1) / 2
  edge_B = np.linspace(0.5, 1, BINS + 1)
  bin_N = np.minimum(((confidence_N - 0.5) * 2 * BINS).astype(int), BINS - 1)
  bins, error = [], 0.0
  for number in np.unique(bin_N):
    here = bin_N == number
    confidence, right = confidence_N[here].mean(), right_N[here].mean()
    error += here.mean() * abs(right - confidence)
    bins.append(
      {
        "from": float(edge_B[number]),
        "to": float(edge_B[number + 1]),
        "pairs": int(here.sum()),
        "confidence": float(confidence),
        "accuracy": float(right),
      }
    )
  return {"expected_error": float(error), "bins": bins}


def difference(margin_N, other_N, clusters_N):
  """One model less another on the same pairs.

  Returns:
    dict: `accuracy` and `margin`, the differences, with `interval` and
    `margin_interval`; `p` of the sign test on the accuracy of each
    prompt, `gained` and `lost`, the pairs that the first alone and the other
    alone ranks right.
  """
  margin_N, other_N = np.asarray(margin_N), np.asarray(other_N)
  right_N, other_right_N = margin_N > 0, other_N > 0
  gap_N = right_N.astype(float) - other_right_N
  return {
    "accuracy": float(gap_N.mean()),
    "interval": paired_interval(gap_N, clusters_N),
    "margin": float(np.mean(margin_N - other_N)),
    "margin_interval": paired_interval(margin_N - other_N, clusters_N),
    "p": sign_test(gap_N, clusters_N),
    "gained": int(np.sum(gap_N > 0)),
    "lost": int(np.sum(gap_N < 0)),
    "pairs": len(gap_N),
  }
