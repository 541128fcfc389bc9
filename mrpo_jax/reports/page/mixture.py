# SPDX-License-Identifier: Apache-2.0
"""References in the mixture: share, margin and agreement of each."""

import numpy as np

from mrpo_jax.reports.page.curves import curve, draw_curves
from mrpo_jax.reports.page.markup import breakable, scrolled_table, tag
from mrpo_jax.reports.page.plots import plot

PLOTTED = 6  # series of runs; the table has all of them
COLUMNS = (  # title, figure of references/<name>/, how it is written
  ("weight", "weight", ".2f"),
  ("share of the mixture", "responsibility", ".0%"),
  ("margin, nats", "margin", "+.2f"),
  ("its sd", "margin_sd", ".1f"),
  ("accuracy", "accuracy", ".3f"),
  ("nats a token", "token_logp", ".2f"),
  ("clipped low", "clipped_low", ".0%"),
  ("clipped high", "clipped_high", ".0%"),
)
CAPTION = """
References on the held-out pairs at the last evaluation (where none was made, on
the pairs of the last step), means over seeds.  These figures describe; nothing
is ranked by them.  Share of the mixture: of the virtual reference at the chosen
response; margin: chosen minus rejected log-probability under the reference.
"""


def several(runs):
  """The names of the references of some runs, where they have several."""
  names = runs[0].config.get("references", {}).get("names") or []
  return names if len(names) > 1 else []


def mixtures(series):
  """Table and plots of all series with several references; None of none."""
  mixed = {label: runs for label, runs in series.items() if several(runs)}
  if not mixed:
    return None
  plots = [
    _plot(n, label, runs, *kind, first=len(series))
    for n, (label, runs) in enumerate([*mixed.items()][:PLOTTED])
    for kind in (
      ("responsibility", "share of the mixture", "at the chosen response"),
      ("margin", "margins of the references", "nats, chosen minus rejected"),
    )
  ]
  return [table_of(mixed), tag("div", plots, class_="plots")]


def table_of(mixed):
  """A row for each reference of each series."""
  columns = [
    column
    for column in COLUMNS
    if any(
      _last(runs, name, column[1]) is not None
      for runs in mixed.values()
      for name in several(runs)
    )
  ]
  rows = [
    [
      breakable(label),
      name,
      *(_written(_last(runs, name, what), form) for _, what, form in columns),
    ]
    for label, runs in mixed.items()
    for name in several(runs)
  ]
  header = ["run", "reference", *(title for title, *_ in columns)]
  return scrolled_table(header, rows, caption=CAPTION, numbers=2)


def _last(runs, name, what):
  """Mean over the runs of a figure of a reference; None where none has it."""
  found = []
  for run in runs:
    for place in ("eval/", ""):
      value = run.last(f"{place}references/{name}/{what}")
      if value is not None:
        found.append(value)
        break
  return float(np.mean(found)) if found else None


def _written(value, form):
  return "-" if value is None else format(value, form)


def _plot(n, label, runs, what, title, about, *, first):
  """A plot of the references of one series.

  They are drawn in the styles from `first` on, those before are of series.
  """
  names = dict(enumerate(several(runs), first))
  found = {
    k: one
    for k, name in names.items()
    if (one := curve(runs, f"references/{name}/{what}")) is not None
  }

  def draw(axes):
    lines = draw_curves(axes, found)
    if found:
      # By handle: matplotlib leaves out labels that begin with _ by itself.
      labels = [names[k] for k in found]
      axes.legend(lines, labels, loc="best", handlelength=3)

  about = f"{about}, of each step's pairs"
  return plot(f"mixture-{n}-{what}", f"{label}: {title}", about, draw)
