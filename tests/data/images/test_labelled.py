# SPDX-License-Identifier: Apache-2.0
"""Labelled images: of files, and the digits of scikit-learn."""

import hashlib
import logging

import numpy as np
import pytest
from sklearn.datasets import load_digits

from mrpo_jax.data.images import digits, pixels
from mrpo_jax.data.images.labelled import Images, load_images
from mrpo_jax.errors import InputError
from tests.material.pictures import levels, parquet, saved


def refused(name, **how):
  with pytest.raises(InputError) as found:
    load_images(name, **{"classes": (), **how})
  assert "\n" not in str(found.value)
  return str(found.value)


# Digits.


def test_digits_are_scikit_learns_from_black_to_white():
  train, held_out = map(digits.digits, digits.SPLITS)
  images = np.concatenate([train[0], held_out[0]])
  assert images.dtype == np.float32 and images.shape == (1797, 8, 8, 1)
  assert images.min() == -1 and images.max() == 1
  # Levels 0 to 16 in steps of 1/8, and each image is there once.
  wanted = load_digits()
  restored = (images[..., 0] + 1) * 8
  assert sorted(restored.reshape(1797, -1).tolist()) == sorted(
    wanted.data.tolist()
  )
  numbers = np.concatenate([train[1], held_out[1]])
  assert numbers.dtype == np.int32
  # The first image of the package is a zero, the second a one.
  for i in range(2):
    (place,) = np.flatnonzero((restored == wanted.images[i]).all((1, 2)))
    assert numbers[place] == wanted.target[i] == i


def test_the_division_of_digits_never_moves():
  """Counted once, with scikit-learn 1.9.1."""
  image_NHWX, class_N = digits.digits("held_out")
  counts = [31, 27, 31, 37, 28, 23, 27, 34, 24, 28]
  assert np.bincount(class_N).tolist() == counts
  assert len(digits.digits("train")[0]) == 1797 - sum(counts)
  content = hashlib.sha256(((image_NHWX + 1) * 8).astype(np.uint8).tobytes())
  assert content.hexdigest()[:16] == "3a17cc287d2233e6"


def test_equal_digits_are_never_on_both_sides():
  train, held_out = (
    {image.tobytes() for image in digits.digits(split)[0]}
    for split in digits.SPLITS
  )
  assert not train & held_out


def test_digits_are_a_name_of_labelled_images():
  found = load_images("digits:held_out", classes=digits.CLASSES, size=8)
  image_NHWX, class_N = digits.digits("held_out")
  np.testing.assert_array_equal(found.image_NHWX, image_NHWX)
  np.testing.assert_array_equal(found.class_N, class_N)
  assert len({*found.ids}) == len(found.ids) == len(class_N)
  assert "held_out image 1: image: is 8 x 8 pixels" in refused(
    "digits:held_out", size=16
  )
  assert "the classes are numbered from 0 to 4" in refused(
    "digits:train", classes=digits.CLASSES[:5]
  )


@pytest.mark.parametrize("name", ["digits", "digits:", "digits:trian"])
def test_another_split_of_digits_is_refused(name):
  assert "there are digits:train and digits:held_out" in refused(name)
  assert "did you mean train?" in refused("digits:trian")


def test_a_folder_that_is_called_digits_is_not_passed_over(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "digits").mkdir()
  parquet(tmp_path / "digits/train.parquet", [{"image": saved(levels(0))}])
  assert "name it ./digits:train if it is meant" in refused("digits:train")
  found = load_images("./digits:train", classes=())
  assert found.image_NHWX.shape == (1, 4, 5, 3)


def test_without_scikit_learn_one_line_says_what_to_install(monkeypatch):
  monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)
  assert "pip install 'mrpo-jax[diffusion]'" in refused("digits:train")


# Files.


@pytest.mark.parametrize("column", ["image", "img"])
def test_images_of_a_file(tmp_path, column, caplog):
  caplog.set_level(logging.INFO, "mrpo_jax")
  rows = [{column: saved(levels(i)), "label": i} for i in range(2)]
  path = parquet(tmp_path / "a.parquet", rows)
  found = load_images(path, classes=("cat", "dog"))
  np.testing.assert_array_equal(
    found.image_NHWX[1], pixels.from_levels(levels(1))
  )
  assert found.class_N.tolist() == [0, 1] and found.class_N.dtype == np.int32
  assert found.ids == Images.of(found.image_NHWX, [0, 1]).ids
  grey = load_images(path, classes=(), channels=1)
  assert grey.image_NHWX.shape == (2, 4, 5, 1)
  assert grey.class_N.tolist() == [-1, -1]
  classes, colours = caplog.messages
  assert "2 of 2 rows have a class or a prompt, which is not used" in classes
  assert "2 of 2 images are colour, converted to greyscale" in colours


def test_rows_that_hold_no_image_are_refused(tmp_path):
  image = saved(levels(0))
  path = parquet(tmp_path / "a.parquet", [{"picture": image, "label": 1}])
  assert "there is no image; the row's keys are 'picture', 'label'" in refused(
    path
  )
  path = parquet(tmp_path / "a.parquet", [{"image": image, "img": image}])
  assert "'image' and 'img' are two images" in refused(path)
  (tmp_path / "a.jsonl").write_text("\n")
  assert "has no image; give at least one" in refused(tmp_path / "a.jsonl")
