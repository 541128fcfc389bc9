# SPDX-License-Identifier: Apache-2.0
"""Page of the study of benchmarks after training: tables, verdict by rule."""

import datetime

import numpy as np

from docs.studies.downstream.measure import SOLUTION, START, WORDS
from docs.studies.grid.results import FAILS, HOLDS, OPEN
from docs.studies.grid.text import machine, table
from mrpo_jax.evaluation.statistics import paired_interval
from mrpo_jax.text import with_interval

SMALL = 0.02  # a smaller gain in accuracy is none of the claimed size
NATS = 0.1  # and of a solution's log-likelihood
FLOOR = "says nothing: no model is right once"
BENCHMARKS = {  # figure -> how small a gain is none
  "truthfulqa_mc1": SMALL,
  "truthfulqa_mc2": SMALL,
  "gsm8k strict-match": SMALL,
  "gsm8k flexible-extract": SMALL,
  SOLUTION: NATS,
}


def page(found, seconds, asked):
  """Markdown of the study.

  Args:
    found: {figure: {model: value_N}}, of the same documents.
    seconds: that asking took.
    asked: study.Asked.
  """
  benchmarks = {name: one for name, one in found.items() if name in BENCHMARKS}
  samples = {name: one for name, one in found.items() if name not in BENCHMARKS}
  return TEMPLATE.format(
    date=datetime.date.today(),
    machine=machine(),
    hours=f"{seconds / 3600:.1f}",
    verdict=verdict_table(benchmarks),
    benchmarks=figures_table(benchmarks),
    samples=figures_table(samples),
    small=SMALL,
    nats=f"{NATS:g}",
    words=WORDS,
    max_new_tokens=asked.max_new_tokens,
  )


def gain(values, method, other):
  """(mean, interval) over documents of a method's figure, less another's."""
  difference_N = values[method] - values[other]
  return difference_N.mean(), paired_interval(difference_N)


def verdict(values, small):
  """Is MRPO better than DPO?  By the rule that the page states."""
  if not any(np.any(one) for one in values.values()):
    return FLOOR
  _, (low, high) = gain(values, "mrpo", "dpo")
  if low > 0:
    return HOLDS
  # Where all documents agree the interval has no width, however few they are.
  differ = np.any(values["mrpo"] != values["dpo"])
  return FAILS if differ and high < small else OPEN


def verdict_table(found):
  rows = [("`mrpo` is better than `dpo` by", "mrpo - dpo [95 %]", "verdict")]
  for figure, values in found.items():
    text = with_interval(*gain(values, "mrpo", "dpo"), "+.3f")
    rows.append((figure, text, verdict(values, BENCHMARKS[figure])))
  return table(rows)


def figures_table(found):
  rows = [("figure", "documents", START, "dpo - start [95 %]")]
  rows[0] += ("mrpo - start [95 %]", "mrpo - dpo [95 %]")
  for figure, values in found.items():
    cells = [
      with_interval(*gain(values, *both), "+.3f")
      for both in (("dpo", START), ("mrpo", START), ("mrpo", "dpo"))
    ]
    mean = f"{values[START].mean():.3f}"
    rows.append((figure, f"{len(values[START]):,}", mean, *cells))
  return table(rows)


TEMPLATE = """\
# Downstream

Made by `python -m docs.studies.downstream --workdir=DIR --real=DIR` on {date}
({machine}): {hours} hours of asking, after `bash launch/real.sh DIR`.

**Claim** (MRPO, arXiv:2405.16388): against several references a policy does
better on GSM8K and TruthfulQA than one trained by DPO.

## Conclusion

By a rule from before the numbers.  A statement *holds* where the 95 % interval
of MRPO's figure less DPO's, over documents, lies above 0; it *does not hold*
where the interval ends below {small} (of the log-likelihood: {nats} nats a
document); else it *cannot be told at this size*, as where no document tells the
two apart: its interval has no width, however few documents there are.  Where no
model is right on a single document, a figure says nothing.  The bound on the
log-likelihood was set after a trial of two documents of each task.

{verdict}

One run of each, of one seed: the intervals are of documents alone, and another
seed's runs may differ by more.

## Benchmarks

{benchmarks}

*truthfulqa_mc1*: is the best answer the likeliest?  *mc2*: the share of
probability on right answers.  *gsm8k*: the answer after five shots is exactly
right, read strictly and flexibly.  *{solution}*: the log-likelihood, nats, of
the solution that the data set gives, after the same shots: it moves where exact
match is at its floor.

## Samples

Of held-out prompts, one answer each, at temperature 1 and with the same draws,
of at most {max_new_tokens} tokens:

{samples}

*cut*: share that reached the most tokens.  *repetition*: share of the runs of
{words} words that stand there a second time.

## Setting

`launch/real.sh`, as its config (`configs/real.py`) has it:
SmolLM2-135M-Instruct (4-bit weights, read to float32), LoRA, 24 steps of 16
pairs of HH harmless; `dpo` against its own start, `mrpo` against it and Gemma 3
270M: harmonic and clipped as published, with equal weights, which read no
label, and references on one scale by z-scores, since their tokens differ.  Its
numbers are not those of the published models.

Not varied: seed, pairs, steps, learning rate, second reference, prompts.
""".replace("{solution}", SOLUTION)
