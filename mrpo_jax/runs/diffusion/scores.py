# SPDX-License-Identifier: Apache-2.0
"""Errors of references under the fixed noises of each pair, scored once."""

import functools
import hashlib

import jax
import numpy as np

from mrpo_jax.diffusion.step import scored
from mrpo_jax.errors import StoppedRun
from mrpo_jax.progress import Progress
from mrpo_jax.references.errors import ErrorColumn
from mrpo_jax.runs.diffusion.held_out import batch_of

VERSION = 1  # of what is computed
BLOCK = 512  # pairs, about, that a file of the store has


def scored_errors(setup, pairs, references, store):
  """error_MNCK under M noises of N pairs, from the store or into it.

  Args:
    setup: DenoiserSetup.
    pairs: ImagePairs of training.
    references: {name: (identity, config, parameters)}.
    store: its folder, which runs may share.
  """
  columns = []
  for name, (identity, config, params) in references.items():
    column = ErrorColumn(store, _material(setup, pairs, identity))
    _fill(setup, pairs, column, config, params, f"scoring references.{name}")
    columns.append(column.read(len(pairs.ids)))
  return np.stack(columns, axis=-1)


def _material(setup, pairs, identity):
  """What errors depend on."""
  return {
    "version": VERSION,
    "weights": identity,
    "dtype": "float32",
    "pairs": hashlib.sha256("".join(pairs.ids).encode()).hexdigest(),
    "draws": setup.objective.draws,
    "seed": setup.objective.seed,
    "prediction": setup.denoiser.prediction,
    "schedule": setup.denoiser.schedule,
  }


def _fill(setup, pairs, column, config, params, title):
  """Scores the blocks of which the column lacks a pair.

  Blocks follow from the batch and the data, not from what is there: a gap is
  filled by the same batches, and so with the same bits.
  """
  run = jax.jit(functools.partial(scored, setup.objective, config))
  size, count = setup.config.batch, len(pairs.ids)
  block, known = size * -(-BLOCK // size), column.known()
  blocks = [range(n, min(n + block, count)) for n in range(0, count, block)]
  blocks = [places for places in blocks if not known.issuperset(places)]
  if blocks:
    column.begin()
  with Progress(title, sum(map(len, blocks)), "pairs") as progress:
    for places in blocks:
      found = []
      for first in places[::size]:
        place_B = np.minimum(np.arange(first, first + size), count - 1)
        error_MBC = np.asarray(run(params, batch_of(setup, pairs, place_B)))
        found.append(error_MBC[:, : places.stop - first])
        progress.update(found[-1].shape[1])
      error_MPC = np.concatenate(found, axis=1)
      if not np.isfinite(error_MPC).all():
        raise StoppedRun(f"{title}: an error is not finite")
      column.write(places, error_MPC)
