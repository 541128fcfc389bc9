# SPDX-License-Identifier: Apache-2.0
"""Noise schedules, and what a denoiser may predict of a noisy image.

An image at time t, from 0 (clean) to 1 (noise), is

    noisy = signal(t) * image + noise_level(t) * noise

and every prediction is a fixed sum p * image + q * noise of the two, so that
any of them gives the others.  Small letters a and s stand for signal and noise
level.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

OFFSET = 0.008  # of the cosine schedule, as published


@dataclasses.dataclass(frozen=True)
class Schedule:
  """How much of an image and of noise there is at a time."""

  levels: Callable  # time -> (signal, noise level)
  time_of: Callable  # log(signal / noise level) -> time
  velocity: Callable  # time -> (p, q): derivatives of the two levels
  first: float  # the least time that is drawn
  last: float  # the greatest

  def half_log_snr(self, time):
    """log(signal / noise level), nats: half of the log of their SNR."""
    signal, level = self.levels(time)
    return jnp.log(signal) - jnp.log(level)


def _angle(time):
  return (time + OFFSET) / (1.0 + OFFSET) * (math.pi / 2)


START = math.cos(OFFSET / (1.0 + OFFSET) * (math.pi / 2))


def _cosine_levels(time):
  signal = jnp.cos(_angle(time)) / START
  return signal, jnp.sqrt(1.0 - jnp.square(signal))


def _cosine_time_of(half_log_snr):
  signal = jnp.sqrt(jax.nn.sigmoid(2.0 * half_log_snr))
  share = jnp.arccos(signal * START) / (math.pi / 2)
  return share * (1.0 + OFFSET) - OFFSET


def _cosine_velocity(time):
  signal, level = _cosine_levels(time)
  slope = -jnp.sin(_angle(time)) / START * (math.pi / 2) / (1.0 + OFFSET)
  return slope, -signal * slope / level


SCHEDULES = {
  # Nichol and Dhariwal, arXiv:2102.09672, equation 17; at time 1 nothing of an
  # image is left, and its prediction from noise would be a division by zero.
  "cosine": Schedule(
    _cosine_levels, _cosine_time_of, _cosine_velocity, 0.001, 0.995
  ),
  # Rectified flow: Liu, Gong and Liu, arXiv:2209.03003.
  "flow": Schedule(
    lambda time: (1.0 - time, time),
    lambda half_log_snr: jax.nn.sigmoid(-half_log_snr),
    lambda time: (-jnp.ones_like(time), jnp.ones_like(time)),
    0.001,
    0.999,
  ),
}

# What is predicted -> (Schedule, time) -> (p, q).
PREDICTIONS = {
  "epsilon": lambda schedule, time: (
    jnp.zeros_like(time),
    jnp.ones_like(time),
  ),
  "x0": lambda schedule, time: (jnp.ones_like(time), jnp.zeros_like(time)),
  # Salimans and Ho, arXiv:2202.00512.
  "v": lambda schedule, time: (
    -schedule.levels(time)[1],
    schedule.levels(time)[0],
  ),
  # The direction in which a noisy image moves: flow matching's target.
  "velocity": lambda schedule, time: schedule.velocity(time),
}


def wide(value_B, like):
  """A value per image with the axes of the images."""
  return value_B.reshape(value_B.shape + (1,) * (like.ndim - value_B.ndim))


def noised(schedule, image, noise, time_B):
  """The images at their times, of any axes after the first."""
  signal_B, level_B = SCHEDULES[schedule].levels(time_B)
  return wide(signal_B, image) * image + wide(level_B, image) * noise


def target(schedule, prediction, image, noise, time_B):
  """What a denoiser of that prediction should say."""
  p_B, q_B = PREDICTIONS[prediction](SCHEDULES[schedule], time_B)
  return wide(p_B, image) * image + wide(q_B, image) * noise


def parts(schedule, prediction, noisy, predicted, time_B):
  """(image, noise) that a prediction means for a noisy image.

  The two equations noisy = a x + s e and predicted = p x + q e, solved.
  """
  kind = SCHEDULES[schedule]
  a, s = (wide(one, noisy) for one in kind.levels(time_B))
  p, q = (wide(one, noisy) for one in PREDICTIONS[prediction](kind, time_B))
  determinant = a * q - s * p
  image = (q * noisy - s * predicted) / determinant
  noise = (a * predicted - p * noisy) / determinant
  return image, noise


def noise_per(schedule, prediction, time_B):
  """By how much the noise changes with a prediction, as `parts` has it.

  Its square turns squared errors of a prediction into those of the noise.
  """
  kind = SCHEDULES[schedule]
  a, s = kind.levels(time_B)
  p, q = PREDICTIONS[prediction](kind, time_B)
  return a / (a * q - s * p)
