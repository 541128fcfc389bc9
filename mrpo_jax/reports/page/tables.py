# SPDX-License-Identifier: Apache-2.0
"""Tables of the page: runs, paired differences, benchmarks, configs."""

import json

from mrpo_jax.reports import paired
from mrpo_jax.reports.page.markup import (
  Cell,
  Html,
  breakable,
  scrolled_table,
  tag,
)
from mrpo_jax.reports.page.plots import INK, plot, style_of, swatch
from mrpo_jax.text import bracketed

COLUMNS = (  # title, key of results.json, how it is written
  ("accuracy", "accuracy", ".3f"),
  ("margin, nats", "margin_nats", "+.3f"),
  ("x beta", "margin", "+.4f"),
  ("alone", "policy_accuracy", ".3f"),
  ("per token", "policy_mean_accuracy", ".3f"),
  ("nll", "nll", ".3f"),
  ("pairs/s", "pairs_per_second", ".1f"),
  ("real tokens", "real_token_share", ".1%"),
)
RUNS = """
Every evaluated run on n = {n} held-out pairs.  In brackets the 95 % interval of
that run alone, by bootstrap of prompts: it says how far a run's own figure can
be trusted, and ranks nothing; for that see the differences.  Accuracy: share of
pairs whose log-ratio against reference 0 is larger for the chosen response;
x beta: the margin times the run's own beta; alone, per token: the same share by
the policy's own log-probability; nll: of chosen responses, nats per token.
[all agree]: each prompt has the same mean, of which no interval follows.
"""
DIFFERENCES = """
Difference to {first} on the same held-out pairs, run minus {first}, with 95 %
intervals by paired bootstrap: prompts are drawn with all their pairs (where
prompts are not known, pairs one by one), and seeds that both have in common are
drawn too.  p: exact sign test on the accuracy of prompts (of pairs where none
repeats or they are not known, which is McNemar's test), for each seed, the
least and the largest.  Bold: the interval does not hold 0.  Of many intervals
one in twenty misses 0 by chance.
"""
CONFIGS = """
Keys of the configs in which runs differ; marked: other than in the first.
"""


def legend(series):
  """How each series is drawn in all plots."""
  items = [
    tag("li", swatch(n, "legend"), " ", tag("span", breakable(label)))
    for n, label in enumerate(series)
  ]
  return tag("ul", items, class_="legend")


def runs_table(comparison):
  """Figures of every evaluated run; seeds below the mean of their config."""
  numbers = {label: n for n, label in enumerate(comparison.series)}
  rows, classes = [], []
  for name, one in comparison.results.items():
    is_seed = "group" in one
    mark = "" if is_seed else swatch(numbers[name], "runs")
    rows.append([[mark, " ", tag("span", breakable(name))], *_cells(one)])
    classes.append("seed" if is_seed else "")
  sizes = sorted({one["held_out_pairs"] for one in comparison.results.values()})
  n = " or ".join(f"{size:,}" for size in sizes)
  caption = RUNS.format(n=n)
  header = ["run", *(title for title, *_ in COLUMNS)]
  return scrolled_table(header, rows, caption=caption, classes=classes)


def _cells(one):
  cells = []
  for _, key, form in COLUMNS:
    value = one.get(key)
    text = "-" if value is None else format(value, form)
    if key == "accuracy" and one.get("interval"):
      text = [text, " ", tag("small", bracketed(one["interval"], ".3f"))]
    cells.append(text)
  return cells


def differences(comparison):
  """For each first: table and plots of how the others differ from it."""
  order = [*comparison.series]
  for number, (first, found) in enumerate(comparison.differences().items()):
    yield _difference_table(first, found)
    plots = [
      _forest(f"forest-{number}-{key}", first, found, key, title, order)
      for key, title in (
        ("accuracy", "Accuracy"),
        ("margin_nats", "Margin, nats"),
        ("policy_accuracy", "Accuracy of the policy alone"),
      )
      if any(key in one for one in found.values())
    ]
    yield tag("div", plots, class_="plots")


