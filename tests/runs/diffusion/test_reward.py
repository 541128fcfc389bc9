# SPDX-License-Identifier: Apache-2.0
"""Rewards of images: shipped ones, and what functions of users may give."""

import sys

import numpy as np
import pytest

from mrpo_jax.errors import InputError
from mrpo_jax.runs.diffusion.reward import ImageReward

IMAGES = np.array([-1.0, 0.0, 1.0], np.float32).reshape(3, 1, 1, 1)
CLASSES = np.arange(3)
SOURCE = """
def ascending(image_NHWX, class_N):
  return list(class_N + image_NHWX.mean((1, 2, 3)))
def endless(image_NHWX, class_N):
  return [0.0, float("nan"), 1.0]
def longer(image_NHWX, class_N):
  return [0.0] * 4
def texts(image_NHWX, class_N):
  return ["good"] * 3
def broken(image_NHWX, class_N):
  return 1 / 0
number = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
  """The current folder, with a module, as a command finds it."""
  (tmp_path / "own_image_reward.py").write_text(SOURCE)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", [*sys.path])
  yield
  sys.modules.pop("own_image_reward", None)


def test_ink_is_the_mean_of_the_pixels_from_0_to_1():
  assert ImageReward("ink")(IMAGES, CLASSES).tolist() == [0.0, 0.5, 1.0]


def test_a_function_of_the_current_folder(here):
  found = ImageReward("own_image_reward:ascending")(IMAGES, CLASSES)
  assert found.tolist() == [-1.0, 1.0, 3.0] and found.dtype == np.float64


@pytest.mark.parametrize(
  "name,message",
  [
    ("endless", "the reward of an image is nan; want a finite number"),
    (
      "longer",
      r"for 3 images it gives an array of the shape \[4\]; want \[3\]",
    ),
    ("texts", "could not convert string to float"),
    ("broken", r"ZeroDivisionError: division by zero \(own_image_reward.py"),
    ("number", "has no function number; it is called with images"),
  ],
)
def test_what_is_no_reward_is_refused(here, name, message):
  with pytest.raises(InputError, match=message) as found:
    ImageReward(f"own_image_reward:{name}")(IMAGES, CLASSES)
  assert str(found.value).startswith("config.drawn.reward=own_image_reward:")


@pytest.mark.parametrize("name", ["", "inc", "a:b:c", ":x"])
def test_a_name_that_is_none_is_refused(name):
  with pytest.raises(InputError, match="is not known;.* name one of ink, or"):
    ImageReward(name)
