# SPDX-License-Identifier: Apache-2.0
"""Statistics of an evaluation: bootstrap intervals, sign and McNemar's test.

Two models are compared on the same items: the difference of each item is what
is resampled.  Intervals of each model alone overlap long before the models
stop being different, so they rank nothing.
"""

import numpy as np

from mrpo_jax.errors import InputError

BLOCK = 2**22  # draws at a time, which bounds the memory: 32 MiB an array
DECIMALS = 9  # of a lead; beyond them is the rounding of its sum


def paired_interval(
  difference_RN, clusters_N=None, *, seed=0, samples=10_000, level=0.95
):
  """Percentile interval of the mean difference of items: [low, high].

  Clusters of items, prompts that repeat say, are drawn whole and with
  replacement, as many as there are (Field and Welsh, 2007).  Seeds are drawn
  too, the same ones for all items (the pigeonhole bootstrap, Owen, 2007): R - 1
  of R, so that the variance between them is not too small by (R - 1) / R
  (McCarthy and Snowden, 1985).

  Args:
    difference_RN: [N] of items, or values of one model for its own interval;
      or [R, N], the same items under R seeds, whose choice is uncertain, too.
    clusters_N: labels; items with the same one belong together.  None: each
      item is by itself.
    seed: of the draws.
    samples: how often the mean is drawn.
    level: share of those means that the interval holds.

  Raises:
    InputError: there is no item, a difference is not finite, or the labels are
      not one for each item.
  """
  difference_RN = np.atleast_2d(np.asarray(difference_RN, np.float64))
  if difference_RN.ndim != 2 or not difference_RN.size:
    raise InputError("an interval needs items; there are none")
  if not np.isfinite(difference_RN).all():
    raise InputError("an interval needs finite numbers; one is not")
  cluster_N = cluster_of(clusters_N, difference_RN.shape[1])
  size_C = np.bincount(cluster_N).astype(float)
  sum_CR = np.zeros((len(size_C), len(difference_RN)))
  np.add.at(sum_CR, cluster_N, difference_RN.T)
  rng = np.random.default_rng(seed)
  block = max(BLOCK // len(size_C), 1)
  means = [
    _means(rng, sum_CR, size_C, min(block, samples - first))
    for first in range(0, samples, block)
  ]
  tail = (1 - level) / 2
  return np.quantile(np.concatenate(means), [tail, 1 - tail]).tolist()


def cluster_of(labels, items):
  """[N] index of each item's cluster, in the order in which they appear.

  Args:
    labels: of the items; None: each item is by itself.
    items: how many there are.

  Raises:
    InputError: the labels are not one for each item.
  """
  if labels is None:
    return np.arange(items)
  if len(labels) != items:
    raise InputError(f"{len(labels)} labels of clusters for {items} items")
  place = {}
  return np.array([place.setdefault(one, len(place)) for one in labels], int)


def _means(rng, sum_CR, size_C, samples):
  """[S] means over what is drawn."""
  clusters, seeds = sum_CR.shape
  times_SC = times_drawn(rng, samples, clusters, clusters)
  mean_SR = times_SC @ sum_CR / (times_SC @ size_C)[:, None]
  if seeds == 1:
    return mean_SR[:, 0]
  return np.mean(mean_SR * times_drawn(rng, samples, seeds, seeds - 1), 1) * (
    seeds / (seeds - 1)
  )


def times_drawn(rng, samples, things, draws):
  """[S, T] how often each thing is drawn, with replacement."""
  drawn_SD = rng.integers(0, things, (samples, draws))
  drawn_SD += things * np.arange(samples)[:, None]
  counts = np.bincount(drawn_SD.ravel(), minlength=samples * things)
  return counts.reshape(samples, things).astype(float)


def mcnemar(right_N, other_N):
  """Exact two-sided p of McNemar's test: are two models right equally often?

  Items that both get right, or both wrong, say nothing; of the rest each is
  right on half if they are equally good: the binomial (McNemar, 1947).

  Args:
    right_N: [N] was the first model right?
    other_N: [N] was the other one, on the same items?

  Raises:
    InputError: they are not of the same items.
  """
  right_N, other_N = np.asarray(right_N, bool), np.asarray(other_N, bool)
  if right_N.shape != other_N.shape:
    raise InputError(
      f"McNemar's test compares the same items; got {right_N.size} and "
      f"{other_N.size}"
    )
  gained, lost = np.sum(right_N & ~other_N), np.sum(~right_N & other_N)
  n, least = int(gained + lost), int(min(gained, lost))
  log_factorial = np.cumsum(np.log(np.maximum(np.arange(n + 1.0), 1.0)))
  k = np.arange(least + 1)
  log_share = (
    log_factorial[n] - log_factorial[k] - log_factorial[n - k] - n * np.log(2)
  )
  return float(min(1.0, 2 * np.sum(np.exp(log_share))))


def sign_test(difference_N, clusters_N=None):
  """Exact two-sided p of the sign test: does one model lead as often?

  A cluster of items, a prompt that repeats say, counts once, by the sign of its
  sum: items of one prompt agree more than others, and counted one by one they
  give too small a p.  Where nothing repeats and differences are of right and
  wrong, this is McNemar's test.

  Args:
    difference_N: [N] of the first model less the other, of each item.
    clusters_N: labels; items with the same one belong together.  None: each
      item is by itself.

  Raises:
    InputError: the labels are not one for each item.
  """
  difference_N = np.asarray(difference_N, np.float64)
  lead_C = np.bincount(cluster_of(clusters_N, len(difference_N)), difference_N)
  lead_C = np.round(lead_C, DECIMALS)
  return mcnemar(lead_C > 0, lead_C < 0)
