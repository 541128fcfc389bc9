# SPDX-License-Identifier: Apache-2.0
"""Page of the study of second references: text, tables and figure."""

import numpy as np

from docs.studies.grid import draw as drawing
from docs.studies.grid import text
from docs.studies.grid.results import RULE
from docs.studies.which_reference.results import (
  DPO,
  DPO_OF,
  gradient,
  lead,
  leads,
  mixed,
  second_margins,
  statements,
)

# Of each kind of weights: marker, grey, and where it stands beside its tick.
MARKERS = {"uniform": ("^", "0.5", -0.1), "adaptive": ("o", "0.0", 0.1)}


def page(grid, results, marks):
  """Markdown of the page.

  Args:
    grid: study.Grid.
    results: list of grid.results.Results.
    marks: of all runs, {"seconds", "warnings"}.
  """
  return TEMPLATE.format(
    made_by=text.made_by("which_reference", results, marks),
    rule=RULE,
    sets=text.set_list(results),
    statements=text.verdict_table(results, "statement", statements(grid)),
    leads=text.verdict_table(results, "reference, weights", leads(grid)),
    results="\n\n".join(section(grid, one) for one in results),
    seeds=len(grid.seeds),
    steps=grid.steps,
    batch=grid.batch,
    beta=grid.beta,
    max_tokens=grid.max_tokens,
    warnings=warnings(grid, results[0]),
  )


def section(grid, result):
  return SECTION.format(
    title=result.pairs.title,
    references=references_table(grid, result),
    accuracy=accuracy_table(grid, result),
    gradient=gradient_table(grid, result),
    legend=text.DIFFERENCES_LEGEND,
    seconds=f"{np.median(result.seconds()):.1f}",
  )


def references_table(grid, result):
  """What a second reference is, on the training pairs; base is the start."""
  rows = [("reference", "accuracy", "held out", "agrees with base")]
  rows[0] += ("margin's deviation", "per token", "weight", "in the mixture")
  rows[0] += ("clipped",)
  some = {name: (name, method) for name, method in mixed(grid)}
  base = next(iter(some))
  rows.append(
    (
      "base",
      f"{result.training(*some[base], name='references/base/accuracy'):.3f}",
      f"{result.figure(*some[base], name='eval/references/base/accuracy'):.3f}",
      "-",
      f"{result.training(*some[base], name='references/base/margin_sd'):.1f}",
      f"{result.training(*some[base], name='references/base/token_logp'):.2f}",
      *["-"] * 3,
    )
  )
  for name in dict.fromkeys(name for name, _ in mixed(grid)):
    variant, about = some[name], f"references/{name}/"
    accuracy, deviation, token, weight, share, low, high = (
      result.training(*variant, name=about + figure)
      for figure in (
        *("accuracy", "margin_sd", "token_logp", "weight", "responsibility"),
        *("clipped_low", "clipped_high"),
      )
    )
    agreement = result.training(
      *variant, name=f"references/base/agreement/{name}"
    )
    held_out = (result.values(*variant, of=second_margins)[0] > 0).mean()
    rows.append(
      (
        name,
        f"{accuracy:.3f}",
        f"{held_out:.3f}",
        f"{agreement:.3f}",
        f"{deviation:.1f}",
        f"{token:.2f}",
        f"{weight:.3f}",
        f"{share:.3f}",
        f"{low + high:.3f}",
      )
    )
  return text.table(rows)


def accuracy_table(grid, result):
  heads = (one.format(first=DPO) for one in text.DIFFERENCES)
  rows = [("reference", "weights", "accuracy", *heads)]
  for first in dict.fromkeys(DPO_OF.values()):
    some = [one for one in mixed(grid) if DPO_OF[one[0]] == first]
    if not some:
      continue
    found = result.differences({one: one for one in [(first, DPO), *some]})
    for variant in [(first, DPO), *some]:
      name, method = variant
      shown = (name, method)
      if method == DPO:
        shown = ("-", f"{DPO}, texts cut as with {first}")
      accuracy = f"{result.right(*variant).mean():.3f}"
      cells = text.difference_cells(found.get(variant))
      rows.append((*shown, accuracy, *cells))
  return text.table(rows)


def gradient_table(grid, result):
  rows = [
    ("reference", "weights", "deviation before", "mean where it is right")
  ]
  rows[0] += ("wrong", "deviation after", "DPO's", "correlation", "more")
  for variant in mixed(grid):
    found = gradient(grid, result, variant)
    cells = ["-" if one is None else f"{one:.3f}" for one in found.values()]
    rows.append((*variant, *cells))
  return text.table(rows)


def warnings(grid, result):
  """What the runs said, of the first set and seed."""
  return text.warning_list(
    {
      " ".join(one): result.marks[*one, grid.seeds[0]]["warnings"]
      for one in mixed(grid)
    }
  )


