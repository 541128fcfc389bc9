# SPDX-License-Identifier: Apache-2.0
"""Text of a study's page: Markdown tables, pair sets, machine and versions."""

import datetime
import importlib.metadata
import os
import platform

from docs.studies.grid.results import verdict
from mrpo_jax.reports import paired
from mrpo_jax.text import with_interval


def table(rows):
  """Markdown of rows of text, the first being the heads."""
  head, *rows = rows
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


DIFFERENCES = (
  "accuracy - {first} [95 %]",
  "p",
  "margin - {first}, nats [95 %]",
  "alone - {first} [95 %]",
)
DIFFERENCES_LEGEND = """\
*accuracy*: against the policy's start, mean over seeds; *margin*: of the
log-ratio against it; *alone*: accuracy of the policy's own log-probability.
Intervals are paired bootstraps of prompts and of seeds; p: exact sign test by
prompt of each seed, from the least to the largest."""


def difference_cells(one):
  """The cells below DIFFERENCES, of one that `Results.differences` gives."""
  if one is None:
    return ["-"] * len(DIFFERENCES)
  accuracy, margin, alone = (
    with_interval(one[name]["difference"], one[name]["interval"], "+.3f")
    for name in ("accuracy", "margin_nats", "policy_accuracy")
  )
  return [accuracy, paired.p_text(one), margin, alone]


def verdict_table(results, head, leads):
  """Of every statement its lead in each pair set, and the verdict.

  Args:
    results: list of Results.
    head: of the first column.
    leads: {statement: function of Results -> difference_RN}.
  """
  titles = [result.pairs.title for result in results]
  rows = [(head, *(f"{one} [95 %]" for one in titles), "verdict")]
  for statement, lead_of in leads.items():
    both = [(result, lead_of(result)) for result in results]
    texts = [result.text(lead) for result, lead in both]
    said = verdict([result.interval(lead) for result, lead in both])
    rows.append((statement, *texts, said))
  return table(rows)


def made_by(study, results, marks, flags=""):
  """Command, date, machine, versions, number of runs and hours."""
  flags += " --second=FILE --source=TEXT" if len(results) > 1 else ""
  hours = sum(mark["seconds"] for mark in marks) / 3600
  return (
    f"Made by `python -m docs.studies.{study} --workdir=DIR{flags}` on\n"
    f"{datetime.date.today()}\n({machine()}):\n{len(marks)} runs, "
    f"{hours:.1f} hours."
  )


def machine():
  """Cores, system, and versions of what computes."""
  versions = ", ".join(
    f"{name} {importlib.metadata.version(name)}"
    for name in ("jax", "optax", "transformers")
  )
  return (
    f"{os.cpu_count()} CPU cores, {platform.system()}, Python "
    f"{platform.python_version()}, {versions}"
  )


def set_list(results):
  """A line about each pair set."""
  return "\n".join(
    f"- *{one.pairs.title}*: {one.pairs.about}; {one.pairs.pairs:,} pairs to "
    f"train on, {one.count} held out that every run kept "
    f"({one.left_out} left out)."
    for one in results
  )


def warning_list(found):
  """What runs said of their references: {label: list of sentences}."""
  lines = []
  for label, said in found.items():
    lines += [f"- *{label}*: {text}" for text in said or ["nothing"]]
  return "\n".join(lines)
