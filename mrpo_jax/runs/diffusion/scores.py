# SPDX-License-Identifier: Apache-2.0
"""Errors of references under the fixed noises of each pair, scored once."""

import functools
import hashlib
import json

import jax
import numpy as np
import safetensors
import safetensors.numpy

from mrpo_jax import files
from mrpo_jax.diffusion.step import scored
from mrpo_jax.errors import InputError
from mrpo_jax.hub.folder import whole
from mrpo_jax.progress import Progress
from mrpo_jax.runs.diffusion.held_out import batch_of

VERSION = 1  # of what is computed


def scored_errors(setup, pairs, references):
  """error_MNCK under M noises of N pairs, from the store or into it.

  Args:
    setup: DenoiserSetup.
    pairs: ImagePairs of training.
    references: {name: (identity, config, parameters)}.
  """
  store = setup.workdir / "store"
  columns = []
  for name, (identity, config, params) in references.items():
    about = {
      "version": VERSION,
      "reference": identity,
      "pairs": pairs.ids,
      "draws": setup.objective.draws,
      "seed": setup.objective.seed,
      "prediction": setup.denoiser.prediction,
      "schedule": setup.denoiser.schedule,
    }
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()
    path = store / f"errors-{digest[:16]}.safetensors"
    shape = setup.objective.draws, len(pairs.ids), 2
    if not path.exists():
      found = _score(setup, pairs, config, params, f"scoring references.{name}")
      _write(path, found, digest)
    columns.append(_read(path, digest, shape))
  return np.stack(columns, axis=-1)


def _score(setup, pairs, config, params, title):
  run = jax.jit(functools.partial(scored, setup.objective, config))
  size, count, found = setup.config.batch, len(pairs.ids), []
  with Progress(title, count, "pairs") as progress:
    for first in range(0, count, size):
      place_B = np.minimum(np.arange(first, first + size), count - 1)
      error_MBC = np.asarray(run(params, batch_of(setup, pairs, place_B)))
      found.append(error_MBC[:, : count - first])
      progress.update(found[-1].shape[1])
  return np.concatenate(found, axis=1)


def _content_sha256(array):
  return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _write(path, error_MNC, digest):
  path.parent.mkdir(parents=True, exist_ok=True)
  error_MNC = np.ascontiguousarray(error_MNC, np.float32)
  about = {"of": digest, "sha256": _content_sha256(error_MNC)}
  content = safetensors.numpy.save({"error_MNC": error_MNC}, about)
  files.write_atomically(path, content)


def _read(path, digest, shape):
  """error_MNC of a file; InputError where it is not what was written."""
  with whole(path), safetensors.safe_open(path, framework="np") as file:
    about, found = file.metadata() or {}, file.get_tensor("error_MNC")
  if about != {"of": digest, "sha256": _content_sha256(found)} or (
    found.shape != shape
  ):
    raise InputError(
      f"{path}: is not what was scored; remove it, and it is scored again"
    )
  return found
