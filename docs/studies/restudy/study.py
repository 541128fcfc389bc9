# SPDX-License-Identifier: Apache-2.0
"""Weights of references: is one reference ahead of several, however weighed?

  python -m docs.studies.restudy --workdir=/tmp/restudy \
    --second=helpful.jsonl.gz --source="hh-rlhf, helpful-base, test.jsonl.gz"

writes `restudy.md` and `restudy.svg` one folder up, from 95 runs for each of
two pair sets: the embedded one, and a file of pairs that is named.  Without one
there is a single set, and no verdict.  Started again, it goes on where it was.
"""

import functools
from typing import NamedTuple

from docs.studies.grid.configs import Size, preferences
from docs.studies.grid.models import make_sharp, make_starts
from docs.studies.grid.pair_sets import with_validation
from docs.studies.grid.study import Study
from docs.studies.restudy.page import draw, page
from mrpo_jax.runs.config import read

ABOUT = __doc__.split("\n")[0]
REFERENCES = {"second": "sft-second", "sharp": "sharp"}  # beside the start
SHARP = 3  # what the third one's logits are multiplied by
CTRO = dict(epsilon_max=0.1, adaptive=True)


def _one(*weights):
  """DPO's loss, of a run with all references: so that texts are cut alike."""
  return dict(name="mrpo", weights=weights, clip=None, mixture="geometric")


def _multi(weights):
  return dict(name="multi_dpo", weights=weights)


def _mrpo(weights, clip=None):
  return dict(name="mrpo", weights=weights, clip=clip)


METHODS = {
  "dpo_base": _one(1.0, 0.0, 0.0),
  "dpo_second": _one(0.0, 1.0, 0.0),
  "dpo_sharp": _one(0.0, 0.0, 1.0),
  "arwc_mrpo": _mrpo("adaptive"),
  "vdw_multi": _multi("discrimination"),
  "vdw_mrpo": _mrpo("discrimination"),
  "vaw_multi": _multi("accuracy"),
  "vaw_mrpo": _mrpo("accuracy"),
  "window_multi": _multi("sliding_window"),
  "thompson": _multi(dict(name="thompson", prior=5.0)),
  "fixed_multi": _multi("uniform"),
  "vaw_mrpo_ctro": _mrpo("accuracy", CTRO),
  "arwc_mrpo_ctro": _mrpo("adaptive", CTRO),
}
# Per token as in the re-study, and sums as in MRPO.
VARIANTS = (
  *(("mean", method) for method in METHODS if method != "arwc_mrpo_ctro"),
  *(("sum", f"dpo_{name}") for name in ("base", *REFERENCES)),
  *(("sum", method) for method in ("vaw_multi", "vaw_mrpo", "vaw_mrpo_ctro")),
  ("sum", "arwc_mrpo_ctro"),
)


class Grid(NamedTuple):
  """What is varied, and what a run is made of."""

  variants: tuple = VARIANTS  # of (scale, method)
  seeds: tuple = (0, 1, 2, 3, 4)  # of the pairs' order, and of Thompson's draws
  batch: int = 50  # as in the re-study
  peak_lr: float = 1e-3  # the quickstart's leaves the policy as it was
  beta: float = 0.1  # per nat, or per nat and token, as in both papers
  judge_every: int = 3  # steps between two judgements of Thompson's arm
  max_tokens: int = 64  # of a prompt, and of a response
  row_length: int = 256

  def steps(self, pairs):
    """Those of one pass over so many pairs."""
    return max(pairs // self.batch, 1)


def study(grid=None):
  """The Study of a Grid."""
  grid = grid or Grid()
  return Study(
    name="restudy",
    variants=grid.variants,
    seeds=grid.seeds,
    make_models=make_models,
    config_of=functools.partial(config_of, grid=grid),
    page=functools.partial(page, grid),
    draw=functools.partial(draw, grid),
    pairs_of=with_validation,
  )


def make_models(workdir):
  make_starts(workdir)
  make_sharp(workdir, "sharp", SHARP)


def config_of(workdir, trial, *, grid):
  """The Config of a run."""
  scale, method = trial.variant
  size = Size(
    grid.steps(trial.pairs.pairs), grid.batch, grid.max_tokens, grid.row_length
  )
  models = {
    name: dict(path=f"{workdir}/models/{folder}")
    for name, folder in REFERENCES.items()
  }
  c = preferences(workdir, trial, size, models)
  c.data.validation = str(trial.pairs.validation)
  c.loss = dict(beta=grid.beta, scale=scale, **METHODS[method])
  c.optimizer.peak_lr = grid.peak_lr
  if method == "thompson":
    c.loss.weights = dict(METHODS[method]["weights"], seed=trial.seed)
    c.eval_every = grid.judge_every
  return read(c.to_dict())
