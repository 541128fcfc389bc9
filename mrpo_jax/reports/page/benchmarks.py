# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of the page: scores over the training, and what was asked."""

import numpy as np

from mrpo_jax.evaluation.asked import what_was_asked
from mrpo_jax.reports.page.markup import breakable, scrolled_table, tag
from mrpo_jax.reports.page.samples import when
from mrpo_jax.text import bracketed

CAPTION = """
Benchmarks, as the evaluation harness scores them: first and last figure of each
run, mean over seeds with the least and the largest in brackets; ±: standard
error over the documents, the mean of the seeds.  metrics.jsonl keeps no answers
by document, so no paired interval and no test can be given here, and nothing is
ranked.
"""


def benchmarks(series):
  """Table of scores and what was asked of whom; None where there are none."""
  names = sorted(
    {
      key
      for runs in series.values()
      for run in runs
      for line in run.lines
      for key in line
      if is_benchmark(key)
    }
  )
  if not names:
    return None
  rows, asked = [], {}
  for label, runs in series.items():
    # A row of each: of a group of tasks there are dozens.
    for name in names:
      cells = [_cell(runs, name, place) for place in (0, -1)]
      if any(cells):
        title = name.removeprefix("eval/")
        rows.append([breakable(label), breakable(title), *cells])
        asked.setdefault(_asked(runs[0].config), {})[label] = None
  return [
    *(
      tag("p", breakable(", ".join(labels)), f": {said}", class_="note")
      for said, labels in asked.items()
    ),
    scrolled_table(
      ["run", "benchmark", "first", "last"], rows, caption=CAPTION, numbers=2
    ),
  ]


def is_benchmark(key):
  """Is it eval/task/metric,filter?  A figure of held-out pairs has no comma."""
  # But for the names of references, which are free.
  is_of_reference = key.startswith("eval/references/")
  is_figure = key.startswith("eval/") and "," in key and not is_of_reference
  return is_figure and not key.partition(",")[0].endswith("_stderr")


def error_of(name):
  """The name of a figure's standard error."""
  metric, comma, kind = name.partition(",")
  return f"{metric}_stderr{comma}{kind}"


def _asked(config):
  """Model, documents, shots and chat template of a run's config, in words."""
  sections = [config.get(name) for name in ("policy", "evaluation")]
  policy, given = (one if isinstance(one, dict) else {} for one in sections)
  start, shots = policy.get("path"), given.get("num_fewshot", -1)
  return what_was_asked(
    f"the policy that starts as {start}" if start else "the policy",
    limit=given.get("limit") or None,
    num_fewshot=None if shots == -1 else shots,
    apply_chat_template=given.get("apply_chat_template"),
  )


def _scores(runs, name, place):
  """[(step, value, its standard error or None)] of each run.

  It is the run's first one or its last; an only one is last.
  """
  found = []
  for run in runs:
    values, errors = run.by_step(name), run.by_step(error_of(name))
    if len(values) > (place == 0):
      step = [*values][place]
      found.append((step, values[step], errors.get(step)))
  return found


def _cell(runs, name, place):
  """A mean, its standard error, the range of the seeds, and at which step."""
  scores = _scores(runs, name, place)
  if not scores:
    return None
  steps, values, errors = zip(*scores, strict=True)
  text, notes = f"{np.mean(values):.3f}", []
  if errors := [error for error in errors if error is not None]:
    notes.append(f"±{np.mean(errors):.3f}")
  if len(values) > 1:
    notes.append(bracketed((min(values), max(values)), ".3f"))
  notes.append(when(sorted({*steps})))
  return [text, " ", tag("small", " ".join(notes))]
