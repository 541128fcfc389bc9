# SPDX-License-Identifier: Apache-2.0
"""The example of the guide to images runs."""

from tests.material.pages import python_of


def test_the_example_of_the_guide_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (example,) = python_of("docs/guide/images.md")
  names = {}
  exec(example, names)
  assert names["image_NHWX"].shape == (1507, 8, 8, 1)
  assert len(names["held_out"].ids) == 290
  again = names["again"]
  ink, other = (
    images.sum((1, 2, 3)) for images in (again.chosen_NHWX, again.rejected_NHWX)
  )
  # Rounding moves each of 64 pixels by at most 1/255.
  assert (ink >= other - 2 * 64 / 255).all() and ink.mean() > other.mean()
