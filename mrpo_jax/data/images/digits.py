# SPDX-License-Identifier: Apache-2.0
"""Handwritten digits that scikit-learn comes with: real images, at hand.

1,797 images of 8 x 8 pixels with 17 levels of grey, by 13 people: the test set
of E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI
Machine Learning Repository, 1998.
"""

import hashlib
import importlib.util

import numpy as np

from mrpo_jax.errors import InputError, did_you_mean

NAME = "digits"
SPLITS = ("train", "held_out")
CLASSES = tuple("0123456789")
SHARE = 6  # one image in so many is held out


def digits(split):
  """(image_NHWX, class_N) of the training or of the held-out digits.

  A hash of its pixels decides where an image is, so that this never moves, and
  equal images stay together.

  Args:
    split: "train" or "held_out".

  Returns:
    image_NHWX: float32 [N, 8, 8, 1], the levels 0, 1, ... 16 as exactly -1,
      -7/8, ... 1.
    class_N: int32, the digit.

  Raises:
    InputError: there is no such split, or no scikit-learn.
  """
  if split not in SPLITS:
    raise InputError(
      f"{NAME}: no such split {split!r};{did_you_mean(split, SPLITS)} there "
      f"are {' and '.join(f'{NAME}:{one}' for one in SPLITS)}"
    )
  if importlib.util.find_spec("sklearn") is None:
    raise InputError(
      "digits need the package scikit-learn: pip install 'mrpo-jax[diffusion]'"
    )
  from sklearn.datasets import load_digits

  found = load_digits()
  level_NHW = found.images.astype(np.uint8)
  taken_N = np.array([_split(level_HW) == split for level_HW in level_NHW])
  image_NHWX = level_NHW[taken_N, ..., None].astype(np.float32) / 8 - 1
  return image_NHWX, found.target[taken_N].astype(np.int32)


def _split(level_HW):
  number = int(hashlib.sha256(level_HW.tobytes()).hexdigest(), 16)
  return "train" if number % SHARE else "held_out"
