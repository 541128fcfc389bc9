# SPDX-License-Identifier: Apache-2.0
"""The report of a folder of runs: text, results.json and report.html."""

import importlib.util

from mrpo_jax.reports.comparison import compared, write_results
from mrpo_jax.reports.page import page


def report(workdir):
  """Writes <workdir>/results.json and report.html; returns the text.

  Where matplotlib is missing the page is not written, and the text says so.

  Raises:
    InputError: see `comparison.compared`.
  """
  comparison = compared(workdir)
  write_results(workdir, comparison)
  if importlib.util.find_spec("matplotlib") is None:
    line = (
      f"{page.FILE} is not written: its plots need matplotlib; pip install "
      "mrpo-jax[plot]"
    )
  else:
    line = f"report: {page.write(workdir, comparison)}"
  return f"{comparison.text()}\n{line}"
