# SPDX-License-Identifier: Apache-2.0
"""A small denoiser whose weights follow from formulas, and its images."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax.diffusion import denoiser, folder
from mrpo_jax.models import parameters

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SPEC = importlib.util.spec_from_file_location(
  "make_denoiser", GOLDEN / "make_denoiser.py"
)
made = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(made)


class Golden:
  """What make_denoiser.py has: shapes, weights, images, torch's figures."""

  config = denoiser.DenoiserConfig(**made.SIZES)
  beta, watched = made.BETA, made.WATCHED
  figures = np.load(GOLDEN / "denoiser.npz")

  @staticmethod
  def params(shift=0.0):
    table = denoiser.table(Golden.config)
    arrays = made.weights(made.shapes(), shift)
    assert {*arrays} == {*folder.named(table)}
    treedef = jax.tree.structure(table, is_leaf=parameters.is_spec)
    return jax.tree.unflatten(
      treedef, [jnp.asarray(arrays[name]) for name in folder.named(table)]
    )

  @staticmethod
  def images(count=5):
    """(image_BCHWX, noise_BHWX, time_B, class_B)."""
    return tuple(map(jnp.asarray, made.images(count)))


@pytest.fixture
def golden():
  return Golden
