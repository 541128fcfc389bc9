# SPDX-License-Identifier: Apache-2.0
"""Win rates of one model against another, raw and controlled for length.

A preference is that of AlpacaEval: 1 where the first answer is better, 2 where
the second is, between them for a judge that is less certain; 1.5, or 0, is a
tie.  Figures are of the second model, the first one is the baseline.
"""

import math
from typing import NamedTuple

import numpy as np

from mrpo_jax.errors import InputError
from mrpo_jax.evaluation.statistics import cluster_of, mcnemar, paired_interval

FOLDS = 5
STRENGTHS = np.logspace(-4, 4, 10)  # of the data against the penalty
STEPS, PASSES, EXACT = 100, 1000, 1e-9  # of the fit; log-odds
DECIMALS = 9  # of a prompt's lead; beyond them is the rounding of its sum


def wins(preference_N):
  """[N] share of the win that the second answer takes; a tie is a half.

  Raises:
    InputError: a preference is neither 0 nor from 1 to 2.
  """
  preference_N = np.asarray(preference_N, np.float64)
  preference_N = np.where(preference_N == 0, 1.5, preference_N)
  wrong = ~((preference_N >= 1) & (preference_N <= 2))  # NaN, too
  if wrong.any():
    place = int(np.argmax(wrong))
    raise InputError(
      f"preference {place} is {preference_N[place]:g}; want 1 (the first is "
      "better) to 2 (the second is), or 0 for a tie"
    )
  return preference_N - 1


class Controlled(NamedTuple):
  """A win rate as if both models' answers were equally long."""

  win_rate: float
  interval: list  # 95 %
  slope: float  # of the log-odds, per tanh(difference / deviation)


def length_controlled(win_N, difference_N, clusters_N=None, *, seed=0):
  """AlpacaEval's length-controlled win rate, in its minimal form.

  A logistic regression on an intercept and tanh(difference / deviation), with
  an L1 penalty on both whose strength is chosen by the log loss on held-out
  folds, and read at no difference (Dubois et al., 2404.04475; their
  `length_controlled_minimal`: no difficulty of the instructions, no answers
  that are there to regularise).  The interval is that of the intercept, by the
  influence of each item on it.

  Args:
    win_N: see `wins`.
    difference_N: characters of the second answer less those of the first.
    clusters_N: labels; items with the same one stand in one fold.
    seed: of the interval's draws.

  Returns:
    Controlled; None where lengths explain nothing or everything: fewer than
    two items, or all of them with one difference that is not 0.

  Raises:
    InputError: lengths and wins are not of the same items.
  """
  win_N = np.asarray(win_N, np.float64)
  difference_N = np.asarray(difference_N, np.float64)
  if win_N.shape != difference_N.shape:
    raise InputError(
      f"{difference_N.size} differences of lengths for {win_N.size} items"
    )
  if len(win_N) < 2:
    return None
  deviation = difference_N.std(ddof=1)
  if not deviation and difference_N.any():
    return None
  difference_N = difference_N / (deviation or 1.0)
  feature_NF = np.stack([np.ones(len(win_N)), np.tanh(difference_N)], axis=1)
  cluster_N = cluster_of(clusters_N, len(win_N))
  strength = _strength(feature_NF, win_N, cluster_N)
  weight_F = _fit(feature_NF, win_N, strength)
  influence_N = _influence(feature_NF, win_N, weight_F)
  ends = paired_interval(weight_F[0] + influence_N, cluster_N, seed=seed)
  return Controlled(
    float(_share(weight_F[0])),
    _share(ends).tolist(),
    float(weight_F[1]),
  )


def _strength(feature_NF, win_N, cluster_N):
  """The one of STRENGTHS that predicts held-out folds best; first of equals."""
  folds = min(FOLDS, cluster_N.max() + 1)
  if folds < 2:
    return STRENGTHS[-1]
  loss_S = np.zeros(len(STRENGTHS))
  for fold in range(folds):
    out_N = cluster_N % folds == fold
    for s, strength in enumerate(STRENGTHS):
      weight_F = _fit(feature_NF[~out_N], win_N[~out_N], strength)
      logit_N = _logits(feature_NF[out_N], weight_F)
      loss_S[s] += _log_loss(logit_N, win_N[out_N]).mean()
  return STRENGTHS[np.argmin(loss_S)]


def _fit(feature_NF, win_N, strength):
  """[F] that minimises the L1 norm + strength * the sum of log losses.

  Newton steps on the smooth part, each with the penalty as it is.
  """
  penalty = 1 / (strength * len(win_N))

  def value(weight_F):
    loss_N = _log_loss(_logits(feature_NF, weight_F), win_N)
    return loss_N.mean() + penalty * np.abs(weight_F).sum()

  weight_F = np.zeros(feature_NF.shape[1])
  for _ in range(STEPS):
    slope_NF, hessian_FF = _derivatives(feature_NF, win_N, weight_F)
    # Far out the logistic is flat, and a step would have no end.
    hessian_FF += 1e-9 * np.eye(len(weight_F))
    slope_F = slope_NF.mean(0) - np.einsum("fg,g->f", hessian_FF, weight_F)
    step_F = _least(slope_F, hessian_FF, penalty, weight_F) - weight_F
    now = value(weight_F)
    while value(weight_F + step_F) > now and np.abs(step_F).max() > EXACT:
      step_F /= 2
    weight_F = weight_F + step_F
    if np.abs(step_F).max() <= EXACT:
      break
  return weight_F


