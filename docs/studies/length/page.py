# SPDX-License-Identifier: Apache-2.0
"""Page of the study of length: text, tables and figure."""

from docs.studies.grid import draw as drawing
from docs.studies.grid import text
from docs.studies.grid.results import verdict
from docs.studies.length.results import (
  FIRST,
  RHO,
  TOKENS,
  Lengths,
  of_prompts,
)
from docs.studies.length.results import text as shown
from mrpo_jax.reports import figures


def page(grid, results, marks):
  """Markdown of the page.

  Args:
    grid: study.Grid.
    results: list of grid.results.Results.
    marks: of all runs, {"seconds", "warnings"}.
  """
  lengths = [Lengths(result) for result in results]
  return TEMPLATE.format(
    made_by=text.made_by("length", results, marks),
    tokens=f"{TOKENS:g}",
    rho=f"{RHO:g}",
    verdict=verdict_table(grid, lengths),
    sets=text.set_list(results),
    pushes="\n".join(
      f"- *{one.result.pairs.title}*: chosen is longer in "
      f"{one.longer_share:.1%} of the training pairs, of those that differ in "
      f"characters: {'longer' if one.sign > 0 else 'shorter'}."
      for one in lengths
    ),
    results="\n\n".join(section(grid, one) for one in lengths),
    seeds=len(grid.seeds),
    **{key: getattr(grid, key) for key in grid._fields if key in USED},
  )


def verdict_table(grid, lengths):
  titles = [one.result.pairs.title for one in lengths]
  rows = [("statement", *(f"{one} [95 %]" for one in titles), "verdict")]

  def add(statement, found, small, form):
    said = verdict([interval for _, interval in found], small)
    rows.append((statement, *(shown(one, form) for one in found), said))

  pushed = [one.pushed(FIRST) for one in lengths]
  add(f"`{FIRST}` moves the length of samples", pushed, TOKENS, "+.1f")
  for method in others(grid):
    steadier = [one.steadier(method) for one in lengths]
    add(f"`{method}` moves it less", steadier, TOKENS, "+.1f")
  for method in others(grid):
    weaker = [one.weaker(method) for one in lengths]
    statement = f"margins of `{method}` follow length less"
    add(statement, weaker, RHO, "+.3f")
  return text.table(rows)


def others(grid):
  return [one for one in grid.methods if one != FIRST]


def section(grid, lengths):
  return SECTION.format(
    title=lengths.result.pairs.title,
    samples=samples_table(grid, lengths),
    prompts=lengths.samples(FIRST, before=True).shape[1],
    longer=(lengths.excess_N > 0).sum(),
    shorter=(lengths.excess_N < 0).sum(),
    equal=(lengths.excess_N == 0).sum(),
    margins=margins_table(grid, lengths),
  )


def samples_table(grid, lengths):
  rows = [("method", "tokens", "cut", "less the start's [95 %]")]
  rows[0] += (f"growth - {FIRST}'s [95 %]",)
  start, cut = (
    lengths.samples(FIRST, before=True).mean(),
    lengths.cut(FIRST, before=True),
  )
  rows.append(("the start", f"{start:.1f}", f"{cut:.0%}", "-", "-"))
  for method in grid.methods:
    growth_RN, more = lengths.growth(method), "-"
    if method != FIRST:
      more = shown(of_prompts(growth_RN - lengths.growth(FIRST)), "+.1f")
    tokens = f"{lengths.samples(method, before=False).mean():.1f}"
    cut = f"{lengths.cut(method, before=False):.0%}"
    growth = shown(of_prompts(growth_RN), "+.1f")
    rows.append((method, tokens, cut, growth, more))
  return text.table(rows)


def margins_table(grid, lengths):
  rows = [("method", "accuracy", "chosen longer", "chosen shorter")]
  rows[0] += ("margin and length [95 %]", "alone, per token, and length [95 %]")
  for method in grid.methods:
    cells = []
    for longer in (True, False):
      found = lengths.accuracy(method, longer=longer)
      cells.append(shown(found, ".3f") if found else "-")
    for of in (figures.reference_margins, figures.policy_mean_margins):
      cells.append(shown(lengths.correlation(method, of), "+.3f"))
    accuracy = lengths.result.right(method).mean()
    rows.append((method, f"{accuracy:.3f}", *cells))
  return text.table(rows)


