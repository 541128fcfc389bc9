# SPDX-License-Identifier: Apache-2.0
"""Rank correlation of figures of items, with bootstrap intervals."""

import numpy as np

from mrpo_jax.errors import InputError
from mrpo_jax.evaluation.statistics import cluster_of, times_drawn

BLOCK = 2**18  # draws at a time, which fit a core's cache


def spearman(x_N, y_N):
  """Spearman's rank correlation; ties share the mean of their ranks.

  Args:
    x_N, y_N: [N] two figures of the same items, in any units.

  Returns:
    -1 to 1.

  Raises:
    InputError: they are not of the same items, one is not finite, or one has
      a single value: then nothing is correlated.

  Source: Spearman, 1904; ranks with ties as in Kendall, 1945.
  """
  (x_N,), y_N = _checked([x_N], y_N)
  once_1N = np.ones((1, len(y_N)))
  return float(_of_draws(x_N, _scores(y_N, once_1N), once_1N)[0])


def spearman_interval(
  x_RN,
  y_N,
  clusters_N=None,
  *,
  less_RN=None,
  seed=0,
  samples=10_000,
  level=0.95,
):
  """Percentile interval of the mean correlation over seeds: [low, high].

  Clusters of items and seeds are drawn as `statistics.paired_interval` draws
  them.  Each draw is ranked anew; one in which a figure has a single value
  counts as 0.

  Args:
    x_RN: [N], or [R, N] under R seeds.
    y_N: [N] the other figure.
    clusters_N: labels; items with the same one belong together.  None: each
      item is by itself.
    less_RN: of another method, like x_RN: the interval is then that of the
      difference of both correlations, on the same draws.
    seed: of the draws.
    samples: how often they are drawn.
    level: share of the draws that the interval holds.

  Raises:
    InputError: see `spearman`, or the labels are not one for each item.
  """
  x_RN, y_N = _checked(x_RN, y_N)
  sides = [(x_RN, 1.0)]
  if less_RN is not None:
    less_RN, _ = _checked(less_RN, y_N)
    if len(less_RN) != len(x_RN):
      raise InputError(f"{len(x_RN)} seeds against {len(less_RN)}")
    sides.append((less_RN, -1.0))
  cluster_N = cluster_of(clusters_N, len(y_N))
  clusters, seeds = int(cluster_N.max()) + 1, len(x_RN)
  rng = np.random.default_rng(seed)
  block, found = max(BLOCK // len(y_N), 1), []
  for first in range(0, samples, block):
    some = min(block, samples - first)
    times_SN = times_drawn(rng, some, clusters, clusters)[:, cluster_N]
    y_SN = _scores(y_N, times_SN)
    rho_SR = sum(
      sign * np.stack([_of_draws(x_N, y_SN, times_SN) for x_N in side_RN], 1)
      for side_RN, sign in sides
    )
    found.append(_over_seeds(rng, rho_SR, seeds))
  tail = (1 - level) / 2
  return np.quantile(np.concatenate(found), [tail, 1 - tail]).tolist()


def _over_seeds(rng, rho_SR, seeds):
  """[S] means over the seeds of each draw."""
  if seeds == 1:
    return rho_SR[:, 0]
  times_SR = times_drawn(rng, len(rho_SR), seeds, seeds - 1)
  return np.sum(rho_SR * times_SR, 1) / (seeds - 1)


def _checked(x_RN, y_N):
  x_RN = np.atleast_2d(np.asarray(x_RN, np.float64))
  y_N = np.asarray(y_N, np.float64)
  if x_RN.ndim != 2 or x_RN.shape[1:] != y_N.shape:
    raise InputError(
      f"a correlation is of two figures of the same items; got {x_RN.shape} "
      f"and {y_N.shape}"
    )
  for one_N in (*x_RN, y_N):
    if not np.isfinite(one_N).all():
      raise InputError("a correlation needs finite numbers; one is not")
    if len(np.unique(one_N)) < 2:
      raise InputError("a figure with a single value correlates with nothing")
  return x_RN, y_N


def _of_draws(x_N, y_SN, times_SN):
  """[S] correlations with `_scores`; item n stands times_SN[s, n] times."""
  return np.einsum("sn,sn,sn->s", times_SN, _scores(x_N, times_SN), y_SN)


def _scores(x_N, times_SN):
  """[S, N] ranks of a draw, less their mean, with a square sum of 1, or 0."""
  rank_SN = _ranks(x_N, times_SN)
  items_S1 = times_SN.sum(1, keepdims=True)
  rank_SN -= (items_S1 + 1) / 2  # the mean, ties or not
  spread_S = np.sqrt(np.einsum("sn,sn,sn->s", times_SN, rank_SN, rank_SN))
  rank_SN /= np.where(spread_S > 0, spread_S, 1.0)[:, None]
  return rank_SN


def _ranks(x_N, times_SN):
  """[S, N] ranks from 1; those of equal figures are their mean."""
  _, first_G, group_N = np.unique(
    np.sort(x_N), return_index=True, return_inverse=True
  )
  order_N = np.argsort(x_N, kind="stable")
  count_SG = np.add.reduceat(times_SN[:, order_N], first_G, axis=1)
  rank_SG = np.cumsum(count_SG, 1) - count_SG + (count_SG + 1) / 2
  rank_SN = np.empty_like(times_SN)
  rank_SN[:, order_N] = rank_SG[:, group_N]
  return rank_SN
