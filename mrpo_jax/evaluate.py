# SPDX-License-Identifier: Apache-2.0
"""Held-out pairs: what the policy and each reference think of them."""

import dataclasses
import functools

import jax
import numpy as np

from mrpo_jax import train


@dataclasses.dataclass
class HeldOut:
  """Packed batches, kept on the host; references are scored once."""

  batches: list  # of (indices, views)
  places: list  # of each pair among those of the file
  objective: train.Objective
  place: object  # views on the host -> views on the mesh

  def __post_init__(self):
    self._policy = jax.jit(functools.partial(_policy, objective=self.objective))
    self._references = jax.jit(
      functools.partial(train.reference_logps, self.objective)
    )
    self._metrics = jax.jit(
      functools.partial(train.pair_metrics, self.objective)
    )
    self._ref_logps = None

  def __call__(self, params, references):
    """(means over all pairs, list of one dict per pair)."""
    if self._ref_logps is None:
      self._ref_logps = [
        self._references(references, self.place(views))
        for _, views in self.batches
      ]
    sums, pairs = {}, []
    for (indices, views), ref_logp_BCK in zip(
      self.batches, self._ref_logps, strict=True
    ):
      logp_BC, length_BC = self._policy(params, self.place(views))
      values = self._metrics(logp_BC, ref_logp_BCK, length_BC)
      kept = slice(len(indices))
      for name, value_B in values.items():
        total = np.sum(np.asarray(value_B, np.float64)[kept])
        sums[name] = sums.get(name, 0.0) + total
      places = [self.places[index] for index in indices]
      pairs += _records(places, logp_BC, ref_logp_BCK, length_BC)
    return {name: total / len(pairs) for name, total in sums.items()}, pairs


def _policy(params, views, *, objective):
  logp_BC = objective.policy.logps(params, views, objective.pairs)
  return logp_BC, train.response_lengths(objective, views)


def _records(places, logp_BC, ref_logp_BCK, length_BC):
  """One JSON-ready dict per real pair: sums, so that any margin follows."""
  policy, lengths = np.asarray(logp_BC), np.asarray(length_BC)
  no_reference = np.zeros((*policy.shape, 0), np.float32)
  references = (
    no_reference if ref_logp_BCK is None else np.asarray(ref_logp_BCK)
  )
  return [
    {
      "pair": place,
      "policy": policy[n].tolist(),
      "references": references[n].T.tolist(),  # [K][C]
      "tokens": lengths[n].astype(int).tolist(),
    }
    for n, place in enumerate(places)
  ]


def accuracy(margin_N):
  """Share of strictly positive margins."""
  return float(np.mean(np.asarray(margin_N) > 0))


def bootstrap_interval(value_N, *, seed=0, samples=10_000, level=0.95):
  """Percentile interval of the mean of value_N: [low, high]."""
  value_N = np.asarray(value_N, np.float64)
  rng = np.random.default_rng(seed)
  means = [
    value_N[rng.integers(0, len(value_N), len(value_N))].mean()
    for _ in range(samples)
  ]
  tail = (1 - level) / 2
  return np.quantile(means, [tail, 1 - tail]).tolist()
