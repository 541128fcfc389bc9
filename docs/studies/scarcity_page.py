# SPDX-License-Identifier: Apache-2.0
"""Page of the study of scarce pairs: text, tables and figure."""

import datetime
import functools
import importlib.metadata
import os
import platform

import numpy as np

from docs.studies.scarcity_results import (
  FIRST,
  PUBLISHED,
  SCARCE,
  SMALL,
  Result,
  mixture_margins,
  untrained,
  verdict,
)
from mrpo_jax import files
from mrpo_jax.reports import figures, paired
from mrpo_jax.text import with_interval

LINES = {  # told apart without colour
  "multi_dpo": ("0.6", "-", "s"),
  "mrpo_adaptive": ("0.0", "-", "o"),
  "mrpo_uniform": ("0.0", "--", "^"),
  "mrpo_no_clip": ("0.35", ":", "D"),
  "geometric": ("0.35", "-.", "v"),
}


def write_page(to, grid, sets, found):
  """Writes scarcity.md and scarcity.svg into a folder.

  Args:
    to: the folder.
    grid: scarcity.Grid.
    sets: list of scarcity.PairSet.
    found: {scarcity.Trial: (gather.Run, {"seconds", "warnings"})}.
  """
  results = [Result(grid, pairs, found) for pairs in sets]
  draw(results, to / "scarcity.svg")
  text = page(results, [mark for _, mark in found.values()])
  files.write_atomically(to / "scarcity.md", text.encode())


# Tables.


def table(rows):
  """Markdown of rows of text, the first being the heads."""
  head, *rows = rows
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def runs_table(result):
  rows = [("pairs", "steps", "passes", "seconds of a run, median")]
  for fraction in result.grid.fractions:
    pairs, steps = round(fraction * result.pairs.pairs), result.steps(fraction)
    passes = steps * result.grid.batch / pairs
    seconds = np.median(result.seconds(fraction))
    share = f"{pairs:,} ({fraction:.0%})"
    rows.append((share, f"{steps}", f"{passes:.1f}", f"{seconds:.1f}"))
  return table(rows)


def accuracy_table(result):
  rows = [("pairs", "method", "accuracy", "accuracy - dpo [95 %]", "p")]
  rows[0] += ("margin - dpo, nats [95 %]", "alone - dpo [95 %]")
  for fraction in result.grid.fractions:
    found = result.differences(fraction)
    for method in (FIRST, *result.others()):
      accuracy = result.right(fraction, method).mean()
      cells = ["-"] * 4
      if method != FIRST:
        one = found[method]
        cells = [_cell(one["accuracy"]), paired.p_text(one)]
        cells += [_cell(one["margin_nats"]), _cell(one["policy_accuracy"])]
      rows.append((f"{fraction:.0%}", method, f"{accuracy:.3f}", *cells))
  return table(rows)


def _cell(one):
  return with_interval(one["difference"], one["interval"], "+.3f")


def mixture_table(result):
  """The published method by the yardstick of its own code, and without."""
  rows = [("pairs", "yardstick", "accuracy", "accuracy - dpo [95 %]")]
  beta = result.grid.beta
  yardsticks = {
    "the policy's start": figures.reference_margins,
    "mixture, adaptive weights": functools.partial(mixture_margins, beta=beta),
    "mixture, uniform weights": functools.partial(
      mixture_margins, beta=beta, weights="uniform"
    ),
  }
  fractions = result.grid.fractions
  for name, of in [*yardsticks.items()][1:]:
    right = result.right(fractions[0], PUBLISHED, untrained(of))
    rows.append(("none, the start", name, f"{right.mean():.3f}", "-"))
  for fraction in fractions:
    first = result.right(fraction, FIRST)
    for name, of in yardsticks.items():
      right = result.right(fraction, PUBLISHED, of)
      accuracy, lead = f"{right.mean():.3f}", result.text(right - first)
      rows.append((f"{fraction:.0%}", name, accuracy, lead))
  return table(rows)


# Verdict.


