# SPDX-License-Identifier: Apache-2.0
"""The reward of a run's images: one that is shipped, or a user's function."""

import numpy as np

from mrpo_jax import external
from mrpo_jax.diffusion.rewards import REWARDS
from mrpo_jax.errors import InputError, did_you_mean

KEY = "config.drawn.reward"


class ImageReward:
  """(image_NHWX, class_N) -> reward_N, float64, whatever a user's one gives."""

  def __init__(self, name):
    """Looks a reward up.

    Args:
      name: of REWARDS, or "module:name" of a function, from the current folder
        or what is installed.

    Raises:
      InputError: there is none of that name.
    """
    self.name = name
    if name in REWARDS:
      self._function = REWARDS[name]
      return
    if not external.FUNCTION.fullmatch(name):
      raise InputError(
        f"{KEY}={name!r} is not known;{did_you_mean(name, REWARDS)} name one "
        f"of {', '.join(REWARDS)}, or module:name of a function"
      )
    takes = "images [N, height, width, channels] and their N classes"
    self._function = external.Function(name, flag=KEY, takes=takes).function

  def __call__(self, image_NHWX, class_N):
    """reward_N; InputError where the function fails, or gives other than it."""
    try:
      given = self._function(image_NHWX, class_N)
      reward_N = np.asarray(given, np.float64)
    except (Exception, SystemExit) as error:
      raise InputError(f"{KEY}={self.name}: {external.told(error)}") from None
    if reward_N.shape != class_N.shape:
      raise InputError(
        f"{KEY}={self.name}: for {len(class_N)} images it gives an array of "
        f"the shape {[*reward_N.shape]}; want [{len(class_N)}]"
      )
    if not np.isfinite(reward_N).all():
      place = int(np.argmin(np.isfinite(reward_N)))
      raise InputError(
        f"{KEY}={self.name}: the reward of an image is {reward_N[place]}; want "
        "a finite number"
      )
    return reward_N
