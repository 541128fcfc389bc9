# SPDX-License-Identifier: Apache-2.0
"""Page of the study of scarce pairs: text, tables and figure."""

import functools
from typing import NamedTuple

import numpy as np

from docs.studies.grid import draw as drawing
from docs.studies.grid import text
from docs.studies.grid.results import RULE, mixture_margins, untrained
from docs.studies.scarcity.results import (
  FIRST,
  PUBLISHED,
  SCARCE,
  Leads,
  others,
)
from mrpo_jax.reports import figures

LINES = {  # told apart without colour
  "multi_dpo": ("0.6", "-", "s"),
  "mrpo_adaptive": ("0.0", "-", "o"),
  "mrpo_uniform": ("0.0", "--", "^"),
  "mrpo_no_clip": ("0.35", ":", "D"),
  "geometric": ("0.35", "-.", "v"),
}


class Told(NamedTuple):
  """What the page says of the models, which the grid does not know."""

  title: str
  study: str  # name of its module, its page and its figure
  flags: str  # of its command, beside those of every study
  models: str  # which, and what each is
  rate: str  # the learning rate and its schedule
  size: str  # what models of this size can show


# Tables.


def runs_table(grid, result):
  rows = [("pairs", "steps", "passes", "seconds of a run, median")]
  for fraction in grid.fractions:
    pairs = round(fraction * result.pairs.pairs)
    steps = grid.steps(fraction, result.pairs.pairs)
    passes = steps * grid.batch / pairs
    seconds = np.median(result.seconds(lambda key, f=fraction: key[0] == f))
    share = f"{pairs:,} ({fraction:.0%})"
    rows.append((share, f"{steps}", f"{passes:.1f}", f"{seconds:.1f}"))
  return text.table(rows)


def accuracy_table(grid, result):
  heads = (one.format(first=FIRST) for one in text.DIFFERENCES)
  rows = [("pairs", "method", "accuracy", *heads)]
  for fraction in grid.fractions:
    methods = (FIRST, *others(grid))
    found = result.differences({one: (fraction, one) for one in methods})
    for method in methods:
      accuracy = result.right(fraction, method).mean()
      cells = text.difference_cells(found.get(method))
      rows.append((f"{fraction:.0%}", method, f"{accuracy:.3f}", *cells))
  return text.table(rows)


def mixture_table(grid, result):
  """The published method by the yardstick of its own code, and without."""
  rows = [("pairs", "yardstick", "accuracy", "accuracy - dpo [95 %]")]
  beta = grid.beta
  yardsticks = {
    "the policy's start": figures.reference_margins,
    "mixture, adaptive weights": functools.partial(mixture_margins, beta=beta),
    "mixture, uniform weights": functools.partial(
      mixture_margins, beta=beta, weights="uniform"
    ),
  }
  for name, of in [*yardsticks.items()][1:]:
    right = result.right(grid.fractions[0], PUBLISHED, of=untrained(of))
    rows.append(("none, the start", name, f"{right.mean():.3f}", "-"))
  for fraction in grid.fractions:
    first = result.right(fraction, FIRST)
    for name, of in yardsticks.items():
      right = result.right(fraction, PUBLISHED, of=of)
      accuracy, lead = f"{right.mean():.3f}", result.text(right - first)
      rows.append((f"{fraction:.0%}", name, accuracy, lead))
  return text.table(rows)


def verdict_table(grid, results, lead_of):
  """Of every method: `lead_of`(Leads, method) in each set, and the verdict."""
  return text.verdict_table(
    results,
    "method",
    {
      method: lambda result, m=method: lead_of(Leads(grid, result), m)
      for method in others(grid)
    },
  )


# Page.


def page(grid, told, results, marks):
  """Markdown of the page.

  Args:
    grid: study.Grid.
    told: Told.
    results: list of grid.results.Results.
    marks: of all runs, {"seconds", "warnings"}.
  """
  scarce = [f"{one:.0%}" for one in grid.fractions if one <= SCARCE]
  return TEMPLATE.format(
    **told._asdict(),
    made_by=text.made_by(told.study, results, marks, told.flags),
    sets=text.set_list(results),
    scarce=" and ".join(filter(None, [", ".join(scarce[:-1]), scarce[-1]])),
    most=f"{max(grid.fractions):.0%}",
    rule=RULE,
    seeds=len(grid.seeds),
    methods="\n".join(METHOD_TEXT[method] for method in grid.methods),
    first=verdict_table(grid, results, Leads.scarce),
    other=verdict_table(grid, results, Leads.extra),
    results="\n\n".join(section(grid, one) for one in results),
    runs=len(marks),
    warned=sum(bool(mark["warnings"]) for mark in marks),
    kinds=warnings(grid, results[0]),
    **{key: getattr(grid, key) for key in grid._fields if key in USED},
  )


