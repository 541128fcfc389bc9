# SPDX-License-Identifier: Apache-2.0
"""Noise schedules, and predictions that are turned into one another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax.diffusion import schedule
from mrpo_jax.diffusion.schedule import PREDICTIONS, SCHEDULES

TIMES = jnp.array([0.01, 0.3, 0.5, 0.8, 0.95])
EVERY = [(kind, name) for kind in SCHEDULES for name in PREDICTIONS]


def images(count):
  place = jnp.arange(count * 12.0)
  image = jnp.sin(1.7 * place).reshape(count, 2, 3, 2)
  return image, jnp.cos(2.3 * place).reshape(count, 2, 3, 2)


def test_cosine_by_hand():
  # cos(x)^2 / cos(x0)^2 of x = (t + .008) / 1.008 * pi / 2, by a calculator:
  # at .25 x is .4020485, so cos(.4020485)^2 / cos(.0124666)^2.
  signal, level = SCHEDULES["cosine"].levels(jnp.array([0.0, 0.25, 0.5, 0.75]))
  want = [1.0, 0.8470122, 0.4938436, 0.1442721]
  np.testing.assert_allclose(signal**2, want, rtol=2e-6)
  np.testing.assert_allclose(level**2, 1 - np.array(want), atol=1e-6)


def test_flow_by_hand():
  signal, level = SCHEDULES["flow"].levels(jnp.array([0.25]))
  assert (float(signal[0]), float(level[0])) == (0.75, 0.25)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_times_and_ratios_give_each_other(kind):
  one = SCHEDULES[kind]
  np.testing.assert_allclose(
    one.time_of(one.half_log_snr(TIMES)), TIMES, atol=1e-6
  )
  for end in (one.first, one.last):  # and neither end is out of reach
    assert np.isfinite(one.half_log_snr(jnp.float32(end)))


@pytest.mark.parametrize("kind", SCHEDULES)
def test_velocity_is_the_derivative(kind):
  one = SCHEDULES[kind]
  for part in (0, 1):
    slope = jax.vmap(jax.grad(lambda t, part=part: one.levels(t)[part]))(TIMES)
    np.testing.assert_allclose(one.velocity(TIMES)[part], slope, rtol=2e-4)


@pytest.mark.parametrize("kind,name", EVERY)
def test_a_prediction_gives_image_and_noise(kind, name):
  image, noise = images(len(TIMES))
  noisy = schedule.noised(kind, image, noise, TIMES)
  right = schedule.target(kind, name, image, noise, TIMES)
  found = schedule.parts(kind, name, noisy, right, TIMES)
  np.testing.assert_allclose(found[0], image, atol=3e-5)
  np.testing.assert_allclose(found[1], noise, atol=2e-4)


def test_targets_by_hand():
  image, noise, half = jnp.ones((1, 1)), 3 * jnp.ones((1, 1)), jnp.array([0.5])
  found = {
    name: float(schedule.target("flow", name, image, noise, half)[0, 0])
    for name in PREDICTIONS
  }
  # v is a e - s x = .5 * 3 - .5; the velocity e - x.
  assert found == {"epsilon": 3.0, "x0": 1.0, "v": 1.0, "velocity": 2.0}


@pytest.mark.parametrize("kind,name", EVERY)
def test_errors_of_one_prediction_are_those_of_the_noise(kind, name):
  image, noise = images(len(TIMES))
  noisy = schedule.noised(kind, image, noise, TIMES)
  wrong = schedule.target(kind, name, image, noise, TIMES) + 0.1
  _, seen = schedule.parts(kind, name, noisy, wrong, TIMES)
  factor = schedule.noise_per(kind, name, TIMES)
  want = 0.1 * np.abs(np.asarray(factor))
  miss = np.abs(np.asarray(seen - noise)).max(axis=(1, 2, 3))
  np.testing.assert_allclose(miss, want, rtol=2e-3)
