# SPDX-License-Identifier: Apache-2.0
"""Page of the re-study of weighted references: text, tables and figure."""

import numpy as np

from docs.studies.grid import draw as drawing
from docs.studies.grid import text
from docs.studies.grid.results import RULE, untrained
from docs.studies.restudy.results import (
  PAPER,
  YARDSTICK,
  better,
  leads_of_clipping,
  leads_over_original,
  right,
  several,
  single_leads,
  singles,
)
from mrpo_jax.evaluation.statistics import sign_test
from mrpo_jax.reports import figures

NAMES = ("base", "second", "sharp")


def page(grid, results, marks):
  """Markdown of the page.

  Args:
    grid: study.Grid.
    results: list of grid.results.Results.
    marks: of all runs, {"seconds", "warnings"}.
  """
  return TEMPLATE.format(
    made_by=text.made_by("restudy", results, marks),
    rule=RULE,
    sets=text.set_list(results),
    single=text.verdict_table(results, "ahead of", single_leads(grid)),
    original=text.verdict_table(results, "strategy", leads_over_original(grid)),
    clipping=text.verdict_table(results, "clipped", leads_of_clipping(grid)),
    results="\n\n".join(section(grid, one) for one in results),
    steps=" and ".join(f"{grid.steps(one.pairs.pairs)}" for one in results),
    seeds=len(grid.seeds),
    batch=grid.batch,
    beta=grid.beta,
    judge_every=grid.judge_every,
    peak_lr=grid.peak_lr,
    max_tokens=grid.max_tokens,
    warned=sum(bool(mark["warnings"]) for mark in marks),
    runs=len(marks),
  )


def section(grid, result):
  return SECTION.format(
    title=result.pairs.title,
    references=references_table(grid, result),
    accuracy=accuracy_table(grid, result),
    weights=weights_table(grid, result),
    seconds=f"{np.median(result.seconds()):.1f}",
  )


def references_table(grid, result):
  """What each reference is worth, on the training pairs of a scale's runs."""
  rows = [("scale", "reference", "accuracy", "margin", "its deviation")]
  for scale in dict.fromkeys(scale for scale, _ in grid.variants):
    first, *_ = (one for one in grid.variants if one[0] == scale)
    for name in NAMES:
      accuracy, mean, deviation = (
        result.training(*first, name=f"references/{name}/{figure}")
        for figure in ("accuracy", "margin", "margin_sd")
      )
      cells = f"{accuracy:.3f}", f"{mean:+.2f}", f"{deviation:.2f}"
      rows.append((scale, name, *cells))
  return text.table(rows)


def accuracy_table(grid, result):
  heads = ["scale", "method", "paper: SafeRLHF", "UltraFeedback", "accuracy"]
  heads += [f"less dpo_{name} [95 %]" for name in NAMES]
  rows = [(*heads, "p to the better", "against start, less the better [95 %]")]
  start = result.right(*grid.variants[0], of=untrained(YARDSTICK)).mean()
  rows.append(("-", "none, the start", *["-"] * 2, f"{start:.3f}", *["-"] * 5))
  for variant in grid.variants:
    scale, method = variant
    mine = right(result, variant)
    others = [(scale, f"dpo_{name}") for name in NAMES]
    leads = [
      "-"
      if one == variant or one not in grid.variants
      else result.text(mine - right(result, one))
      for one in others
    ]
    paper = PAPER.get(method, ("-", "-")) if scale == "mean" else ("-", "-")
    rows.append(
      (*variant, *paper, f"{mine.mean():.3f}", *leads)
      + against_better(grid, result, variant)
    )
  return text.table(rows)


def against_better(grid, result, variant):
  """(p of each seed, from least to largest; lead against the start)."""
  scale, _ = variant
  first = better(grid, result, scale)
  ps, lead = "-", "-"
  if variant != first:
    difference_RN = right(result, variant) - right(result, first)
    found = sorted(sign_test(one, result.prompts) for one in difference_RN)
    ps = f"{found[0]:.2g} to {found[-1]:.2g}"
  of = figures.reference_margins
  first = better(grid, result, scale, of)
  if variant != first:
    lead = result.text(right(result, variant, of) - right(result, first, of))
  return ps, lead


def weights_table(grid, result):
  """What weighs in training: means over steps, pairs and seeds."""
  heads = [f"weight of {name}" for name in NAMES]
  rows = [("scale", "method", *heads, "mixture of sharp", "gradient scale")]
  rows[0] += ("its deviation",)
  for variant in several(grid):
    keys = [f"references/{name}/weight" for name in NAMES]
    keys += ["references/sharp/responsibility", "gradient_scale"]
    keys += ["gradient_scale_sd"]
    cells = [f"{result.training(*variant, name=key):.3f}" for key in keys]
    rows.append((*variant, *cells))
  for scale in dict.fromkeys(scale for scale, _ in grid.variants):
    for variant in singles(grid, scale):
      cells = [
        f"{result.training(*variant, name=key):.3f}"
        for key in ("gradient_scale", "gradient_scale_sd")
      ]
      rows.append((*variant, *["-"] * 4, *cells))
  return text.table(rows)


