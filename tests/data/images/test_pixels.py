# SPDX-License-Identifier: Apache-2.0
"""Pixels keep their values, and what could mean two things is refused."""

import logging

import numpy as np
import pytest
from PIL import Image

from mrpo_jax.data.images import pixels
from mrpo_jax.data.images.pixels import ImageReader
from mrpo_jax.errors import InputError
from tests.material.pictures import levels, saved, struct_of


def read(*values, **how):
  """Pixels of images in one set; they are called row 1, row 2, ..."""
  reader = ImageReader(**how)
  images = [reader.read(one, f"row {i}") for i, one in enumerate(values, 1)]
  return reader.stacked(images, where="here")[0]


def refused(*values, **how):
  with pytest.raises(InputError) as found:
    read(*values, **how)
  assert "\n" not in str(found.value)
  return str(found.value)


def fractions(*shape):
  """Fractions from -1 to 1."""
  return np.linspace(-1, 1, int(np.prod(shape))).reshape(shape)


# Values.


def test_levels_are_divided_evenly_from_black_to_white():
  found = pixels.from_levels(np.array([0, 51, 204, 255], np.uint8))
  # 51 is a fifth of 255: -1 + 2 / 5.
  np.testing.assert_array_equal(found, np.float32([-1, -0.6, 0.6, 1]))
  assert found.dtype == np.float32


def test_every_level_comes_back():
  every = np.arange(256, dtype=np.uint8)
  opposite = pixels.from_levels(255 - every)
  np.testing.assert_array_equal(opposite, -pixels.from_levels(every))
  found = pixels.to_levels(pixels.from_levels(every), "image")
  np.testing.assert_array_equal(found, every)


@pytest.mark.parametrize("form", [bytes, struct_of, bytearray])
def test_bytes_become_pixels(form):
  image = levels(0)
  found = read(form(saved(image)))
  np.testing.assert_array_equal(found, pixels.from_levels(image)[None])
  assert found.dtype == np.float32


def test_whole_numbers_and_fractions_are_told_apart_by_their_type():
  image = levels(1, 4, 5, 1)
  for form in (image, image.tolist(), image.astype(np.int64), image[..., 0]):
    found = read(form)
    np.testing.assert_array_equal(found, pixels.from_levels(image)[None])
  image = fractions(2, 3, 3)
  for form in (image, image.tolist(), image.astype(np.float32)):
    np.testing.assert_array_equal(read(form), image.astype(np.float32)[None])


def test_images_are_identical_by_their_pixels():
  image = levels(2)
  other = image ^ 1
  for one in (image, pixels.from_levels(image)):
    assert pixels.identical(one, image) and pixels.identical(image, one)
    assert not pixels.identical(one, other)
    assert not pixels.identical(other, one)


# Greyscale and colour.


def test_colour_to_greyscale_is_pillows():
  image = levels(2, 64, 64)
  grey = np.asarray(Image.fromarray(image).convert("L"))
  found = read(image, channels=1)
  np.testing.assert_array_equal(found[0, ..., 0], pixels.from_levels(grey))
  # Of fractions it is the same up to the rounding of levels.
  found = read(pixels.from_levels(image), channels=1)[0, ..., 0]
  np.testing.assert_allclose(found, pixels.from_levels(grey), atol=1.01 / 255)


def test_grey_is_repeated_and_conversions_are_said(caplog):
  caplog.set_level(logging.INFO, "mrpo_jax")
  grey, colour = levels(3, channels=1), levels(4)
  found = read(grey, colour, grey, channels=3)
  np.testing.assert_array_equal(found[0], pixels.from_levels(grey.repeat(3, 2)))
  np.testing.assert_array_equal(found[1], pixels.from_levels(colour))
  read(colour, grey, channels=1)
  assert caplog.messages == [
    "here: 2 of 3 images are greyscale, repeated in three channels; the first "
    "is row 1",
    "here: 1 of 2 images are colour, converted to greyscale; the first is row "
    "1",
  ]


def test_without_channels_a_set_of_both_is_refused():
  assert refused(levels(5), levels(6, channels=1)) == (
    "row 2: is greyscale, but row 1 is colour; save them alike, or load them "
    "with channels=1 or channels=3"
  )


def test_opaque_alpha_is_left_out_and_said(caplog):
  caplog.set_level(logging.INFO, "mrpo_jax")
  image = levels(7)
  for form in (lambda one: one, saved):
    alpha = np.concatenate([image, np.full((4, 5, 1), 255, np.uint8)], -1)
    np.testing.assert_array_equal(read(form(alpha)), read(image))
    assert "1 of 1 images have an alpha channel, opaque" in caplog.messages[-1]
    alpha[0, 0, 3] = 254
    assert "row 1: is transparent in part" in refused(form(alpha))
  assert read(np.dstack([fractions(2, 2, 3), np.ones((2, 2))])).shape[-1] == 3


# Sizes.


def test_images_of_another_size_are_refused_with_both_sizes():
  assert refused(levels(8, 4, 5), levels(9, 5, 4)) == (
    "row 2: is 5 x 4 pixels (height x width), but row 1 is 4 x 5; crop or "
    "resize the images to one size"
  )