def verdict_table(results, lead_of):
  """Of every method: `lead_of`(result, method) in each set, and the verdict."""
  titles = [result.pairs.title for result in results]
  rows = [("method", *(f"{one} [95 %]" for one in titles), "verdict")]
  for method in results[0].others():
    leads = [lead_of(result, method) for result in results]
    both = [*zip(results, leads, strict=True)]
    texts = [result.text(lead) for result, lead in both]
    said = verdict([result.interval(lead) for result, lead in both])
    rows.append((method, *texts, said))
  return table(rows)


# Page.


def page(results, marks):
  grid = results[0].grid
  versions = ", ".join(
    f"{name} {importlib.metadata.version(name)}"
    for name in ("jax", "optax", "transformers")
  )
  scarce = [f"{one:.0%}" for one in grid.fractions if one <= SCARCE]
  second = len(results) > 1
  return TEMPLATE.format(
    command=" --second=FILE --source=TEXT" if second else "",
    date=datetime.date.today(),
    machine=f"{os.cpu_count()} CPU cores, {platform.system()}, Python "
    f"{platform.python_version()}, {versions}",
    sets="\n".join(
      f"- *{one.pairs.title}*: {one.pairs.about}; {one.pairs.pairs:,} pairs to "
      f"train on, {one.count} held out that every run kept "
      f"({one.left_out} left out)."
      for one in results
    ),
    scarce=" and ".join(filter(None, [", ".join(scarce[:-1]), scarce[-1]])),
    most=f"{max(grid.fractions):.0%}",
    small=f"{SMALL:.2f}",
    seeds=len(grid.seeds),
    first=verdict_table(results, Result.scarce_lead),
    other=verdict_table(results, Result.extra_lead),
    results="\n\n".join(map(section, results)),
    runs=len(marks),
    hours=f"{sum(mark['seconds'] for mark in marks) / 3600:.1f}",
    warned=sum(bool(mark["warnings"]) for mark in marks),
    kinds=warnings(results),
    **{key: getattr(grid, key) for key in grid._fields if key in USED},
  )


def section(result):
  return SECTION.format(
    title=result.pairs.title,
    runs=runs_table(result),
    accuracy=accuracy_table(result),
    mixture=mixture_table(result)
    if PUBLISHED in result.grid.methods
    else f"({PUBLISHED} was not run.)",
  )


def warnings(results):
  """What the runs on all pairs said, of the first set and seed."""
  one = results[0]
  fraction, seed = max(one.grid.fractions), one.grid.seeds[0]
  lines = []
  for method in one.grid.methods:
    said = one.marks[fraction, method, seed]["warnings"]
    lines += [f"- *{method}*: {text}" for text in said or ["nothing"]]
  return "\n".join(lines)


def draw(results, to):
  """The lead in accuracy over the share of pairs, a line a method."""
  import matplotlib

  matplotlib.use("svg")
  matplotlib.rcParams["svg.hashsalt"] = "0"  # the same file every time
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(
    1,
    len(results),
    figsize=(5 * len(results), 3.8),
    sharey=True,
    squeeze=False,
    layout="constrained",
  )
  for axis, result in zip(axes[0], results, strict=True):
    draw_set(axis, result)
  axes[0][0].set_ylabel("held-out accuracy less that of dpo")
  drawn = axes[0][0].get_legend_handles_labels()
  figure.legend(*drawn, loc="outside lower center", ncols=5, frameon=False)
  figure.savefig(to, metadata={"Date": None})
  pyplot.close(figure)


def draw_set(axis, result):
  fractions, others = result.grid.fractions, result.others()
  axis.axhline(0, color="0.8", linewidth=1)
  for place, method in enumerate(others):
    color, line, marker = LINES[method]
    leads = [result.lead(fraction, method) for fraction in fractions]
    ends = np.array([result.interval(lead) for lead in leads])
    means = np.array([lead.mean() for lead in leads])
    apart = 1.1 ** (place - (len(others) - 1) / 2)  # so that bars are seen
    axis.errorbar(
      np.array(fractions) * apart,
      means,
      [means - ends[:, 0], ends[:, 1] - means],
      color=color,
      linestyle=line,
      marker=marker,
      markersize=4,
      linewidth=1,
      capsize=2,
      label=method,
    )
  axis.set_xscale("log")
  axis.set_xticks(fractions, [f"{one:.0%}" for one in fractions])
  axis.minorticks_off()
  axis.set_xlabel(f"share of {result.pairs.pairs:,} training pairs")
  axis.set_title(result.pairs.title)


