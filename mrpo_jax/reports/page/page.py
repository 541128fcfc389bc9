# SPDX-License-Identifier: Apache-2.0
"""The whole page: sections in their order, warnings, style."""

import math

from mrpo_jax import __version__
from mrpo_jax.references.warnings import warnings
from mrpo_jax.reports.page import tables
from mrpo_jax.reports.page.benchmarks import benchmarks
from mrpo_jax.reports.page.curves import learning_curves
from mrpo_jax.reports.page.markup import Html, breakable, tag
from mrpo_jax.reports.page.mixture import mixtures
from mrpo_jax.reports.page.pictures import pictures
from mrpo_jax.reports.page.plots import swatch
from mrpo_jax.reports.page.samples import samples
from mrpo_jax.reports.page.style import STYLE
from mrpo_jax.text import counted, with_interval

FILE = "report.html"
# Of fewer, all lead the same way by chance in more than one case of twenty, and
# no bootstrap of them holds 0 then.
FEWEST = 6
# The page may load nothing, whatever stands in a sample or a config.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(title, comparison):
  """HTML text of a Comparison under a title."""
  series = shown_series(comparison)
  sections = {
    "summary": ("Summary", _summary(comparison)),
    "warnings": ("Warnings", _warnings(comparison, series)),
    "runs": ("Runs side by side", tables.runs_table(comparison)),
    "differences": ("Differences", [*tables.differences(comparison)]),
    "curves": ("Learning curves", _curves(series)),
    "mixture": ("References in the mixture", mixtures(series)),
    "benchmarks": ("Benchmarks", benchmarks(series)),
    "samples": ("Samples", samples(series)),
    "pictures": ("Pictures", pictures(series)),
    "configs": ("Configs", tables.configs(series)),
  }
  sections = {name: one for name, one in sections.items() if one[1]}
  links = [
    tag("a", heading, href=f"#{name}")
    for name, (heading, _) in sections.items()
  ]
  body = [
    tag(
      "header",
      tag("p", "mrpo report", class_="eyebrow"),
      tag("h1", title),
      tag("p", _size(comparison), class_="size"),
      tag("nav", links, aria_label="Sections"),
    ),
    tag(
      "main",
      [
        tag("section", tag("h2", heading), content, id=name)
        for name, (heading, content) in sections.items()
      ],
    ),
    tag("footer", f"mrpo_jax {__version__}"),
  ]
  head = [
    tag("meta", charset="utf-8"),
    tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
    tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
    tag("meta", name="color-scheme", content="light dark"),
    tag("title", f"{title}: mrpo report"),
    Html(f"<style>{STYLE}</style>"),
  ]
  whole = tag("html", tag("head", head), tag("body", body), lang="en")
  return f"<!doctype html>\n{whole}\n"


def shown_series(comparison):
  """{label: runs}: the evaluated series, then each run that was not."""
  evaluated = {run.name for runs in comparison.series.values() for run in runs}
  others = {
    name: [run]
    for name, run in comparison.runs.items()
    if name not in evaluated
  }
  return comparison.series | others


def _size(comparison):
  runs = sum(map(len, comparison.series.values()))
  return (
    f"{counted(len(comparison.series), 'config')}, {counted(runs, 'run')} that "
    "were evaluated"
  )


def _summary(comparison):
  """A card for each series: accuracy, margin, and how it differs."""
  cards, firsts = [], comparison.differences()
  for n, label in enumerate(comparison.series):
    one = comparison.results[label]
    difference = one.get("difference")
    cards.append(
      tag(
        "li",
        tag("h3", swatch(n, "summary"), " ", breakable(label)),
        *_main_figures(one),
        tag("p", verdict(difference, label in firsts), class_="verdict"),
      )
    )
  note = (
    "In brackets: 95 % intervals of the difference on the same held-out pairs, "
    "by paired bootstrap; n and tests stand under Differences."
  )
  return [
    tag("ul", cards, class_="cards"),
    tag("p", note, class_="note") if firsts else "",
  ]


def _main_figures(one):
  """Accuracy and margin of a run, or what it has in their place."""
  figures = [
    (one["accuracy"], ".3f", "accuracy"),
    (one["margin_nats"], "+.2f", "nats of margin"),
    (one["policy_accuracy"], ".3f", "accuracy of the policy alone"),
    (one["nll"], ".3f", "nats a token of chosen responses"),
  ]
  found = [figure for figure in figures if figure[0] is not None][:2]
  for n, (value, form, about) in enumerate(found):
    number = tag("b", format(value, form), class_=None if n else "big")
    yield tag("p", number, f" {about}")


def verdict(difference, is_first=False):
  """A sentence on how a series differs from the first, by paired intervals."""
  if is_first:
    return "the others are compared with this one"
  if difference is None:
    return "nothing is compared with this one"
  if share := difference.get("reference_apart"):
    return (
      f"not compared with {difference['to']}: reference 0 scores {share:.0%} "
      "of the pairs otherwise"
    )
  key = "accuracy" if "accuracy" in difference else "policy_accuracy"
  if key not in difference:
    return f"has no yardstick in common with {difference['to']}"
  low, high = difference[key]["interval"]
  what = "accuracy" if key == "accuracy" else "accuracy of the policy alone"
  value = with_interval(difference[key]["difference"], (low, high), "+.3f")
  size = _prompts(difference)
  if size[0] < FEWEST:
    return (
      f"too few to compare with {difference['to']} ({counted(*size)}): {what} "
      f"{value}"
    )
  said = f"{difference['to']}: {what} {value}"
  if low > 0:
    return f"better than {said}"
  if high < 0:
    return f"worse than {said}"
  return f"not told apart from {said}"


def _prompts(difference):
  """(how many are drawn, "prompt"); pairs where prompts are not known."""
  if difference["prompts"] is None:
    return difference["pairs"], "pair"
  return difference["prompts"], "prompt"


def _curves(series):
  plots = learning_curves(series)
  if plots is None:
    return None
  several = any(len(runs) > 1 for runs in series.values())
  band = "; the band reaches from the least to the largest of the seeds"
  return [
    tag(
      "p",
      "Lines are means over the seeds of a config"
      + (band if several else "")
      + ".",
      class_="note",
    ),
    tables.legend(series),
    plots,
  ]


def _warnings(comparison, series):
  """What is said of several runs alike stands once, with their names."""
  found = [*comparison.notes]
  for runs in series.values():
    for run in runs:
      found += [f"{run.name}: {one}" for one in reference_warnings(run)]
  said = {}
  for sentence in found:
    name, colon, what = sentence.partition(": ")
    is_of_run = colon and name in comparison.runs
    said.setdefault(what if is_of_run else sentence, []).extend(
      [name] if is_of_run else []
    )
  items = [
    tag(
      "li",
      [breakable(", ".join(dict.fromkeys(names))), ": "] if names else "",
      what,
    )
    for what, names in said.items()
  ]
  return tag("ul", items, class_="warnings") if items else None


def reference_warnings(run):
  """What the last evaluation, or the last step, says against its references."""
  names = run.config.get("references", {}).get("names") or []
  for place in ("eval/", ""):
    figures = run.last_of_all(place)
    if any(name.startswith("references/") for name in figures):
      break
  # How large a vocabulary is, the files of a run do not say.
  sizes = dict.fromkeys(names, math.inf)
  return [sentence for _, sentence in warnings(figures, names, log_vocab=sizes)]
