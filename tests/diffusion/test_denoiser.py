# SPDX-License-Identifier: Apache-2.0
"""The denoiser is torch's, and starts from nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax.diffusion import denoiser, errors
from mrpo_jax.diffusion.sampling import first_noise
from mrpo_jax.errors import InputError
from mrpo_jax.models import parameters


def test_shapes_are_those_of_the_table(golden):
  specs = denoiser.table(golden.config)
  shapes = parameters.map_specs(lambda spec: spec.shape, specs)
  found = jax.tree.map(lambda array: array.shape, golden.params())
  assert found == shapes
  axes = parameters.map_specs(lambda spec: len(spec.axes), specs)
  assert axes == parameters.map_specs(lambda spec: len(spec.shape), specs)


def test_predictions_and_errors_are_torchs(golden):
  image, noise, time, label = golden.images()
  found = errors.errors(
    golden.config, golden.params(), image, label, (time, noise)
  )
  np.testing.assert_allclose(found, golden.figures["errors"], rtol=1e-5)
  found = errors.errors(
    golden.config, golden.params(1.0), image, label, (time, noise)
  )
  want = golden.figures["one/ref_errors"]
  np.testing.assert_allclose(found, want, rtol=1e-5)


def test_a_new_one_predicts_nothing(golden):
  params = parameters.init_table(
    denoiser.table(golden.config), jax.random.key(0)
  )
  noisy = jax.random.normal(jax.random.key(1), (2, *golden.config.image))
  found = denoiser.predict(golden.config, params, noisy, jnp.array([0.2, 0.9]))
  assert not np.any(found)


def test_draws_do_not_depend_on_jax_enable_x64(golden):
  place_B, key = jnp.arange(2), jax.random.key(1)

  def draws():
    time_B, noise_BHWX = errors.fixed_draws(golden.config, 5, place_B, place_B)
    return time_B, noise_BHWX, first_noise(golden.config, key, place_B)

  with jax.enable_x64(True):
    found = draws()
  for one, two in zip(draws(), found, strict=True):
    assert two.dtype == jnp.float32
    np.testing.assert_array_equal(one, two)


def test_patches_are_put_back(golden):
  image = golden.images()[0][:, 0]
  cut = denoiser._patches(golden.config, image)
  assert cut.shape == (5, 8, 12)
  # The second patch of the first row: rows 0 and 1, columns 2 and 3.
  np.testing.assert_array_equal(cut[0, 1].reshape(2, 2, 3), image[0, 0:2, 2:4])
  np.testing.assert_array_equal(denoiser._images(golden.config, cut), image)


def test_no_class_is_the_last_row(golden):
  params, time = golden.params(), jnp.array([0.5])
  noisy = golden.images()[1][:1]
  of = [
    denoiser.predict(golden.config, params, noisy, time, label)
    for label in (None, jnp.array([3]), jnp.array([1]))
  ]
  np.testing.assert_array_equal(of[0], of[1])
  assert np.abs(of[0] - of[2]).max() > 1e-4


@pytest.mark.parametrize(
  "change,message",
  [
    (dict(patch=3), "does not divide images of 4 x 8"),
    (dict(width=18), "multiple of heads=2 and of 4"),
    (dict(prediction="eps"), "prediction='eps' is not known"),
    (dict(schedule="linear"), "schedule='linear' is not known"),
    (dict(layers=0), "layers must be 1 to 1048576, got 0"),
    (dict(width=2**40), "width must be 1 to 1048576"),
    (dict(classes=-1), "classes must be 0 to 1048576, got -1"),
    (dict(image=(0, 8, 3)), "images of 0 x 8 with 3 channels are none"),
    (dict(image=(4, -8, 3)), "images of 4 x -8"),
    (dict(image=(4, 8, 2)), "with 2 channels are none"),
  ],
)
def test_refused(golden, change, message):
  with pytest.raises(InputError, match=message):
    dataclasses.replace(golden.config, **change)
