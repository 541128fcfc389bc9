# SPDX-License-Identifier: Apache-2.0
"""Length: do losses against it keep a policy from growing longer or shorter?

  python -m docs.studies.length --workdir=/tmp/length \
    --second=helpful.jsonl.gz --source="hh-rlhf, helpful-base, test.jsonl.gz"

writes `length.md` and `length.svg` one folder up, from 25 runs for each of two
pair sets: the embedded one, and a file of pairs that is named.  Without one
there is a single set, and no verdict.  Started again, it goes on where it was.
"""

import functools
from typing import NamedTuple

from docs.studies.grid.configs import Size, preferences
from docs.studies.grid.models import make_starts
from docs.studies.grid.pair_sets import short_prompts
from docs.studies.grid.study import Study
from docs.studies.length.page import draw, page
from mrpo_jax import files
from mrpo_jax.runs.config import read

ABOUT = __doc__.split("\n")[0]
# With the choices of their papers; the first is what others are compared with.
METHODS = {
  "dpo": dict(name="dpo", beta=0.1),
  "sampo": dict(name="sampo", beta=0.1),
  "ld_dpo": dict(name="ld_dpo", beta=0.1),
  "simpo": dict(name="simpo", beta=2.0, gamma=1.0),
  "r_dpo": dict(name="r_dpo", beta=0.1, alpha=0.05),
}


class Grid(NamedTuple):
  """What is varied, and what a run is made of."""

  methods: tuple = tuple(METHODS)
  seeds: tuple = (0, 1, 2, 3, 4)  # of the order of pairs, and of samples
  steps: int = 60
  batch: int = 16
  peak_lr: float = 3e-4
  max_prompt: int = 64  # tokens
  max_response: int = 128  # tokens: enough that most are whole
  row_length: int = 384
  prompts: int = 64  # that the policy answers before and after training
  longest_prompt: int = 250  # characters


def study(grid=None):
  """The Study of a Grid."""
  grid = grid or Grid()
  return Study(
    name="length",
    variants=tuple((method,) for method in grid.methods),
    seeds=grid.seeds,
    make_models=make_starts,
    config_of=functools.partial(config_of, grid=grid),
    page=functools.partial(page, grid),
    draw=functools.partial(draw, grid),
  )


def config_of(workdir, trial, *, grid):
  """The Config of a run."""
  size = Size(grid.steps, grid.batch, row_length=grid.row_length)
  c = preferences(workdir, trial, size, {})
  c.data.max_prompt, c.data.max_response = grid.max_prompt, grid.max_response
  (method,) = trial.variant
  c.loss = dict(METHODS[method])
  c.optimizer.peak_lr = grid.peak_lr
  # The same draws for every method: by the run's seed, prompt and position.
  c.samples = dict(
    prompts=str(prompts_of(workdir, trial.pairs, grid)),
    max_new_tokens=grid.max_response,
    temperature=1.0,
  )
  return read(c.to_dict())


def prompts_of(workdir, pairs, grid):
  """The file of held-out prompts that all runs of a pair set answer."""
  path = workdir / "prompts" / f"{pairs.name}.jsonl"
  if not path.exists():
    some = short_prompts(pairs.held_out, grid.longest_prompt)[: grid.prompts]
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_lines(path, [{"prompt": prompt} for prompt in some])
  return path
