# SPDX-License-Identifier: Apache-2.0
"""Evaluation: benchmarks, judges and statistics of what a model says."""

import importlib

LAZY = {
  "HarnessLM": "harness",
  "Scorer": "loglikelihood",
  "evaluate_tasks": "evaluate",
  "figures": "evaluate",
  "table": "evaluate",
  "find": "tasks.find",
}


def __getattr__(name):
  # What needs the harness, or a model, is imported where it is asked for.
  if name in LAZY:
    module = importlib.import_module(f"{__name__}.{LAZY[name]}")
    return getattr(module, name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
