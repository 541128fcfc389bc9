# SPDX-License-Identifier: Apache-2.0
"""Scarce pairs on pretrained models: does a second reference help more there?

  bash launch/real.sh /tmp/mrpo_real
  python -m docs.studies.scarcity_pretrained --workdir=/tmp/scarcity \
    --real=/tmp/mrpo_real --second=helpful.jsonl.gz \
    --source="hh-rlhf, helpful-base, test.jsonl.gz"

writes `scarcity_pretrained.md` and its figure one folder up, from 8 runs for
each of two pair sets: the embedded one, and a file of pairs that is named; of
that folder it takes the models alone.  A run takes minutes on two cores.
Without a second set there is no verdict.  Started again, it goes on where it
was.
"""

import functools
import pathlib

from configs import real as pretrained
from docs.studies.grid.study import Study
from docs.studies.scarcity.page import Told, draw, page
from docs.studies.scarcity.study import METHODS, Grid
from mrpo_jax.errors import InputError
from mrpo_jax.runs.config import read

ABOUT = __doc__.split("\n")[0]
POLICY, SECOND = "smollm2", "gemma3"  # folders of launch/real.sh
GRID = Grid(
  fractions=(0.02, 0.2),
  methods=("dpo", "mrpo_adaptive"),
  seeds=(0, 1),
  batch=8,
  least_steps=24,  # those of launch/real.sh
  max_tokens=96,
  row_length=1024,
)
TOLD = Told(
  title="Scarce pairs on pretrained models",
  study="scarcity_pretrained",
  flags=" --real=DIR",
  models="""\
The policy is SmolLM2-135M-Instruct with a LoRA of rank 16, its start
reference 0; reference 1 is Gemma 3 270M, of another maker, with another shape
and tokenizer.  Both were published with 4-bit weights, and are read to float32
(`launch/real.sh`).  Prompts stand in each model's own chat template.""",
  rate="""\
learning rate 2e-4 at its peak (a tenth of the steps to warm up, then a
cosine)""",
  size="""\
Fewer fractions, methods and seeds than on [small models](scarcity.md), since a
run takes minutes.  The models have 135 and 270 million parameters: this does
not show which method is better for a large one.""",
)


def study(real, grid=GRID):
  """The Study of a Grid, with the models of the folder `real`."""
  models = pathlib.Path(real).absolute() / "models"
  return Study(
    name=TOLD.study,
    variants=grid.variants,
    seeds=grid.seeds,
    make_models=functools.partial(check_models, models),
    config_of=functools.partial(config_of, models=models, grid=grid),
    page=functools.partial(page, grid, TOLD),
    draw=functools.partial(draw, grid),
  )


def check_models(models, workdir):
  """Refuses a folder in which one of the two models is missing."""
  for name in (POLICY, SECOND):
    if not (models / name).is_dir():
      raise InputError(
        f"{models / name} is missing; bash launch/real.sh {models.parent} "
        "makes it"
      )


def config_of(workdir, trial, *, models, grid):
  """The Config of a run: that of `launch/real.sh`, on the pairs of a trial."""
  fraction, method = trial.variant
  c = pretrained.get_config(f"mrpo,models={models}")
  c.seed, c.batch = trial.seed, grid.batch
  c.steps = grid.steps(fraction, trial.pairs.pairs)
  c.data.train, c.data.eval = str(trial.pairs.train), str(trial.pairs.held_out)
  c.data.limit, c.data.fraction = 0, fraction
  c.data.max_prompt = c.data.max_response = grid.max_tokens
  c.data.row_length = grid.row_length
  c.eval_every = 0  # once, at the end
  del c.evaluation, c.samples
  c.loss = dict(beta=grid.beta, **METHODS[method])
  return read(c.to_dict())
