# SPDX-License-Identifier: Apache-2.0
"""Learning curves: mean over the seeds of a config, and a band around it."""

import numpy as np

from mrpo_jax.reports.page.markup import tag
from mrpo_jax.reports.page.plots import GRID, INK, plot, style_of

MOST = 160  # points of a curve; more are averaged
CURVES = (  # figure of metrics.jsonl, title, how to read it, a line to compare
  (
    "eval/rewards/accuracies",
    "Held-out accuracy",
    "share of pairs ranked rightly against reference 0, or of single responses "
    "whose reward has the sign of their label; 0.5 is guessing",
    0.5,
  ),
  (
    "eval/rewards/margins",
    "Held-out margin",
    "of the rewards, beta times nats; above 0 is right",
    0.0,
  ),
  ("eval/loss", "Held-out loss", "other methods have other losses", None),
  (
    "loss",
    "Training loss",
    "of each step's pairs; other methods, other losses",
    None,
  ),
  ("rewards/accuracies", "Training accuracy", "of each step", 0.5),
  (
    "rewards/margins",
    "Training margin",
    "of the rewards, beta times nats",
    0.0,
  ),
  (
    "logps/chosen",
    "Log-probability of chosen responses",
    "nats, under the policy",
    None,
  ),
  (
    "logps/rejected",
    "Log-probability of rejected responses",
    "nats, under the policy",
    None,
  ),
  ("grad_norm", "Gradient norm", "before clipping", None),
)


def curve(runs, name):
  """(step_S, mean_S, low_S, high_S) of a figure over some runs; None of none.

  At each step over the runs that have it; long curves are averaged over
  neighbouring steps.
  """
  by_step = [run.by_step(name) for run in runs]
  steps = sorted({step for one in by_step for step in one})
  if not steps:
    return None
  values_SR = [[one[step] for one in by_step if step in one] for step in steps]
  found = np.array(
    [
      (step, np.mean(v), min(v), max(v))
      for step, v in zip(steps, values_SR, strict=True)
    ]
  )
  if len(found) > MOST:
    parts = np.array_split(found, MOST)
    found = np.array([part.mean(0) for part in parts])
  return tuple(found.T)


def learning_curves(series):
  """Plots of all figures that some run has; `series` is {label: runs}."""
  plots = []
  for name, title, about, line in CURVES:
    curves = {
      n: found
      for n, runs in enumerate(series.values())
      if (found := curve(runs, name)) is not None
    }
    if curves:
      drawn = plot(
        f"curve-{name.replace('/', '-')}",
        title,
        about,
        lambda axes, curves=curves, line=line: draw_curves(axes, curves, line),
      )
      plots.append(drawn)
  return tag("div", plots, class_="plots") if plots else None


def draw_curves(axes, curves, line=None):
  """Draws {number of a style: curve} as lines with bands; gives the lines.

  `line` is a value to compare them with.
  """
  if line is not None:
    axes.axhline(line, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
  lines = []
  for n, (step_S, mean_S, low_S, high_S) in curves.items():
    style = style_of(n)
    axes.fill_between(
      step_S, low_S, high_S, color=style.colour, alpha=0.16, linewidth=0
    )
    lines += axes.plot(step_S, mean_S, **style.of_line(len(step_S)))
  axes.set_xlabel("step")
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.grid(visible=True, axis="y", color=GRID)
  return lines
