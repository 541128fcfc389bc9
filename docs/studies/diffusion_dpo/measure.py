# SPDX-License-Identifier: Apache-2.0
"""Measures of drawn digits: ink, what a classifier reads, distance to real."""

import functools
from typing import NamedTuple

import numpy as np

from mrpo_jax.data.images.labelled import load_images
from mrpo_jax.diffusion.rewards import ink


class Measures(NamedTuple):
  """Of drawn images; each a mean, or a distance, over all of them."""

  ink: float  # from 0 to 1
  read: float  # share that the classifier reads as the class that was asked
  distance: float  # squared MMD to held-out real images


class Judge:
  """An independent classifier of digits, and real ones to compare with.

  Attributes:
    accuracy: of the classifier on held-out real digits.
    between: squared MMD of real training images to held-out ones.
  """

  def __init__(self, classes):
    from sklearn.svm import SVC

    train, held_out = (
      load_images(f"digits:{split}", classes=classes)
      for split in ("train", "held_out")
    )
    self._real, self._class = _flat(held_out.image_NHWX), held_out.class_N
    self._svm = SVC(gamma=0.064, C=10.0)
    self._svm.fit(_flat(train.image_NHWX), train.class_N)
    self.accuracy = float((self._said(self._real) == self._class).mean())
    self._width = _median_distance(self._real)
    self.between = self._distance(_flat(train.image_NHWX), self._class >= 0)

  def __call__(self, image_NHWX, class_N, among=None):
    """Measures of images; `among` are the classes that count, None all."""
    kept_N = np.isin(class_N, class_N if among is None else among)
    image, asked = image_NHWX[kept_N], class_N[kept_N]
    real = np.isin(self._class, asked)
    return Measures(
      float(ink(image, asked).mean()),
      float((self._said(_flat(image)) == asked).mean()),
      self._distance(_flat(image), real),
    )

  def _said(self, flat_ND):
    return self._svm.predict(flat_ND)

  def _distance(self, flat_ND, real_N):
    return squared_mmd(flat_ND, self._real[real_N], self._width)


def squared_mmd(one_ND, other_MD, width):
  """Squared maximum mean discrepancy under exp(-|x - y|^2 / (2 width^2)).

  Without a pair of an image and itself, so that it is 0 in expectation where
  both are of one distribution, and may be a little below.

  Source: Gretton et al., Journal of Machine Learning Research 13, 2012,
  equation 3.
  """
  kernel = functools.partial(_kernel, width=width)
  N, M = len(one_ND), len(other_MD)
  own = (kernel(one_ND, one_ND).sum() - N) / (N * (N - 1))
  others = (kernel(other_MD, other_MD).sum() - M) / (M * (M - 1))
  return float(own + others - 2 * kernel(one_ND, other_MD).mean())


def _kernel(one_ND, other_MD, width):
  return np.exp(-_squared(one_ND, other_MD) / (2 * width**2))


def _squared(one_ND, other_MD):
  squares = (one_ND**2).sum(1)[:, None] + (other_MD**2).sum(1)[None]
  return np.maximum(squares - 2 * one_ND @ other_MD.T, 0.0)


def _median_distance(flat_ND):
  distance = np.sqrt(_squared(flat_ND, flat_ND))
  return float(np.median(distance[np.triu_indices(len(flat_ND), 1)]))


def _flat(image_NHWX):
  return np.asarray(image_NHWX, np.float64).reshape(len(image_NHWX), -1)
