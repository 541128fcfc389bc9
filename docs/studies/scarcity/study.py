# SPDX-License-Identifier: Apache-2.0
"""Scarce pairs: do several references help more, the fewer pairs there are?

  python -m docs.studies.scarcity --workdir=/tmp/scarcity \
    --second=helpful.jsonl.gz --source="hh-rlhf, helpful-base, test.jsonl.gz"

writes `scarcity.md` and `scarcity.svg` one folder up, from 150 runs for each of
two pair sets: the embedded one, and a file of pairs that is named.  Without one
there is a single set, and no verdict.  Started again, it goes on where it was.
"""

import functools
import math
from typing import NamedTuple

from docs.studies.grid.configs import Size, preferences
from docs.studies.grid.models import make_starts
from docs.studies.grid.study import Study
from docs.studies.scarcity.page import Told, draw, page
from mrpo_jax.runs.config import read

ABOUT = __doc__.split("\n")[0]
# The first is what the others are compared with; of the last three each leaves
# out one more of what was published.
METHODS = {
  # DPO's loss, of a run with both references: a text is cut where it fits all
  # tokenizers of its run, so that one reference would leave other texts.
  "dpo": dict(name="mrpo", weights=(1.0, 0.0), clip=None, mixture="geometric"),
  "multi_dpo": dict(name="multi_dpo", weights="uniform"),
  "mrpo_adaptive": dict(name="mrpo"),
  "mrpo_uniform": dict(name="mrpo", weights="uniform"),
  "mrpo_no_clip": dict(name="mrpo", weights="uniform", clip=None),
  "geometric": dict(
    name="mrpo", weights="uniform", clip=None, mixture="geometric"
  ),
}

TOLD = Told(
  title="Scarce pairs",
  study="scarcity",
  flags="",
  models="""\
The policy starts from the quickstart's supervised start (1.0 M parameters),
which is reference 0; reference 1 is its second one (0.5 M, another shape,
another tokenizer).  Both were trained on the chosen responses of the embedded
pairs.""",
  rate="""\
learning rate 1e-4 at its peak
(a tenth of the steps to warm up, then a cosine)""",
  size="""\
The models have a million parameters and train for seconds: this shows how the
methods differ on this machine's scale, not which is better for a large one.""",
)


class Grid(NamedTuple):
  """What is varied, and what a run is made of."""

  fractions: tuple = (0.01, 0.03, 0.1, 0.3, 1.0)
  methods: tuple = tuple(METHODS)
  seeds: tuple = (0, 1, 2, 3, 4)  # of which pairs, and of their order
  batch: int = 16  # a batch is not more than 1 % of the pairs
  least_steps: int = 30  # a pass over 1 % of the pairs is a single step
  beta: float = 0.1  # per nat; DPO's usual value
  max_tokens: int = 64  # of a prompt, and of a response
  row_length: int = 256

  def steps(self, fraction, pairs):
    """Those of one pass over that share of so many pairs, or the least."""
    batches = math.ceil(round(fraction * pairs) / self.batch)
    return max(self.least_steps, batches)

  @property
  def variants(self):
    return tuple(
      (fraction, method)
      for fraction in self.fractions
      for method in self.methods
    )


def study(grid=None):
  """The Study of a Grid."""
  grid = grid or Grid()
  return Study(
    name=TOLD.study,
    variants=grid.variants,
    seeds=grid.seeds,
    make_models=make_starts,
    config_of=functools.partial(config_of, grid=grid),
    page=functools.partial(page, grid, TOLD),
    draw=functools.partial(draw, grid),
  )


def config_of(workdir, trial, *, grid):
  """The Config of a run."""
  fraction, method = trial.variant
  steps = grid.steps(fraction, trial.pairs.pairs)
  size = Size(steps, grid.batch, grid.max_tokens, grid.row_length)
  second = dict(path=f"{workdir}/models/sft-second")
  c = preferences(workdir, trial, size, {"second": second})
  c.data.fraction = fraction
  c.loss = dict(beta=grid.beta, **METHODS[method])
  return read(c.to_dict())