USED = ("batch", "least_steps", "beta", "max_tokens")
TEMPLATE = """\
# Scarce pairs

Made by `python -m docs.studies.scarcity --workdir=DIR{command}` on {date}
({machine}): {runs} runs, {hours} hours.

**Claim** (MRPO, arXiv:2405.16388): several references beat DPO, by up to 7 %,
most where preference pairs are scarce.  A re-study (arXiv:2512.10040) finds DPO
with one reference ahead in six of seven settings.

## Conclusion

By a rule from before the runs.  The lead is a method's held-out accuracy less
that of `dpo`, on the same pairs and seeds, against the policy's start; with
scarce pairs it is the mean over {scarce}.  A statement *holds* where the 95 %
interval lies above 0 on every pair set, of which it takes two; it *does not
hold* where the interval ends below {small} on every one; else it *cannot be
told at this size*.  Each method is judged by itself: of five, one is wrong more
often than of one.  The paper's method is `mrpo_adaptive`.

Does the method lead with scarce pairs?

{first}

Does it lead by more with scarce pairs than with {most} of them?

{other}

![the lead in accuracy over the share of pairs](scarcity.svg)

## Setting

{sets}

The policy starts from the quickstart's supervised start (1.0 M parameters),
which is reference 0; reference 1 is its second one (0.5 M, another shape,
another tokenizer).  Both were trained on the chosen responses of the embedded
pairs. References are scored once, and all runs read the same scores.

- `dpo`: against reference 0 alone, though its runs have both, of weights 1 and
  0: a text is cut where it fits all tokenizers of its run, so all methods read
  the same.
- `multi_dpo`: the mean of one DPO loss per reference.
- `mrpo_adaptive`: as published, harmonic mean, clipped (epsilon 0.1, adaptive),
  adaptive weights; each weight is on its own reference, as in the formula (the
  released code swaps the two).
- `mrpo_uniform`: the same with equal weights.
- `mrpo_no_clip`: equal weights, and no clipping.
- `geometric`: equal weights, no clipping, geometric mean: exact for the reverse
  KL divergence.

A run makes one pass over its share of the pairs, as published, in batches of
{batch}, but at least {least_steps} steps: one pass over 1 % of the pairs would
be a single step, after which no method has moved.  So small shares are passed
over more often, by all methods alike.  There is no early stopping: it would
need held-out pairs that scarce data does not have.  {seeds} seeds, each of
which draws its own share of the pairs (a smaller one lies in a larger one) and
their order.

Not varied: models and their seed, beta {beta:g}, learning rate 1e-4 at its peak
(a tenth of the steps to warm up, then a cosine), batch, {max_tokens} tokens of
a prompt's end and of a response's start, sums of tokens, the number of
references, the division into training and held-out pairs.

{results}

## Warnings

{warned} of {runs} runs said something of their references; of the runs on
{most} of the first set, seed 0:

{kinds}

The models have a million parameters and train for seconds: this shows how the
methods differ on this machine's scale, not which is better for a large one.
"""
SECTION = """\
## {title}

{runs}

{accuracy}

*accuracy*: against the policy's start, mean over seeds; *margin*: of the
log-ratio against it; *alone*: accuracy of the policy's own log-probability.
Intervals are paired bootstraps of prompts and of seeds; p: exact sign test by
prompt of each seed, from the least to the largest.

`mrpo_adaptive` by the yardstick of the released code, its own mixture, whose
adaptive weights and clipping read both responses of a labelled pair; with these
weights switched off in the evaluation; and by that of the tables above.  `dpo`
is always measured against the policy's start.  The first rows are of the start
itself, before a step: what a yardstick gives without training.

{mixture}"""
