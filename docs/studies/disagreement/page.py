# SPDX-License-Identifier: Apache-2.0
"""Page of the study of disagreement: correlations, and a verdict by rule."""

import datetime

import numpy as np

from docs.studies.disagreement import labels as human
from docs.studies.disagreement.scores import MAX_PROMPT, MAX_RESPONSE
from docs.studies.grid import results
from docs.studies.grid.text import machine, table
from mrpo_jax.evaluation.correlation import spearman, spearman_interval
from mrpo_jax.text import with_interval

SMALL = 0.1  # a smaller correlation is of no use
LENGTH = "length alone"


def page(labels, found):
  """Markdown of the study.

  Args:
    labels: list of labels.Labels.
    found: {model: a scores.Scored of each of them}.
  """
  return TEMPLATE.format(
    small=f"{SMALL:.1f}",
    verdict=verdict_table(labels, found),
    tables="\n\n".join(
      section(one, {name: scored[place] for name, scored in found.items()})
      for place, one in enumerate(labels)
    ),
    max_prompt=MAX_PROMPT,
    max_response=MAX_RESPONSE,
    date=datetime.date.today(),
    machine=machine(),
  )


class Correlation:
  """Of what a model says of items with what people did, over its prompts."""

  def __init__(self, labels, scored, measure, values=None):
    items = [labels.items[place] for place in scored.places]
    values = scored.neg_log_dispersion if values is None else values
    human_N = np.array([one.measures[measure] for one in items])
    prompts = [one.prompt for one in items]
    self.value = spearman(values, human_N)
    self.interval = spearman_interval(values, human_N, prompts)

  def __str__(self):
    return with_interval(self.value, self.interval, "+.3f")


def verdict(intervals):
  """By the rule that the page states, from an interval of each file."""
  opposite = [(-high, -low) for low, high in intervals]
  return results.verdict(opposite, small=SMALL)


def verdict_table(labels, found):
  rows = [("model", *(f"{one.title} [95 %]" for one in labels), "verdict")]
  for name, scored in found.items():
    both = zip(labels, scored, strict=True)
    some = [Correlation(one, its, one.measure) for one, its in both]
    said = verdict([one.interval for one in some])
    rows.append((name, *map(str, some), said))
  return table(rows)


def section(labels, found):
  """The table of one file of labels: a row a model, a column a measure."""
  measures = [*labels.items[0].measures]
  rows = [("-log dispersion under", "items", "cut", "its mean")]
  rows[0] += tuple(f"with *{one}* [95 %]" for one in measures)
  for name, scored in found.items():
    figure = scored.neg_log_dispersion
    cells = [Correlation(labels, scored, one) for one in measures]
    count, cut = f"{len(scored.places):,}", f"{scored.truncated:,}"
    rows.append((name, count, cut, f"{figure.mean():.2f}", *map(str, cells)))
  first = next(iter(found.values()))
  cells = [
    Correlation(labels, first, one, values=first.tokens) for one in measures
  ]
  rows.append((LENGTH, f"{len(first.places):,}", "-", "-", *map(str, cells)))
  return SECTION.format(
    title=labels.title,
    about=labels.about,
    sha256=labels.sha256,
    items=f"{len(labels.items):,}",
    prompts=f"{len({one.prompt for one in labels.items}):,}",
    counts="\n".join(
      f"- *{measure}*: "
      + ", ".join(
        f"{value:g} of {count}"
        for value, count in human.counts(labels.items, measure).items()
      )
      for measure in measures
    ),
    table=table(rows),
  )


TEMPLATE = """\
# Disagreement

Made by `python -m docs.studies.disagreement --workdir=DIR --pandalm=FILE
--qa-feedback=FILE --model=FOLDER ...` on {date}
({machine}).

**Claim** (MallowsPO, arXiv:2405.14953): how far people disagree about a prompt
can be read off the next-token entropy of a reference: a prompt on which it is
certain is one on which people agree.  Its *-log dispersion* is the factor of
that prompt on the margin of a loss; it is large where the model is certain.

## Conclusion

By a rule from before the scores.  The claim *holds* for a model where the 95 %
interval of Spearman's correlation of its -log dispersion with the disagreement
of people lies below 0 on both files; it *does not hold* where the interval
begins above -{small} on both, which leaves no correlation of use; else it
*cannot be told at this size*.  PandaLM counts by *disagreement*, QA-Feedback by
*ties*.

{verdict}

{tables}

*items*: those that were scored; one with an empty response is left out.
*{length}*: correlation of the tokens of the responses, by the first model's
tokenizer, in the place of a model's entropy.  *cut*: pairs of which something
was cut.  Intervals are bootstraps of prompts, drawn with all their items.

## Setting

-log dispersion is `losses.neg_log_dispersion` of the entropies that the store
of scores holds: of every response the mean entropy of the next token, as a
share of the log of the vocabulary; the mean over the responses of an item; and
its -log.  A prompt is a conversation in the model's chat template: of PandaLM
instruction and input, of QA-Feedback the question alone, though people saw
passages, too.  At most {max_prompt} tokens of a prompt's end and
{max_response} of a response's start.

`sft-base` (1.0 M parameters) and `sft-second` (0.5 M) are the quickstart's
supervised starts, which have seen HH-RLHF alone; the others are the folders of
`--model`, read in float32, of which those that `launch/real.sh` makes come from
4-bit files.

Not varied: the kind of entropy, the template, the cut.  A row of the second
file has one person's judgement: it says where that person was undecided, not
whether two people would differ.
""".replace("{length}", LENGTH)
SECTION = """\
## {title}

{about}: {items} items of {prompts} prompts (sha256 `{sha256}`).

{counts}

{table}"""
