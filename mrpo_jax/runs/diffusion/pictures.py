# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a denoiser draws: a row for each class, as one PNG."""

import logging

import numpy as np

from mrpo_jax import files
from mrpo_jax.data.images.encoded import png
from mrpo_jax.data.images.pixels import to_levels
from mrpo_jax.diffusion.sampling import Sampling
from mrpo_jax.runs.diffusion.drawn import draw
from mrpo_jax.runs.workdir import PICTURES

logger = logging.getLogger(__name__)

LINE = 1  # pixels between images
LARGEST = 512  # pixels of the longer side, up to which sheets are enlarged


class Pictures:
  """Images of the policy in WORKDIR/pictures, always of the same noises."""

  def __init__(self, setup):
    self._setup, given = setup, setup.config.samples
    self._sampling = Sampling(given.solver, given.steps, given.guidance)
    classes = setup.denoiser.classes
    rows = np.arange(classes) if classes else np.array([-1])
    self._class_N = np.repeat(rows, given.each).astype(np.int32)

  def __call__(self, step, state):
    """{"samples/reward": mean} of the images, where there is a reward."""
    setup = self._setup
    told_N = setup.told(self._class_N)
    image_NHWX = draw(
      *(setup.denoiser, state.params, setup.config.seed, told_N),
      self._sampling,
    )
    path = setup.workdir / PICTURES / f"step-{step}.png"
    path.parent.mkdir(exist_ok=True)
    picture = sheet(image_NHWX, setup.config.samples.each)
    files.write_atomically(path, png(to_levels(picture, path)))
    logger.info(f"{len(image_NHWX)} images of step {step}: {path}")
    if setup.reward is None:
      return {}
    reward_N = setup.reward(image_NHWX, self._class_N)
    return {"samples/reward": float(reward_N.mean())}


def sheet(image_NHWX, columns):
  """Images in rows of so many, as one image [H, W, X]; enlarged, if small."""
  N, H, W, X = image_NHWX.shape
  rows = N // columns
  grid = np.full((rows, H + LINE, columns, W + LINE, X), 1.0, np.float32)
  cells = image_NHWX.reshape(rows, columns, H, W, X).swapaxes(1, 2)
  grid[:, LINE:, :, LINE:] = cells
  whole = grid.reshape(rows * (H + LINE), columns * (W + LINE), X)
  factor = max(1, LARGEST // max(whole.shape[:2]))
  return whole.repeat(factor, axis=0).repeat(factor, axis=1)
