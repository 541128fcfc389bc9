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
  import matplotlib

  matplotlib.use("svg")
  matplotlib.rcParams["svg.hashsalt"] = "0"
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(
    1,
    len(results),
    figsize=(width * len(results), height),
    sharey=True,
    squeeze=False,
    layout="constrained",
  )
  for axis, result in zip(axes[0], results, strict=True):
    axis.set_title(result.pairs.title)
  yield figure, axes[0]
  figure.savefig(to, metadata={"Date": None})
  pyplot.close(figure)


def seeds(axis, place, value_RN, mean, interval):
  """A dot for each seed above a place, their mean and its interval."""
  axis.plot([place] * len(value_RN), value_RN.mean(1), ".", color="0.6")
  ends = [[mean - interval[0]], [interval[1] - mean]]
  axis.errorbar([place], [mean], ends, fmt="ko", markersize=4, capsize=3)