def draw(grid, results, to):
  """The lead over DPO; references in the order of their accuracy."""
  with drawing.panels(results, to, width=5.5, height=3.8) as (figure, axes):
    for axis, result in zip(axes, results, strict=True):
      axis.axhline(0, color="0.8", linewidth=1)
      draw_set(axis, grid, result)
      axis.set_xlabel("reference, with its accuracy on training pairs")
    axes[0].set_ylabel("held-out accuracy less that of dpo")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
      handles, labels, loc="outside lower center", ncols=2, frameon=False
    )


def draw_set(axis, grid, result):
  accuracy = {
    name: result.training(name, method, name=f"references/{name}/accuracy")
    for name, method in mixed(grid)
  }
  order = sorted(accuracy, key=accuracy.get)
  for method, (marker, color, beside) in MARKERS.items():
    some = [name for name in order if (name, method) in grid.variants]
    leads = [lead(result, (name, method)) for name in some]
    places = [order.index(name) + beside for name in some]
    style = dict(fmt=marker, color=color, label=method)
    drawing.leads(axis, places, result, leads, **style)
  names = [f"{name}\n{accuracy[name]:.3f}" for name in order]
  axis.set_xticks(range(len(order)), names, fontsize=7)


TEMPLATE = """\
# Which second reference helps

{made_by}

**Claim** (MRPO, arXiv:2405.16388): a second reference, a model of another
family, adds what the policy's start does not know.  Others say that a stronger
reference helps where it fits the policy (arXiv:2407.13709), and that a policy
tuned once already is a good one (arXiv:2504.15843).

## Conclusion

By a rule from before the runs.  The lead is the held-out accuracy of MRPO with
that second reference less that of DPO, on the same texts, pairs and seeds,
against the policy's start.  *Better* ones are *larger* and *tuned*, *another*
one is *other*, *bad* ones are *untrained* and *mistokenised*; a statement's
lead is the mean over its references and both kinds of weights.
{rule}
Each statement is judged by itself: of many, one is wrong more often than of
one.

{statements}

Does MRPO lead with that second reference?

{leads}

![lead of MRPO with each second reference](which_reference.svg)

## Setting

{sets}

The policy starts from the quickstart's supervised start (1.0 M parameters),
which is reference 0, *base*.  MRPO (harmonic mean, clipped as published,
epsilon 0.1, adaptive) with *uniform* or *adaptive* weights, and as reference 1:

- *copy*: the start again; MRPO is then DPO, whatever the weights.
- *smaller* and *larger*: 0.2 M and 3.2 M parameters, the same tokenizer,
  trained as the start was on the chosen responses of the embedded pairs:
  *smaller* for as many steps, 40; *larger* for 120, at a lower rate, since
  after 40 it gave a token less likelihood than the start.
- *tuned*: the start after 60 steps of DPO, at 1e-3, on the embedded training
  pairs, which are those of the first set: so it knows their labels.
  The steps of *larger* and *tuned* were set after a first page of one seed of
  the first set, whose leads were in sight.
- *other*: the quickstart's second start (0.5 M, another shape, another
  tokenizer).
- *untrained*: the start's shape with random weights.
- *mistokenised*: the start's weights with *other*'s tokenizer.

DPO is run twice: a text is cut where it fits all tokenizers of its run, and
*other* and *mistokenised* have a second one.

A run is the quickstart's: {steps} steps of {batch} pairs, a pass over the first
set; {seeds} seeds of the pairs' order.  Not varied: models and their seed, beta
{beta:g}, learning rate 1e-4 at its peak (a tenth of the steps to warm up, then
a cosine), {max_tokens} tokens of a prompt's end and of a response's start, sums
of tokens, clipping, the number of references, the division into training and
held-out pairs.

{results}

## Warnings

What runs said of their references, of the first set and seed:

{warnings}

The models have a million parameters and train for seconds: this shows how
references differ on this machine's scale, not which is better for a large
model.
"""
SECTION = """\
## {title}

The references on the training pairs, from the scores in the store: accuracy,
share of pairs on which it agrees with *base*, deviation of the margin in nats,
nats per token; its weight where adaptive (0.5 for *copy*), its share of the
mixture at the chosen response, and of responses that are clipped.

{references}

{accuracy}

{legend}

What the virtual reference does to the gradient: each held-out pair's weight,
sigma(-beta h).  Before a step DPO's are all 0.5: their deviation, and their
means over the pairs that the second reference ranks right and wrong.  After
training: their deviation and that in DPO's run, their correlation with what the
same policy's would be against its start alone, and how much more their mean is.

{gradient}

A run took {seconds} seconds, the median."""
