# SPDX-License-Identifier: Apache-2.0
"""Images that a denoiser draws: samples, and pairs that a reward labels."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np

from mrpo_jax.data.images.pairs import ImagePairs
from mrpo_jax.data.images.write import quantised, write_pairs
from mrpo_jax.diffusion.sampling import Sampling, sample
from mrpo_jax.errors import InputError
from mrpo_jax.progress import Progress
from mrpo_jax.runs.diffusion.setup import drawn_files

logger = logging.getLogger(__name__)

BATCH = 256  # images that are drawn at once
CLASSES, NOISE = 1, 2  # streams of a seed


def draw(denoiser, params, seed, class_N, sampling, title="drawing"):
  """image_NHWX of these classes, on the host; image n follows from n alone.

  Args:
    denoiser: DenoiserConfig.
    params: its parameters.
    seed: of all images.
    class_N: int; the number of classes stands for none.
    sampling: sampling.Sampling.
    title: a word for the progress.
  """
  run = _compiled(denoiser, sampling)
  key, found = jax.random.key(seed), []
  with Progress(title, len(class_N), "images") as progress:
    for first in range(0, len(class_N), BATCH):
      # Rows of the last batch that nobody asked for keep its shape.
      number_B = np.arange(first, first + BATCH)
      class_B = class_N[np.minimum(number_B, len(class_N) - 1)]
      images = run(params, key, jnp.asarray(number_B), jnp.asarray(class_B))
      found.append(np.asarray(images)[: len(class_N) - first])
      progress.update(len(found[-1]))
  return np.concatenate(found)


@functools.lru_cache
def _compiled(denoiser, sampling):
  def drawn(params, key, number_B, class_B):
    return sample(denoiser, params, key, number_B, class_B, sampling)

  return jax.jit(drawn)


def draw_pairs(setup, params):
  """Draws the pairs of a run into W/pairs, and labels them.

  Both images of a pair are of one class; the reward says which is chosen.
  Images are kept with 8 bits, as their files have them, and so are trained on.

  Args:
    setup: DenoiserSetup.
    params: of the policy's start.

  Raises:
    InputError: the reward is no reward, or the same for every image.
  """
  given, paths = setup.config.drawn, drawn_files(setup.workdir)
  count = given.pairs + given.held_out
  class_N = _classes(setup, count)
  image_NCHWX = _images(setup, params, class_N)
  reward_NC = np.stack(
    [setup.reward(image_NCHWX[:, side], class_N) for side in (0, 1)], axis=1
  )
  ties = int((reward_NC[:, 0] == reward_NC[:, 1]).sum())
  if ties:
    logger.info(f"{ties} of {count} pairs are ties, and left out")
  parts = dict(train=slice(given.pairs), held_out=slice(given.pairs, count))
  for split, part in parts.items():
    _write(
      setup, paths[split], image_NCHWX[part], class_N[part], reward_NC[part]
    )


def _images(setup, params, class_N):
  """image_NCHWX: two of each class, as 8 bits have them."""
  config = setup.config
  seed = int(np.random.default_rng([config.seed, NOISE]).integers(2**31))
  image = draw(
    *(setup.denoiser, params, seed, np.repeat(setup.told(class_N), 2)),
    Sampling(steps=config.drawn.steps),
    title="drawing pairs",
  )
  return quantised(image).reshape(len(class_N), 2, *image.shape[1:])


def _write(setup, path, image_NCHWX, class_N, reward_NC):
  """The pairs with a better and a worse image as a file."""
  kept = np.flatnonzero(reward_NC[:, 0] != reward_NC[:, 1])
  if not kept.size:
    raise InputError(
      f"config.drawn.reward={setup.config.drawn.reward!r} gives both images of "
      f"every pair the same reward, so {path.name} would be empty"
    )
  best = reward_NC.argmax(axis=1)[kept]
  pairs = ImagePairs.of(
    image_NCHWX[kept, best], image_NCHWX[kept, 1 - best], class_N[kept]
  )
  columns = {
    "chosen_reward": reward_NC.max(axis=1)[kept],
    "rejected_reward": reward_NC.min(axis=1)[kept],
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  write_pairs(path, pairs, classes=setup.config.data.classes, columns=columns)


def _classes(setup, count):
  """class_N of so many pairs, -1 where the denoiser knows of none."""
  known = setup.denoiser.classes
  if not known:
    return np.full(count, -1, np.int32)
  rng = np.random.default_rng([setup.config.seed, CLASSES])
  return rng.integers(known, size=count).astype(np.int32)