def _least(slope_F, hessian_FF, penalty, start_F):
  """[F] that minimises a quadratic and the L1 norm, one at a time."""
  slopes, rows = slope_F.tolist(), hessian_FF.tolist()
  found = start_F.tolist()
  for _ in range(PASSES):
    moved = 0.0
    for f, row in enumerate(rows):
      others = sum(h * x for h, x in zip(row, found, strict=True))
      pull = slopes[f] + others - row[f] * found[f]
      new = -math.copysign(max(abs(pull) - penalty, 0.0), pull) / row[f]
      moved, found[f] = max(moved, abs(new - found[f])), new
    if moved <= EXACT / 10:
      break
  return np.array(found)


# einsum all along: matrix products as small as these wait for their threads.


def _logits(feature_NF, weight_F):
  return np.einsum("nf,f->n", feature_NF, weight_F)


def _log_loss(logit_N, win_N):
  return np.logaddexp(0, logit_N) - win_N * logit_N


def _derivatives(feature_NF, win_N, weight_F):
  """(each item's gradient of the log loss, the Hessian of their mean)."""
  share_N = _share(_logits(feature_NF, weight_F))
  slope_NF = (share_N - win_N)[:, None] * feature_NF
  spread_N = share_N * (1 - share_N) / len(win_N)
  hessian_FF = np.einsum("n,nf,ng->fg", spread_N, feature_NF, feature_NF)
  return slope_NF, hessian_FF


def _share(logit):
  return np.exp(-np.logaddexp(0, -np.asarray(logit)))


def _influence(feature_NF, win_N, weight_F):
  """[N] how far each item moves the intercept; their mean is 0."""
  slope_NF, hessian_FF = _derivatives(feature_NF, win_N, weight_F)
  row_F = np.linalg.pinv(hessian_FF, hermitian=True)[0]
  influence_N = -_logits(slope_NF, row_F)
  return influence_N - influence_N.mean()  # that of the penalty


def head_to_head(
  forward_N, backward_N=None, *, difference_N, clusters_N=None, seed=0
):
  """All figures of the second model against the first.

  Args:
    forward_N: preferences where the first model's answer stood first.
    backward_N: where the second model's did, of the same items; None: the
      judge sees one answer at a time, so that no order is.
    difference_N: characters of the second model's answer less the other's.
    clusters_N: labels of the prompts, where some repeat.
    seed: of the intervals' draws.

  Returns:
    dict.  `n` items, of which the second model has `wins`, `losses` and `ties`
    over both orders; `win_rate` and its `interval`; `p` of the exact sign test
    on prompts that are no tie; `order_bias`, how much more often than not the
    answer wins that stands first, from -1 to 1, its `order_bias_interval`, and
    `flips`, the share of items where the other answer wins in the other order;
    `length_controlled`, see there, its interval, None where it is not known,
    and `length_difference`, the mean.
  """
  win_N = forward_win_N = wins(forward_N)
  first_N, flipped_N = np.zeros(len(win_N)), np.zeros(len(win_N), bool)
  if backward_N is not None:
    backward_win_N = 1 - wins(backward_N)
    win_N = (forward_win_N + backward_win_N) / 2
    first_N = backward_win_N - forward_win_N
    flipped_N = (forward_win_N - 0.5) * (backward_win_N - 0.5) < 0
  cluster_N = cluster_of(clusters_N, len(win_N))

  def interval(value_N):
    return paired_interval(value_N, cluster_N, seed=seed)

  lead_C = np.round(np.bincount(cluster_N, win_N - 0.5), DECIMALS)
  controlled = length_controlled(win_N, difference_N, cluster_N, seed=seed)
  return {
    "n": len(win_N),
    "prompts": len(lead_C),
    "wins": int(np.sum(win_N > 0.5)),
    "losses": int(np.sum(win_N < 0.5)),
    "ties": int(np.sum(win_N == 0.5)),
    "win_rate": float(win_N.mean()),
    "interval": interval(win_N),
    "p": mcnemar(lead_C > 0, lead_C < 0),
    "order_bias": float(first_N.mean()),
    "order_bias_interval": interval(first_N),
    "flips": float(flipped_N.mean()),
    "length_controlled": controlled and controlled.win_rate,
    "length_controlled_interval": controlled and controlled.interval,
    "length_difference": float(np.mean(difference_N)),
  }
