# SPDX-License-Identifier: Apache-2.0
"""Runs of the study of dispersion: what is varied, and the factor's mean."""

import functools
from typing import NamedTuple

import numpy as np

from docs.studies.grid.configs import Size, preferences
from docs.studies.grid.runs import Trial
from mrpo_jax import losses
from mrpo_jax.runs.config import read
from mrpo_jax.runs.score import ScorePlan
from mrpo_jax.runs.setup import set_up

METHODS = {
  "dpo": dict(name="dpo", beta=0.1),
  "simpo": dict(name="simpo", beta=2.0, gamma=1.0),
  "mrpo": dict(name="mrpo", beta=0.1),  # as published
}
SEVERAL = ("mrpo",)  # against the second reference, too
PLAIN, DISPERSED = "plain", "dispersed"


class Grid(NamedTuple):
  """What is varied, and what a run is made of."""

  methods: tuple = tuple(METHODS)
  seeds: tuple = (0, 1, 2, 3, 4)  # of the order of the pairs
  steps: int = 60
  batch: int = 16
  peak_lr: float = 3e-4
  max_tokens: int = 64  # of a prompt, and of a response
  row_length: int = 256


def config_of(workdir, trial, *, grid):
  """The Config of a run."""
  method, kind = trial.variant
  second = dict(path=f"{workdir}/models/sft-second")
  others = {"second": second} if method in SEVERAL else {}
  size = Size(grid.steps, grid.batch, grid.max_tokens, grid.row_length)
  c = preferences(workdir, trial, size, others)
  c.loss = dict(METHODS[method])
  c.optimizer.peak_lr = grid.peak_lr
  if kind == DISPERSED:
    factor_N = factors_of(workdir, trial.pairs, method, grid)
    # With the digits that a config has of it.
    c.loss.dispersion = float(f"{factor_N.mean():.4g}")
  return read(c.to_dict())


@functools.lru_cache
def factors_of(workdir, pairs, method, grid):
  """[pairs] -log dispersion of a method's training pairs under reference 0.

  Scores what the store lacks.
  """
  plain = Trial(pairs, (method, PLAIN), seed=0)
  config = config_of(workdir, plain, grid=grid)
  setup = set_up(config, workdir / "means" / plain.name)  # writes nothing
  plan = ScorePlan.of(setup, str(workdir / "store"), fresh=True)
  plan.fill()
  scores = plan.read("base", "train")
  share_PC = losses.normalised_entropy(
    scores.entropy_PC,
    scores.token_PC,
    vocab_size=setup.described["base"].model.config.vocab_size,
  )
  return np.asarray(losses.neg_log_dispersion(share_PC), float)
