# SPDX-License-Identifier: Apache-2.0
"""Page of the study of dispersion: text, tables and figure."""

import numpy as np

from docs.studies.dispersion.runs import DISPERSED, PLAIN, factors_of
from docs.studies.grid import draw as drawing
from docs.studies.grid import text
from docs.studies.grid.results import RULE


def page(grid, results, marks):
  """Markdown of the page.

  Args:
    grid: runs.Grid.
    results: list of grid.results.Results.
    marks: of all runs, {"seconds", "warnings"}.
  """
  return TEMPLATE.format(
    made_by=text.made_by("dispersion", results, marks),
    rule=RULE,
    verdict=text.verdict_table(
      results,
      "the factor helps",
      {
        method: lambda result, m=method: lead(result, m)
        for method in grid.methods
      },
    ),
    sets=text.set_list(results),
    factors=factors_table(grid, results),
    results="\n\n".join(section(grid, one) for one in results),
    seeds=len(grid.seeds),
    **{key: getattr(grid, key) for key in grid._fields if key in USED},
  )


def lead(result, method):
  """[seeds, pairs] accuracy with the factor, less that without."""
  return result.right(method, DISPERSED) - result.right(method, PLAIN)


def factors_table(grid, results):
  """How far the factor differs between training pairs."""
  rows = [("pairs", "mean -log dispersion", "factor, 5 % and 95 % of pairs")]
  method = grid.methods[0]
  for result in results:
    [workdir] = {run.folder.parents[1] for run in result.runs(method, PLAIN)}
    value_N = factors_of(workdir, result.pairs, method, grid)
    low, high = np.quantile(value_N / value_N.mean(), [0.05, 0.95])
    spread = f"{low:.2f} to {high:.2f}"
    rows.append((result.pairs.title, f"{value_N.mean():.3f}", spread))
  return text.table(rows)


def section(grid, result):
  heads = (one.format(first=PLAIN) for one in text.DIFFERENCES)
  rows = [("method", PLAIN, DISPERSED, *heads)]
  for method in grid.methods:
    kinds = {kind: (method, kind) for kind in (PLAIN, DISPERSED)}
    found = result.differences(kinds)[DISPERSED]
    accuracies = [f"{result.right(*one).mean():.3f}" for one in kinds.values()]
    rows.append((method, *accuracies, *text.difference_cells(found)))
  return SECTION.format(
    title=result.pairs.title,
    table=text.table(rows),
    legend=text.DIFFERENCES_LEGEND,
  )


def draw(grid, results, to):
  """The gain in accuracy, a mark a method, a panel a pair set."""
  with drawing.panels(results, to, width=4, height=3.2) as (_, axes):
    for axis, result in zip(axes, results, strict=True):
      axis.axhline(0, color="0.8", linewidth=1)
      for place, method in enumerate(grid.methods):
        lead_RN = lead(result, method)
        interval = result.interval(lead_RN)
        drawing.seeds(axis, place, lead_RN, lead_RN.mean(), interval)
      axis.set_xticks(range(len(grid.methods)), grid.methods)
    axes[0].set_ylabel("held-out accuracy less that without")


USED = ("steps", "batch", "peak_lr", "max_tokens")
TEMPLATE = """\
# Dispersion

{made_by}

**Claim** (MallowsPO, arXiv:2405.14953): a factor per pair, from the entropy of
the reference, on the margin inside a loss makes DPO better, and others too.

## Conclusion

By a rule from before the runs.  The gain is the held-out accuracy of a method
with the factor less that of the same method without, on the same pairs and
seeds, against the policy's start.
{rule}
Each method is judged by itself: of three, one is wrong more often than of one.

{verdict}

![gain in accuracy with the factor](dispersion.svg)

## The factor

{factors}

The factor of a pair is its -log dispersion under reference 0 (see
`losses.neg_log_dispersion`) over the mean of the training pairs, so it is 1 on
average; the table says how far it goes from 1.  What it has to do with people
is [another study](disagreement.md).

{results}

## Setting

{sets}

The policy starts from the quickstart's supervised start (1.0 M parameters),
which is reference 0, and from which the factor is.

- `dpo`: beta 0.1 per nat; with the factor it is Mallows-theta, MallowsPO's own.
- `simpo`: beta 2 per nat and token, gamma 1; its margin is of the policy alone,
  and the factor is on margin and gamma, as in the released code.
- `mrpo`: as published (clipped, adaptive weights), beta 0.1; reference 1 is the
  quickstart's second start (0.5 M, another shape, another tokenizer).

{steps} steps of {batch} pairs, learning rate {peak_lr:g} at its peak (a tenth
of the steps to warm up, then a cosine), {max_tokens} tokens of a prompt's end
and of a response's start, {seeds} seeds of the order of the pairs.

Not varied: models and their seed, beta, learning rate, steps, which reference
gives the entropy, Mallows-phi, the division into training and held-out pairs.

The models have a million parameters and train for seconds: this shows what the
factor does on this machine's scale, not what it does for a large model.
"""
SECTION = """\
## {title}

{table}

{legend}"""
