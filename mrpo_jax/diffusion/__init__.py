# SPDX-License-Identifier: Apache-2.0
"""Diffusion models of images: denoisers, and preferences between images.

Axes, beside those of `mrpo_jax`; some letters mean something else here:

  H, W  height, width             M  draws of (time, noise) for a pair
  X     channels                  P  numbers of a patch
  T     patches of an image       N  sines of an angle, or parts of a modulation
"""
