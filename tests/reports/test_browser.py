# SPDX-License-Identifier: Apache-2.0
"""report.html in a real browser: plots are drawn, and nothing is cut."""

import numpy as np
import PIL.Image
import pytest

from mrpo_jax.reports.report import report
from tests.material.browser import probed, screenshot
from tests.material.reported import make_study

PHONE, DESKTOP = 360, 1280
NEAR = 24  # of 255: letters have soft edges
DRAWN = 0.01  # share of a plot's box that is not its background, at least

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(tmp_path_factory):
  folder = tmp_path_factory.mktemp("study")
  make_study(folder)
  report(folder)
  return folder / "report.html"


@pytest.fixture(scope="module", params=[PHONE, DESKTOP])
def seen(page, request):
  """(width, what the page says of its layout, its pixels as [Y, X, RGB])."""
  width = request.param
  found = probed(page, width)
  to = page.with_name(f"{width}.png")
  screenshot(page, to, width, found["page"][1])
  with PIL.Image.open(to) as image:
    return width, found, np.asarray(image.convert("RGB"), np.int16)


def test_the_page_is_as_wide_as_its_window_and_loads_nothing(seen):
  width, found, pixels = seen
  assert found["width"] == width == pixels.shape[1]
  assert found["page"][0] <= width  # no scrolling to the side
  assert found["loaded"] == [] and found["scripts"] == 0


def test_every_plot_is_drawn_in_its_box(seen):
  width, found, pixels = seen
  assert len(found["plots"]) >= 10
  for title, (left, top, wide, high) in zip(
    found["titles"], found["plots"], strict=True
  ):
    assert 0 <= left and left + wide <= width and high > 60, title
    box = pixels[
      round(top) : round(top + high), round(left) : round(left + wide)
    ]
    apart = np.abs(box - box[0, 0]).max(-1) > NEAR
    assert apart.mean() > DRAWN, title
    # The lines as well as the axes: in each third of its width.
    for part in np.array_split(apart, 3, axis=1):
      assert part.any(), title


def test_no_table_is_cut(seen):
  tables = seen[1]["tables"]
  assert len(tables) == 6  # runs, differences, mixture, benchmarks, ...
  for start, wide, inside in tables:
    assert inside <= wide, start


def test_text_in_plots_can_be_read_on_a_phone(seen):
  assert min(seen[1]["text"]) >= 9  # pixels


def test_plots_stand_below_each_other_on_a_phone_and_beside_on_a_desk(seen):
  width, found, _ = seen
  lefts = {round(left) for left, *_ in found["plots"]}
  assert len(lefts) == (1 if width == PHONE else 3)


def test_a_dark_page_is_dark_and_its_lines_are_light(page):
  to = page.with_name("dark.png")
  screenshot(page, to, DESKTOP, 3000, "--blink-settings=preferredColorScheme=0")
  with PIL.Image.open(to) as image:
    grey = np.asarray(image.convert("L"))
  assert np.median(grey) < 60 and grey.max() > 220
