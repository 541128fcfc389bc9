# SPDX-License-Identifier: Apache-2.0
"""Evaluation on held-out pairs, under the policy and every reference."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from mrpo_jax import processes
from mrpo_jax.models import lora
from mrpo_jax.progress import Progress, stage
from mrpo_jax.training import train_state
from mrpo_jax.training.figures import (
  policy_figures,
  policy_parts,
  reference_figures,
  reference_logps,
  said_of_responses,
)
from mrpo_jax.training.metrics import pair_metrics, ranking, summary
from mrpo_jax.training.objective import Objective
from mrpo_jax.training.step import summed_figures


@dataclasses.dataclass
class HeldOut:
  """Packed batches, kept on the host; references that stay are run once."""

  batches: list  # of (indices, (views, given))
  file_indices: list  # of each pair, among those of its file
  objective: Objective
  to_mesh: Callable  # (views, given) on the host -> the same on the mesh
  # Of each pair, what its prompt is known by: pairs of one go together when
  # runs are compared.  None: the records lack it.
  prompts: list | None = None

  def __post_init__(self):
    self._policy = jax.jit(functools.partial(evaluated, self.objective))
    self._references = jax.jit(
      functools.partial(reference_figures, self.objective)
    )
    self._metrics = jax.jit(functools.partial(pair_metrics, self.objective))
    self._fixed = {}  # of each batch, what the references say
    self._compiled = False

  def __call__(self, state, base, references):
    """(means over all pairs, list of one dict per pair) of a TrainState.

    `base` is the policy's frozen weights; see `step.train_step`.
    """
    references = train_state.moved_references(state, base, references)
    if state.moving:
      self._fixed.clear()
    found, pairs = {}, []
    with Progress("evaluating", len(self.file_indices), "pairs") as progress:
      for n, (indices, _) in enumerate(self.batches):
        if self._compiled:
          figures, fixed = self._figures(n, state, base, references)
          progress.update(len(indices))
        else:
          with stage("compiling the evaluation and running its first batch"):
            figures, fixed = self._figures(n, state, base, references)
          progress.restart(len(indices))
          self._compiled = True
        values = processes.whole(
          self._metrics(state.method_state, figures, fixed)
        )
        for name, value_B in values.items():
          value_B = value_B.astype(np.float64)[: len(indices)]
          found.setdefault(name, []).append(value_B)
        unpaired = self.objective.method.unpaired
        records = _records(indices, figures, fixed, unpaired)
        pairs += [self._named(index, one) for index, one in records]
    found = {name: np.concatenate(parts) for name, parts in found.items()}
    means = summary(found, lambda value_N: float(np.mean(value_N)))
    return means | ranking(found), pairs

  def _named(self, index, record):
    """A record with which pair it is of, and of which prompt."""
    named = {"pair": self.file_indices[index]}
    if self.prompts is not None:
      named["prompt"] = self.prompts[index]
    return named | record

  def _figures(self, n, state, base, references):
    """(PolicyFigures, FixedFigures) of batch n, computed."""
    views, given = self.to_mesh(*self.batches[n][1])
    if n not in self._fixed:
      self._fixed[n] = self._references(references, views, given)
    fixed = self._fixed[n]
    figures = self._policy(
      references, base, state.params, state.seed, views, fixed
    )
    return jax.block_until_ready((figures, fixed))


def learned(objective, state, means):
  """The state, with what its method learns from an evaluation's means."""
  if not objective.method.learns:
    return state
  # Of the policy alone and per token, so that no weight enters it.
  accuracy = means["policy_mean/rewards/accuracies"]
  judge = jax.jit(objective.method.judge, static_argnames="K")
  K = len(objective.references)
  return state.replace(method_state=judge(state.method_state, accuracy, K=K))


def evaluated(objective, references, base, trained, seed, views, fixed):
  """PolicyFigures of a batch, without the dropout of an adapter."""
  # What a method draws is the same at every evaluation.
  key = jax.random.key(seed)
  figures_of = functools.partial(policy_figures, objective, references)
  parts = policy_parts(objective, views, fixed)
  params = lora.join(base, trained)
  return summed_figures(figures_of, params, parts, key)


def _of_own(value):
  """Of [B, C] or [B, C, K] what is of single responses, 0 beside them."""
  own = np.zeros_like(value)
  own[:, 0] = value[:, 0]
  return own


def _records(indices, figures, fixed, unpaired=False):
  """(index, JSON-ready dict) of real pairs: sums, of which margins follow.

  Of a reward model `rewards` stand where `policy` has log-probabilities.
  Single responses have their label, and 0 where a pair has its rejected one.
  """
  ref_logp_BCK = reference_logps(figures, fixed)
  policy, lengths, references = processes.whole(
    (said_of_responses(figures), fixed.length_BC, ref_logp_BCK)
  )
  if references is None:
    references = np.zeros((*policy.shape, 0), np.float32)
  what = "policy" if figures.reward_BC is None else "rewards"
  labels = [{}] * len(indices)
  if unpaired:
    good_B = processes.whole(fixed.desirable_B).tolist()
    labels = [{"desirable": good} for good in good_B]
    policy, lengths, references = map(_of_own, (policy, lengths, references))
  for n, index in enumerate(indices):
    yield (
      index,
      {
        what: policy[n].tolist(),
        "references": references[n].T.tolist(),  # [K][C]
        "tokens": lengths[n].astype(int).tolist(),
        **labels[n],
      },
    )
