# SPDX-License-Identifier: Apache-2.0
"""Config of a study's run: the quickstart's, on the pairs of a trial."""

from typing import NamedTuple

from configs import quickstart


class Size(NamedTuple):
  """What a run takes, whatever is varied."""

  steps: int
  batch: int  # pairs in one optimizer step
  max_tokens: int = 64  # of a prompt, and of a response
  row_length: int = 256


def preferences(workdir, trial, size, references):
  """ConfigDict of a run from the quickstart's start; its loss is to be set.

  Args:
    workdir: of the study.
    trial: Trial.
    size: Size.
    references: {name: keys of a scored one}, after the policy's start, which is
      reference 0, named base.
  """
  c = quickstart.get_config(f"mrpo,models={workdir / 'models'}")
  c.seed, c.steps, c.batch = trial.seed, size.steps, size.batch
  c.data.train, c.data.eval = str(trial.pairs.train), str(trial.pairs.held_out)
  c.data.max_prompt = c.data.max_response = size.max_tokens
  c.data.row_length = size.row_length
  c.eval_every = c.checkpoint_every = 0  # once, at the end
  c.references = dict(
    names=("base", *references),
    base=dict(path="policy", mode="scored"),
    **{name: dict(mode="scored", **keys) for name, keys in references.items()},
  )
  return c
