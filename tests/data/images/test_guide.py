# SPDX-License-Identifier: Apache-2.0
"""The example of the guide to images runs."""

import pathlib
import re

PAGE = pathlib.Path(__file__).parents[3] / "docs/guide/images.md"


def test_the_example_of_the_guide_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  text = PAGE.read_text(encoding="utf-8")
  (example,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
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
