# SPDX-License-Identifier: Apache-2.0
"""Figure of a study: a panel for each pair set, the same SVG every time."""

import contextlib


@contextlib.contextmanager
def panels(results, to, *, width, height):
  """Yields (figure, an axis for each of the results); saves it at the end.

  Args:
    results: list of Results.
    to: path of the SVG.
    width, height: of a panel, inches.
  """
  titles = [result.pairs.title for result in results]
  with row(titles, to, width=width, height=height, sharey=True) as found:
    yield found


@contextlib.contextmanager
def row(titles, to, *, width, height, sharey=False):
  """Yields (figure, an axis below each title); saves it at the end.

  Args:
    titles: of the panels.
    to: path of the SVG.
    width, height: of a panel, inches.
    sharey: have all panels one scale?
  """
  import matplotlib

  matplotlib.use("svg")
  matplotlib.rcParams["svg.hashsalt"] = "0"
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(
    1,
    len(titles),
    figsize=(width * len(titles), height),
    sharey=sharey,
    squeeze=False,
    layout="constrained",
  )
  for axis, title in zip(axes[0], titles, strict=True):
    axis.set_title(title)
  yield figure, axes[0]
  figure.savefig(to, metadata={"Date": None})
  pyplot.close(figure)


def seeds(axis, place, value_RN, mean, interval):
  """A dot for each seed above a place, their mean and its interval."""
  axis.plot([place] * len(value_RN), value_RN.mean(1), ".", color="0.6")
  ends = [[mean - interval[0]], [interval[1] - mean]]
  axis.errorbar([place], [mean], ends, fmt="ko", markersize=4, capsize=3)
