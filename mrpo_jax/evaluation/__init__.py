# SPDX-License-Identifier: Apache-2.0
"""Evaluation: benchmarks, judges and statistics of what a model says."""

import importlib

from mrpo_jax.errors import InputError

LAZY = {
  "HarnessLM": "harness",
  "Scorer": "loglikelihood",
  "evaluate_tasks": "evaluate",
  "figures": "evaluate",
  "standard_errors": "evaluate",
  "table": "evaluate",
  "find": "tasks.find",
  "check_shots": "tasks.shots",
}
HARNESS = ("lm_eval", "datasets")  # of the extra `eval`


def __getattr__(name):
  # What needs the harness, or a model, is imported where it is asked for.
  if name in LAZY:
    try:
      module = importlib.import_module(f"{__name__}.{LAZY[name]}")
    except ModuleNotFoundError as error:
      if error.name not in HARNESS:
        raise
      raise InputError(
        "benchmarks need lm-evaluation-harness: pip install 'mrpo-jax[eval]'"
      ) from None
    return getattr(module, name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