def _difference_table(first, found):
  rows = []
  for label, one in found.items():
    size = [
      f"{one['pairs']:,}",
      one["prompts"] or "-",
      len(one["seeds"]) or "-",
    ]
    rows.append(
      [
        breakable(label),
        _difference(one.get("accuracy"), "+.3f", higher=True),
        paired.p_text(one),
        _difference(one.get("margin_nats"), "+.3f", higher=True),
        _difference(one.get("policy_accuracy"), "+.3f", higher=True),
        _difference(one.get("nll"), "+.3f", higher=False),
        *size,
      ]
    )
  caption = DIFFERENCES.format(first=first)
  for sentence in paired.not_compared(first, found):
    caption += f"\n{sentence[0].upper()}{sentence[1:]}.\n"
  header = [
    *("run", "accuracy", "p", "margin, nats", "alone", "nll"),
    *("pairs", "prompts", "seeds"),
  ]
  return scrolled_table(header, rows, caption=caption)


def _difference(one, form, *, higher):
  """A cell: the difference, its interval, and whether it holds 0."""
  if one is None:
    return "-"
  low, high = one["interval"]
  is_apart = low > 0 or high < 0
  text = [
    tag("b" if is_apart else "span", format(one["difference"], form)),
    " ",
    tag("br"),  # not on a phone
    tag("small", bracketed(one["interval"], form)),
  ]
  if not is_apart:
    return text
  is_better = (low > 0) == higher
  return Cell(text, "better" if is_better else "worse")


def _forest(name, first, found, key, title, order):
  """Differences and their intervals, a line each, around 0."""
  rows = [(label, one[key]) for label, one in found.items() if key in one]

  def draw(axes):
    axes.axvline(0, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
    for place, (label, one) in enumerate(rows):
      style = style_of(order.index(label))
      low, high = one["interval"]
      axes.plot([low, high], [-place] * 2, color=style.colour, linewidth=2)
      axes.plot(
        [one["difference"]],
        [-place],
        color=style.colour,
        marker=style.marker,
        markersize=7,
      )
      axes.annotate(
        f"{one['difference']:+.3g}",
        (one["difference"], -place),
        xytext=(0, 7),
        textcoords="offset points",
        ha="center",
        fontsize=8,
      )
    axes.set_yticks(
      [-n for n in range(len(rows))], [_short(row[0]) for row in rows]
    )
    axes.set_ylim(0.6 - len(rows), 0.7)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.locator_params(axis="x", nbins=4)
    axes.spines["left"].set_visible(False)

  height = 0.7 + 0.42 * len(rows)
  about = f"run minus {first}, with 95 % intervals of the same pairs"
  return plot(name, f"{title}: difference", about, draw, size=(4.1, height))


def _short(label, most=26):
  return label if len(label) <= most else f"{label[: most - 1]}…"


def configs(series):
  """Keys in which the configs differ, and all of them in a box to open."""
  flat = {label: _flat(_shown(runs)) for label, runs in series.items()}
  keys = sorted({key for one in flat.values() for key in one})
  apart = [
    key for key in keys if len({one.get(key, "") for one in flat.values()}) > 1
  ]
  parts = []
  if apart:
    rows = []
    for key in apart:
      values = [one.get(key) for one in flat.values()]
      cells = [
        Cell(_value(value), "changed" if value != values[0] else "")
        for value in values
      ]
      rows.append([tag("code", key), *cells])
    parts.append(
      scrolled_table(
        ["key", *flat], rows, caption=CONFIGS, numbers=len(flat) + 1
      )
    )
  elif len(flat) > 1:
    parts.append(tag("p", "All configs are the same but for their data."))
  for label, runs in series.items():
    text = json.dumps(_shown(runs), indent=2, sort_keys=True)
    parts.append(
      tag("details", tag("summary", f"config of {label}"), tag("pre", text))
    )
  return parts


def _shown(runs):
  """The config of some seeds: without hashes, with all of the seeds."""
  config = {k: v for k, v in runs[0].config.items() if k != "identity"}
  seeds = [run.seed for run in runs]
  return config | ({"seed": seeds} if len(seeds) > 1 else {})


def _flat(value, where=""):
  """{dotted key: JSON of its value}."""
  if isinstance(value, dict) and value:
    return {
      k: v
      for name, one in value.items()
      for k, v in _flat(one, f"{where}.{name}" if where else name).items()
    }
  return {where: json.dumps(value, sort_keys=True)}


def _value(text):
  return Html("<i>not set</i>") if text is None else tag("code", text)
