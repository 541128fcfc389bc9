# SPDX-License-Identifier: Apache-2.0
"""The optimizer: what decays, its schedule, and clipping against optax."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mrpo_jax.models import parameters
from mrpo_jax.training import optimizer
from tests.test_parallel import CONFIG


def test_decay_leaves_norms_and_biases_alone():
  config = dataclasses.replace(CONFIG, norm="layer", qkv_bias=True)
  mask = optimizer.decays(parameters.abstract(config))
  assert not mask["norm"] and not mask["norm_bias"]
  decayed = {name for name, decays in mask["blocks"].items() if decays}
  assert decayed == {"query", "key", "value", "out", "gate", "up", "down"}
  assert mask["embed"] and mask["head"]


def test_the_schedule_rises_and_falls():
  _, schedule = optimizer.make(
    peak_lr=1.0, steps=100, warmup=0.1, end_lr_share=0.1
  )
  rates = [float(schedule(step)) for step in range(100)]
  assert 0 < rates[0] < rates[5] < rates[10] == pytest.approx(1.0)
  assert rates[99] == pytest.approx(0.1, abs=0.01)
  assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_clipping_bounds_the_gradient():
  transformation, _ = optimizer.make(peak_lr=1.0, steps=2, clip_norm=0.5)
  huge = {"weight": np.full((4, 4), 1e9, np.float32)}
  zero = {"weight": np.zeros((4, 4), np.float32)}
  state = transformation.init(zero)
  _, state = transformation.update(huge, state, zero)
  first = optax.tree.get(state, "mu")["weight"]
  # One step of Adam's first moment: (1 - b1) times the clipped gradient.
  assert np.linalg.norm(first) == pytest.approx(0.05, rel=1e-4)


@pytest.mark.parametrize("norm", [1.0, 4.9, 5.1, np.inf])
def test_clipping_is_the_one_of_optax(norm):
  grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[-4.0]], jnp.bfloat16)}
  want, _ = optax.clip_by_global_norm(norm).update(grads, optax.EmptyState())
  got, _ = optimizer.clip(norm).update(grads, optax.EmptyState())
  assert jax.tree.map(jnp.dtype, got) == jax.tree.map(jnp.dtype, want)
  for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
    rtol = 1e-6 if a.dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(*(x.astype("float32") for x in (a, b)), rtol)


def test_clipping_leaves_a_gradient_of_zero():
  zero = {"weight": jnp.zeros(3)}
  got, _ = optimizer.clip(1.0).update(zero, optax.EmptyState())
  np.testing.assert_array_equal(got["weight"], zero["weight"])


@pytest.mark.parametrize(
  "dtype,rate,share",
  [
    # Of 1.0, 0.25 and 2^-10; from 1 up bfloat16 counts in 1/128.
    ("bfloat16", 2**-7, 0),
    ("bfloat16", 2**-9, 1 / 3),
    ("bfloat16", 2**-11, 2 / 3),
    ("bfloat16", 2**-20, 1),
    ("float16", 2**-9, 0),
    ("float16", 2**-12, 1 / 3),
    ("float32", 2**-20, 0),
  ],
)
def test_steps_below_the_rounding_of_a_weight_are_lost(dtype, rate, share):
  params = {"weight": jnp.asarray([1.0, 0.25, 2**-10], dtype)}
  assert float(optimizer.lost_share(params, rate)) == pytest.approx(share)


def test_the_share_of_lost_steps_is_that_of_a_step(rng):
  params = {"weight": jnp.asarray(rng.normal(0, 0.02, 9999), jnp.bfloat16)}
  grads = {"weight": jnp.asarray(rng.normal(0, 1, 9999), jnp.float32)}
  for rate in (1e-4, 1e-5, 1e-6):
    transformation, _ = optimizer.make(peak_lr=rate, steps=9, warmup=0.0)
    updates, _ = transformation.update(
      grads, transformation.init(params), params
    )
    after = optax.apply_updates(params, updates)
    unchanged = float(jnp.mean(after["weight"] == params["weight"]))
    assert float(optimizer.lost_share(params, rate)) == pytest.approx(
      unchanged, abs=0.01
    )
