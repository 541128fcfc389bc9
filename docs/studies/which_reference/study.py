# SPDX-License-Identifier: Apache-2.0
"""Second references: does one that is better, or other, help MRPO over DPO?

  python -m docs.studies.which_reference --workdir=/tmp/which_reference \
    --second=helpful.jsonl.gz --source="hh-rlhf, helpful-base, test.jsonl.gz"

writes `which_reference.md` and `which_reference.svg` one folder up, from 75
runs for each of two pair sets: the embedded one, and a file of pairs that is
named.  Without one there is a single set, and no verdict.  Started again, it
goes on where it was.
"""

import functools
from typing import NamedTuple

import jax

from configs import quickstart
from docs.studies.grid.configs import Size, preferences
from docs.studies.grid.models import make_model, make_starts
from docs.studies.grid.study import Study
from docs.studies.which_reference.page import draw, page
from docs.studies.which_reference.results import DPO, DPO_OF
from mrpo_jax import hub
from mrpo_jax.data.tokenizer import load_tokenizer
from mrpo_jax.models import parameters
from mrpo_jax.runs.config import read

ABOUT = __doc__.split("\n")[0]
SHAPES = {
  # 0.2 M parameters, and 3.2 M; the start has 1.0 M.
  "smaller": dict(layers=2, width=64, heads=2, kv_heads=1, mlp_width=176),
  "larger": dict(layers=6, width=192, heads=3, kv_heads=3, mlp_width=528),
}
# Of the start's own 40 steps of 5e-3 it comes out as the worse model.
LONGER = {"larger": dict(steps=120, peak_lr=3e-3)}
TUNED = dict(steps=60, peak_lr=1e-3)  # so that it knows its training pairs
FOLDERS = {  # where models of other names are
  "copy": "sft-base",
  "other": "sft-second",
  "mistokenised": "sft-base",
}
METHODS = {
  "uniform": dict(name="mrpo", weights="uniform"),
  "adaptive": dict(name="mrpo"),
  # Of a run with both references: a text is cut where it fits all tokenizers
  # of its run, so that one reference would leave other texts.
  DPO: dict(name="mrpo", weights=(1.0, 0.0), clip=None, mixture="geometric"),
}
# A copy with adaptive weights is the same run as with equal ones.
VARIANTS = tuple(
  (name, method)
  for name, first in DPO_OF.items()
  for method in METHODS
  if (name, method) != ("copy", "adaptive") and (method != DPO or name == first)
)


class Grid(NamedTuple):
  """What is varied, and what a run is made of."""

  variants: tuple = VARIANTS  # of (second reference, method)
  seeds: tuple = (0, 1, 2, 3, 4)  # of the pairs' order
  steps: int = 30  # of 64 pairs: the quickstart's, a pass over the first set
  batch: int = 64
  beta: float = 0.1  # per nat; DPO's usual value
  max_tokens: int = 64  # of a prompt, and of a response
  row_length: int = 256


def study(grid=None):
  """The Study of a Grid."""
  grid = grid or Grid()
  return Study(
    name="which_reference",
    variants=grid.variants,
    seeds=grid.seeds,
    make_models=make_models,
    config_of=functools.partial(config_of, grid=grid),
    page=functools.partial(page, grid),
    draw=functools.partial(draw, grid),
  )


def make_models(workdir):
  make_starts(workdir)
  models = workdir / "models"
  for name, shape in SHAPES.items():
    c = quickstart.get_config("sft-base")
    c.policy.new = dict(shape, tokenizer="bpe", vocab_size=2048)
    c.policy.tokenizer = str(models / "sft-base")  # so that texts are cut alike
    if name in LONGER:
      c.steps, c.optimizer.peak_lr = LONGER[name].values()
    make_model(workdir, name, c)
  c = quickstart.get_config(f"dpo,models={models}")
  c.steps, c.optimizer.peak_lr = TUNED.values()
  c.eval_every = c.checkpoint_every = 0
  make_model(workdir, "tuned", c)
  if not (models / "untrained").exists():
    config = hub.read_config(models / "sft-base")
    params = parameters.init(config, jax.random.key(1))
    tokenizer = load_tokenizer(models / "sft-base")
    hub.save(models / "untrained", config, params, tokenizer=tokenizer)


def config_of(workdir, trial, *, grid):
  """The Config of a run."""
  name, method = trial.variant
  models = workdir / "models"
  reference = dict(path=str(models / FOLDERS.get(name, name)))
  if name == "mistokenised":
    reference["tokenizer"] = str(models / "sft-second")
  size = Size(grid.steps, grid.batch, grid.max_tokens, grid.row_length)
  c = preferences(workdir, trial, size, {name: reference})
  c.loss = dict(beta=grid.beta, **METHODS[method])
  return read(c.to_dict())
