# SPDX-License-Identifier: Apache-2.0
"""Figure of a study: a panel for each pair set, the same SVG every time."""

import contextlib

import numpy as np


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


def leads(axis, places, result, lead_LRN, **style):
  """A mark at each place: the mean of a lead, and its interval.

  Args:
    axis: axis of a panel.
    places: L numbers along x.
    result: grid.results.Results, which the leads are of.
    lead_LRN: leads by seed and held-out pair.
    style: of `errorbar`.
  """
  means = np.array([lead_RN.mean() for lead_RN in lead_LRN])
  ends = np.array([result.interval(lead_RN) for lead_RN in lead_LRN])
  axis.errorbar(
    places,
    means,
    [means - ends[:, 0], ends[:, 1] - means],
    markersize=4,
    linewidth=1,
    capsize=2,
    **style,
  )


def seeds(axis, place, value_RN, mean, interval):
  """A dot for each seed above a place, their mean and its interval."""
  axis.plot([place] * len(value_RN), value_RN.mean(1), ".", color="0.6")
  ends = [[mean - interval[0]], [interval[1] - mean]]
  axis.errorbar([place], [mean], ends, fmt="ko", markersize=4, capsize=3)