def draw(grid, results, to):
  """Growth of the samples, a mark a method, a panel a pair set."""
  with drawing.panels(results, to, width=4.5, height=3.2) as (_, axes):
    for axis, result in zip(axes, results, strict=True):
      lengths = Lengths(result)
      axis.axhline(0, color="0.8", linewidth=1)
      for place, method in enumerate(grid.methods):
        growth_RN = lengths.growth(method)
        drawing.seeds(axis, place, growth_RN, *of_prompts(growth_RN))
      axis.set_xticks(range(len(grid.methods)), grid.methods)
      axis.set_title(
        f"{result.pairs.title}: chosen longer in {lengths.longer_share:.0%}"
      )
    axes[0].set_ylabel("tokens of an answer, less the start's")


USED = (
  *("steps", "batch", "peak_lr", "max_prompt", "max_response"),
  "longest_prompt",
)
TEMPLATE = """\
# Length

{made_by}

**Claim** (SamPO, arXiv:2406.10957): DPO's margin grows with the difference in
length of the two responses, so the policy learns to be as long as the chosen
ones are longer; with as many tokens of both (SamPO) it does so less.  LD-DPO
(2409.06411), R-DPO (2403.19159) and SimPO (2405.14734) say the same of theirs.

## Conclusion

By rules from before all runs but those of one seed.  Each pair set pushes one
way:

{pushes}

*moves the length*: the mean growth of sampled answers over the start's, in that
direction; *moves it less*: the size of the mean growth of `dpo`, in whichever
direction, less that of the method; *margins follow length less*: the size of
Spearman's correlation of the margin with the length difference, of `dpo` less
that of the method.  A statement *holds* where the 95 % interval lies above 0 on
every pair set, of which it takes two; it *does not hold* where the interval
ends below {tokens} token, or below {rho} of a correlation, on every one; else
it *cannot be told at this size*.  Each statement is judged by itself: of nine,
one is wrong more often than of one.  The sizes took the place of signed
differences after the runs of one seed, in which SimPO's answers grew against
the push of the pairs.

{verdict}

![growth of sampled answers](length.svg)

{results}

## Setting

{sets}

Policy and reference are the quickstart's supervised start (1.0 M parameters).
{steps} steps of {batch} pairs, learning rate {peak_lr:g} at its peak (a tenth
of the steps to warm up, then a cosine), {seeds} seeds of the order of the
pairs.  {max_prompt} tokens of a prompt's end and {max_response} of a response's
start, so that few responses lose their end.  Losses have the choices of their
papers: beta 0.1 per nat of `dpo`, `sampo`, `ld_dpo` (alpha 0.5) and `r_dpo`
(alpha 0.05 per token), of `simpo` 2 per nat and token, gamma 1.

Answers are drawn at temperature 1, one to each of the same held-out prompts of
at most {longest_prompt} characters, up to {max_response} tokens: longer ones
are cut there.  A run's seed is that of its draws: at the same prompt and
position all methods, and the start, have the same random number.

Margins are the log-ratio of all tokens against the start, whatever the loss
weighs: the same yardstick for all.  SimPO's own reward is the policy's
log-probability per token, the last column.

Not varied: models and their seed, beta, learning rate and steps of a method
(a loss may move less because it learns less: see its accuracy), the
temperature, the division into training and held-out pairs.

The models have a million parameters and train for seconds: this shows how the
methods differ on this machine's scale, not which is better for a large one.
"""
SECTION = """\
## {title}

Answers to {prompts} held-out prompts:

{samples}

Held-out pairs: chosen is longer in {longer}, shorter in {shorter}, and as long
in {equal}, in tokens as they were cut.

{margins}

*accuracy*: against the policy's start; then of the pairs where chosen is
longer, and shorter.  *margin and length*: Spearman's correlation over held-out
pairs.  Intervals are bootstraps of prompts and of seeds, paired where it is a
difference."""