def draw(grid, results, to):
  """The lead over the better single-reference DPO, a line a method."""
  methods = several(grid)
  height = 0.3 * len(methods) + 1
  with drawing.panels(results, to, width=4.5, height=height) as (_, axes):
    for axis, result in zip(axes, results, strict=True):
      axis.axvline(0, color="0.8", linewidth=1)
      leads = [-lead_of(result) for lead_of in single_leads(grid).values()]
      means = np.array([lead.mean() for lead in leads])
      ends = np.array([result.interval(lead) for lead in leads])
      axis.errorbar(
        means,
        range(len(methods)),
        xerr=[means - ends[:, 0], ends[:, 1] - means],
        fmt="o",
        color="0.2",
        markersize=4,
        linewidth=1,
        capsize=2,
      )
      axis.set_yticks(range(len(methods)), map(" ".join, methods))
      axis.set_xlabel("accuracy less that of the better DPO")
    axes[0].invert_yaxis()


TEMPLATE = """\
# Weights of references

{made_by}

**Claim** (arXiv:2512.10040, a re-study of MRPO with seven references of 0.5 B
to 14 B parameters): DPO against a single one of six of the seven is ahead of
every method with several; and four new ways to weigh them are ahead of MRPO's
own.  Its published logs say more: the seventh reference, whose log-ratios
spread about three times as far as the others', took most of the weight wherever
weights follow margins; clipping (CTRO), which MRPO has against that, was left
out; and `vaw_multi` is ahead of every single reference on UltraFeedback.

## Conclusion

By a rule from before the runs.  A lead is a difference of held-out accuracy on
the same pairs and seeds, by the yardstick of the re-study: the policy's own
log-probability per token, without a reference.  {rule}
Each statement is judged by itself: of many, one is wrong more often than of
one.

Is the better single-reference DPO of the same scale ahead of the method?  It is
chosen by the pairs that it is judged by, on each set, which favours it.

{single}

Is a strategy ahead of the original weights (`mean arwc_mrpo`)?

{original}

Is clipping ahead of none?

{clipping}

![lead over the better single-reference DPO](restudy.svg)

## Setting

{sets}

One training dialogue in six was set apart for validation, by which weights of
VDW and VAW are measured.  The policy starts from the quickstart's supervised
start (1.0 M parameters), which is reference *base*; *second* is its second one
(0.5 M, another shape, another tokenizer); *sharp* is the second one with its
logits times three, in the place of the re-study's seventh.  All runs have all
three, with weight 0 where one is not meant, so that texts are cut alike.

- `dpo_NAME`: DPO against that reference alone.
- `..._multi`: the weighted mean of one DPO loss per reference; `..._mrpo`:
  DPO against their weighted harmonic mean.
- `arwc`: MRPO's own weights, the share of absolute margins of each pair; `vdw`:
  that share over all validation pairs; `vaw`: the share of validation pairs
  ranked right; `window`: the share of margins of the batch before; `thompson`:
  one reference at a time, judged every {judge_every} steps by whether accuracy
  rose, on the held-out pairs themselves, since a run has no others, which can
  only favour it; `fixed`: equal weights.
- `..._ctro`: the others clipped around reference 0, epsilon 0.1, adaptive.
- `mean`: log-probabilities per token, as in the re-study; `sum`: as in MRPO
  (`sum arwc_mrpo_ctro` is MRPO as published).

A run makes one pass in batches of {batch}, as in the re-study ({steps} steps);
{seeds} seeds of the pairs' order and of Thompson's draws.  Left out: *window*
and *fixed* against the harmonic mean, since the re-study's better form is the
other and fixed weights are close to VAW's here; the one-hot window, which is
DPO against the sharp reference; ARWC in its other form; and most rules on sums,
where the harmonic mean is close to a minimum and weights cancel.

The learning rate, {peak_lr:g} at its peak (a tenth of the steps to warm up,
then a cosine; the re-study's is constant), is ten times the quickstart's: in
trials of `mean dpo_base` the policy by itself ranked 5 of 427 held-out pairs
otherwise than its start after that one, and 25 after this one, and a method can
lead by no more than what moves.  It was chosen with five evaluations of the
held-out harmless pairs in sight: `mean dpo_base` at 1e-4, 4e-4 and 1e-3, `sum
dpo_base` and `mean vaw_multi` at 1e-3.

Not varied: models and their seed, beta {beta:g}, the learning rate,
{max_tokens} tokens of a prompt's end and of a response's start, the number of
references, the division into training, validation and held-out pairs.

{results}

{warned} of {runs} runs said something of their references.

The models have a million parameters and train for seconds: this shows how the
methods differ on this machine's scale, not which is better for a large one.
"""
SECTION = """\
## {title}

The references on the training pairs, in nats, of sums or per token:

{references}

Accuracy by the re-study's yardstick, mean over seeds, and differences to each
single-reference DPO of the same scale; p: exact sign test by prompt of each
seed, from the least to the largest, to the better of them; last, the
difference to the better by accuracy against the policy's start.  Intervals are
paired bootstraps of prompts and of seeds.  The paper's numbers stand beside the
method that they are of (five and three seeds; *dpo_second*: its five good
references that are not the start).

{accuracy}

What weighed in training, means over steps and seeds: weights (of Thompson: the
share of steps on an arm), the share of the sharp reference in the mixture at
the chosen response, and each pair's weight in the gradient, sigma(-beta h),
which is 0.5 where a reference changes nothing.

{weights}

A run took {seconds} seconds, the median."""
