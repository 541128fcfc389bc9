# SPDX-License-Identifier: Apache-2.0
"""The report of a folder of runs: text, results.json and report.html."""

import importlib.util

from mrpo_jax import files
from mrpo_jax.reports.comparison import RESULTS, compared
from mrpo_jax.reports.page import page


def report(workdir):
  """Writes <workdir>/results.json and report.html; returns the text.

  Where matplotlib is missing the page is not written, and the text says so.

  Raises:
    InputError: see `comparison.compared`.
  """
  workdir, comparison = files.path_of(workdir), compared(workdir)
  results = workdir / RESULTS
  contents = {results: files.json_text(comparison.results, results)}
  if importlib.util.find_spec("matplotlib") is None:
    line = (
      f"{page.FILE} is not written: its plots need matplotlib; pip install "
      "'mrpo-jax[plot]'"
    )
  else:
    path = workdir / page.FILE
    contents[path] = page.page(workdir.resolve().name, comparison)
    line = f"report: {path}"
  files.write_together(contents)  # which tell of the same runs
  return f"{comparison.text()}\n{line}"