def test_a_size_that_is_asked_for_is_kept():
  assert read(levels(10, 4, 4), size=4).shape == (1, 4, 4, 3)
  assert read(levels(10, 4, 5), size=(4, 5)).shape == (1, 4, 5, 3)
  assert "is 4 x 5 pixels (height x width), want 5 x 4;" in refused(
    levels(10, 4, 5), size=(5, 4)
  )


@pytest.mark.parametrize("size", [0, -4, 4.0, "4", (4,), (4, 4, 4), True])
def test_a_size_that_is_none_is_refused(size):
  assert refused(size=size).startswith("size: want pixels of a side")


def test_channels_that_are_none_are_refused():
  assert refused(channels=2) == "channels: want 1 or 3, got 2"


# What is refused.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_refused(value):
  image = fractions(2, 2, 1)
  image[1, 1] = value
  assert refused(fractions(2, 2, 1), image).startswith(
    "row 2: a pixel is NaN or infinite"
  )


@pytest.mark.parametrize("value", [1.0000001, -1.001, 1e300])
def test_fractions_outside_the_range_are_refused(value):
  image = fractions(2, 2, 1)
  image[0, 1] = value
  assert f"{value:.9g}" in refused(image)
  assert "fractions are from -1 (black) to 1 (white)" in refused(image)


@pytest.mark.parametrize("value", [-1, 256, 2**40])
def test_whole_numbers_outside_the_range_are_refused(value):
  assert "whole numbers are from 0 to 255" in refused([[0, value], [9, 200]])


def test_fractions_and_whole_numbers_in_one_set_are_refused():
  assert refused(fractions(2, 2, 1), [[0, 1], [1, 0]]) == (
    "row 2: holds whole numbers, but row 1 fractions; write all images alike"
  )


def test_fractions_from_0_to_1_are_refused():
  half = fractions(2, 2, 1) / 2 + 0.5
  assert refused(half, half).startswith("here: no pixel is below 0")
  assert read(half, fractions(2, 2, 1)).shape == (2, 2, 2, 1)


def test_whole_numbers_from_0_to_1_are_refused():
  assert refused([[0, 1], [1, 0]]).startswith("here: no pixel is above 1 of")
  assert read([[0, 1], [1, 0]], [[0, 0], [0, 200]]).shape == (2, 2, 2, 1)
  assert read(saved(np.zeros((2, 2, 1), np.uint8))).max() == -1  # it is black


def test_dark_whole_numbers_are_said(caplog):
  caplog.set_level(logging.INFO, "mrpo_jax")
  read([[0, 16]])
  assert "here: the brightest pixel is 16 of 255" in caplog.text
  caplog.clear()
  read([[0, 128]])
  assert not caplog.text


@pytest.mark.parametrize(
  "value, reason",
  [
    (None, "is null"),
    ("a.png", "is a string"),
    (3, "is a number"),
    ({"bytes": None, "path": "/etc/a.png"}, "only the path '/etc/a.png'"),
    ({"bytes": None, "path": None}, "holds no bytes of an image; nothing"),
    ({"pixels": [[1]]}, "holds no bytes of an image; nothing"),
    ([[1, 2], [3]], "is no image"),
    ([[1, None]], "is no image"),
    ([[True, False]], "is no image"),
    ([["1"]], "is no image"),
    ([1, 2], "is no image"),
    ([], "is no image"),
    ([[]], "is no image"),
    (np.zeros((1, 2, 2, 3)), "is no image"),
    (np.zeros((3, 8, 8)), "has the shape [3, 8, 8]; want [height, width"),
    (np.zeros((8, 8, 2)), "has the shape [8, 8, 2]"),
    (np.zeros((8, 8, 3), complex), "is no image"),
  ],
)
def test_what_is_no_image_is_refused(value, reason):
  message = refused(value)
  assert message.startswith("row 1: ") and reason in message


# Memory.


def test_the_size_of_large_sets_is_said(caplog, monkeypatch):
  caplog.set_level(logging.INFO, "mrpo_jax")
  read(levels(11))
  assert not caplog.text
  monkeypatch.setattr(pixels, "LARGE", 200)
  read(levels(11))  # 4 x 5 x 3 numbers of 4 bytes
  assert caplog.messages == ["here: the images take 240 B of memory"]


# Identity.


def test_an_identity_is_of_pixels_shape_and_class():
  one, other = fractions(1, 2, 3, 1), -fractions(1, 2, 3, 1)
  ids = {
    pixels.identities([number], *batches)[0]
    for number, batches in [
      *((0, [one]), (1, [one]), (0, [other]), (0, [one.reshape(1, 3, 2, 1)])),
      *((0, [one, other]), (0, [other, one])),
    ]
  }
  assert len(ids) == 6
  again = pixels.identities([0], np.asfortranarray(one.astype(np.float32)))
  assert {*again} < ids
  zeros = np.zeros((1, 2, 2, 1), np.float32)
  assert pixels.identities([0], zeros) == pixels.identities([0], -zeros)