def section(grid, result):
  return SECTION.format(
    title=result.pairs.title,
    runs=runs_table(grid, result),
    accuracy=accuracy_table(grid, result),
    legend=text.DIFFERENCES_LEGEND,
    mixture=mixture_table(grid, result)
    if PUBLISHED in grid.methods
    else f"({PUBLISHED} was not run.)",
  )


def warnings(grid, result):
  """What the runs on all pairs said, of the first set and seed."""
  fraction, seed = max(grid.fractions), grid.seeds[0]
  return text.warning_list(
    {
      method: result.marks[fraction, method, seed]["warnings"]
      for method in grid.methods
    }
  )


def draw(grid, results, to):
  """The lead in accuracy over the share of pairs, a line a method."""
  with drawing.panels(results, to, width=5, height=3.8) as (figure, axes):
    for axis, result in zip(axes, results, strict=True):
      draw_set(grid, axis, result)
    axes[0].set_ylabel("held-out accuracy less that of dpo")
    drawn = axes[0].get_legend_handles_labels()
    figure.legend(*drawn, loc="outside lower center", ncols=5, frameon=False)


def draw_set(grid, axis, result):
  fractions, methods = grid.fractions, others(grid)
  axis.axhline(0, color="0.8", linewidth=1)
  for place, method in enumerate(methods):
    color, line, marker = LINES[method]
    leads = [Leads(grid, result).of(fraction, method) for fraction in fractions]
    apart = 1.1 ** (place - (len(methods) - 1) / 2)  # so that bars are seen
    places = np.array(fractions) * apart
    style = dict(color=color, linestyle=line, marker=marker, label=method)
    drawing.leads(axis, places, result, leads, **style)
  axis.set_xscale("log")
  axis.set_xticks(fractions, [f"{one:.0%}" for one in fractions])
  axis.minorticks_off()
  axis.set_xlabel(f"share of {result.pairs.pairs:,} training pairs")


METHOD_TEXT = {
  "dpo": """\
- `dpo`: against reference 0 alone, though its runs have both, of weights 1 and
  0: a text is cut where it fits all tokenizers of its run, so all methods read
  the same.""",
  "multi_dpo": """\
- `multi_dpo`: the mean of one DPO loss per reference.""",
  "mrpo_adaptive": """\
- `mrpo_adaptive`: as published, harmonic mean, clipped (epsilon 0.1, adaptive),
  adaptive weights; each weight is on its own reference, as in the formula (the
  released code swaps the two).""",
  "mrpo_uniform": """\
- `mrpo_uniform`: the same with equal weights.""",
  "mrpo_no_clip": """\
- `mrpo_no_clip`: equal weights, and no clipping.""",
  "geometric": """\
- `geometric`: equal weights, no clipping, geometric mean: exact for the reverse
  KL divergence.""",
}
USED = ("batch", "least_steps", "beta", "max_tokens")
TEMPLATE = """\
# {title}

{made_by}

**Claim** (MRPO, arXiv:2405.16388): several references beat DPO, by up to 7 %,
most where preference pairs are scarce.  A re-study (arXiv:2512.10040) finds DPO
with one reference ahead in six of seven settings.

## Conclusion

By a rule from before the runs.  The lead is a method's held-out accuracy less
that of `dpo`, on the same pairs and seeds, against the policy's start; with
scarce pairs it is the mean over {scarce}.
{rule}
Each method is judged by itself: of many, one is wrong more often than of one.
The paper's method is `mrpo_adaptive`.

Does the method lead with scarce pairs?

{first}

Does it lead by more with scarce pairs than with {most} of them?

{other}

![the lead in accuracy over the share of pairs]({study}.svg)

## Setting

{sets}

{models}
References are scored once, and all runs read the same scores.

{methods}

A run makes one pass over its share of the pairs, as published, in batches of
{batch}, but at least {least_steps} steps: one pass over a small share would be
a step or a few, after which no method has moved.  So small shares are passed
over more often, by all methods alike.  There is no early stopping: it would
need held-out pairs that scarce data does not have.  {seeds} seeds, each of
which draws its own share of the pairs (a smaller one lies in a larger one) and
their order.

Not varied: models and their seed, beta {beta:g}, {rate}, batch, {max_tokens}
tokens of a prompt's end and of a response's start, sums of tokens, the number
of references, the division into training and held-out pairs.

{results}

## Warnings

{warned} of {runs} runs said something of their references; of the runs on
{most} of the first set, seed 0:

{kinds}

{size}
"""
SECTION = """\
## {title}

{runs}

{accuracy}

{legend}

`mrpo_adaptive` by the yardstick of the released code, its own mixture, whose
adaptive weights and clipping read both responses of a labelled pair; with these
weights switched off in the evaluation; and by that of the tables above.  `dpo`
is always measured against the policy's start.  The first rows are of the start
itself, before a step: what a yardstick gives without training.

{mixture}"""
