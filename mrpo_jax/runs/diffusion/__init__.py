# SPDX-License-Identifier: Apache-2.0
"""Runs that train denoisers: supervised, and on pairs of images."""

from mrpo_jax.runs.diffusion.train import train_run as train_run
