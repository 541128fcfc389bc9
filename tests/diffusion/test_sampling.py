# SPDX-License-Identifier: Apache-2.0
"""Samplers follow the flow that is known of a Gaussian, at their orders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax.diffusion import sampling
from mrpo_jax.diffusion.sampling import Sampling
from mrpo_jax.diffusion.schedule import SCHEDULES
from mrpo_jax.errors import InputError

MEAN, DEVIATION = 0.3, 0.5  # of images that are independent Gaussians


def see(kind, noisy, time):
  """(image, noise) in expectation, given a noisy pixel of such images."""
  a, s = kind.levels(time)
  variance = a**2 * DEVIATION**2 + s**2
  noise = s * (noisy - a * MEAN) / variance
  return (noisy - s * noise) / a, noise


def end(kind, noisy):
  """Where the flow ends: it keeps what a pixel is among all of its time."""
  (a, s), (a0, s0) = kind.levels(kind.last), kind.levels(kind.first)
  spread, spread0 = (
    jnp.sqrt(signal**2 * DEVIATION**2 + level**2)
    for signal, level in ((a, s), (a0, s0))
  )
  first = a0 * MEAN + spread0 * (noisy - a * MEAN) / spread
  return see(kind, first, kind.first)[0]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("solver,order", [("ddim", 1), ("dpm_solver_2", 2)])
def test_the_flow_of_a_gaussian(name, solver, order):
  with jax.enable_x64(True):
    kind, noisy = SCHEDULES[name], jnp.linspace(-2.0, 2.0, 9, dtype=float)

    def miss(steps):
      found = sampling.solve(
        kind, lambda x, t: see(kind, x, t), noisy, solver, steps
      )
      return float(jnp.abs(found - end(kind, noisy)).max())

    misses = [miss(steps) for steps in (40, 80, 160)]
    ratios = np.divide(misses[:-1], misses[1:])
    # Halving the steps halves, or quarters, what is missed.
    np.testing.assert_allclose(ratios, 2.0**order, rtol=0.25)
    assert misses[-1] < {1: 5e-2, 2: 2e-3}[order]


def test_ddim_of_a_flow_is_eulers_step():
  with jax.enable_x64(True):
    kind, noisy = SCHEDULES["flow"], jnp.array([1.5])
    times, x = np.linspace(kind.last, kind.first, 4), noisy
    for now, then in zip(times[:-1], times[1:], strict=True):
      image, noise = see(kind, x, now)
      x = x + (then - now) * (noise - image)
    found = sampling.solve(kind, lambda x, t: see(kind, x, t), noisy, "ddim", 3)
    want = see(kind, x, times[-1])[0]
    np.testing.assert_allclose(found, want, rtol=1e-12)


def drawn(golden, numbers, classes, **given):
  return sampling.sample(
    golden.config,
    golden.params(),
    jax.random.key(7),
    jnp.array(numbers),
    jnp.array(classes),
    Sampling(steps=4, **given),
  )


@pytest.mark.parametrize("solver", sampling.SOLVERS)
def test_an_image_does_not_depend_on_its_batch(golden, solver):
  both = drawn(golden, [3, 8, 5], [0, 2, 1], solver=solver, guidance=1.5)
  alone = drawn(golden, [8], [2], solver=solver, guidance=1.5)
  np.testing.assert_allclose(both[1], alone[0], atol=1e-5)
  assert np.abs(both[0] - both[1]).max() > 0.1
  assert np.abs(both).max() <= 1.0


def test_guidance_goes_on_from_no_class(golden):
  config, params = golden.config, golden.params()
  noisy, label = golden.images()[1][:2], jnp.array([0, 1])
  none = jnp.full_like(label, config.classes)
  one, zero, three = (
    sampling.guided(config, params, which, amount)(noisy, 0.4)
    for which, amount in ((label, 1.0), (none, 1.0), (label, 3.0))
  )
  for of_class, of_none, guided in zip(one, zero, three, strict=True):
    want = of_none + 3.0 * (of_class - of_none)
    np.testing.assert_allclose(guided, want, atol=2e-5)


def test_refused():
  with pytest.raises(InputError, match="'euler' is not known; known: ddim"):
    Sampling(solver="euler")
  with pytest.raises(InputError, match="steps must be positive"):
    Sampling(steps=0)
