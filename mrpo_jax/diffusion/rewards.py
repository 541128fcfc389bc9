# SPDX-License-Identifier: Apache-2.0
"""Rewards of images: functions (image_NHWX, class_N) -> reward_N."""

import numpy as np


def ink(image_NHWX, class_N):
  """Mean of the pixels, from 0 (empty) to 1; the class counts for nothing."""
  del class_N
  return np.asarray(image_NHWX, np.float64).mean(axis=(1, 2, 3)) / 2 + 0.5


REWARDS = {"ink": ink}
