# SPDX-License-Identifier: Apache-2.0
"""Several runs on the same held-out pairs, side by side."""

import json
import pathlib

import numpy as np

from mrpo_jax import evaluate, writer
from mrpo_jax.errors import InputError

HEADER = ("method", "accuracy [95 %]", "margin", "pairs/s", "real tokens")


def compare(workdir):
  """Writes <workdir>/results.json of every evaluated run; returns a table.

  Accuracy and margin are against reference 0, the same for every run that
  starts from the same policy: the share of held-out pairs whose chosen
  response has the larger reward, and the mean of beta times the log-ratio
  difference, in nats.
  """
  workdir = pathlib.Path(workdir)
  runs = sorted(path.parent for path in workdir.glob("*/eval_pairs.jsonl"))
  results = {run.name: result(run) for run in runs}
  results = {name: value for name, value in results.items() if value}
  if not results:
    raise InputError(
      f"--workdir {workdir} holds no run that was evaluated against a reference"
    )
  writer.write_json(workdir / "results.json", results)
  return table(results)


def result(run):
  """The figures of one run; None where it has no reference."""
  pairs = writer.read_lines(run / "eval_pairs.jsonl")
  if not pairs or not pairs[0]["references"]:
    return None
  beta = json.loads((run / "config.json").read_text())["loss"].get("beta", 0.1)
  margin_N = np.array([beta * _margin(pair) for pair in pairs])
  lines = writer.read_lines(run / "metrics.jsonl")
  # The first step holds the compilation.
  steps = [line for line in lines if "seconds" in line][1:]
  rates = [line["pairs"] / line["seconds"] for line in steps]
  right_N = margin_N > 0
  return {
    "accuracy": evaluate.accuracy(margin_N),
    "interval": evaluate.bootstrap_interval(right_N),
    "margin": float(margin_N.mean()),
    "pairs_per_second": float(np.median(rates)) if rates else None,
    "real_token_share": sum(line["tokens/real"] for line in lines)
    / sum(line["tokens/slots"] for line in lines),
    "held_out_pairs": len(pairs),
  }


def _margin(pair):
  (chosen, rejected), base = pair["policy"], pair["references"][0]
  return (chosen - base[0]) - (rejected - base[1])


def table(results):
  """Aligned text, one line per run."""
  rows = [HEADER]
  for name, r in results.items():
    low, high = r["interval"]
    speed = r["pairs_per_second"]
    rows.append(
      (
        name,
        f"{r['accuracy']:.3f} [{low:.3f}, {high:.3f}]",
        f"{r['margin']:+.4f}",
        "-" if speed is None else f"{speed:.1f}",
        f"{r['real_token_share']:.1%}",
      )
    )
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return "\n".join(
    "  ".join(
      cell.ljust(width) for cell, width in zip(row, widths, strict=True)
    )
    for row in rows
  )
