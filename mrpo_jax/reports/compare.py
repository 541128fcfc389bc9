# SPDX-License-Identifier: Apache-2.0
"""Comparison of several runs on the same held-out pairs."""

import pathlib

import numpy as np

from mrpo_jax import files
from mrpo_jax.errors import InputError
from mrpo_jax.runs.workdir import PAIRS
from mrpo_jax.text import aligned

HEADER = ("method", "accuracy [95 %]", "margin", "pairs/s", "real tokens")


def compare(workdir):
  """Writes <workdir>/results.json of every evaluated run; returns a table.

  Accuracy and margin are on the held-out pairs that every run evaluated, and
  against reference 0, the same for runs that start from the same policy: the
  share of pairs whose chosen response has the larger reward, and the mean of
  beta times the log-ratio difference, in nats.
  """
  workdir = pathlib.Path(workdir)
  runs = sorted(path.parent for path in workdir.glob(f"*/{PAIRS}"))
  pairs = {run: files.read_lines(run / PAIRS) for run in runs}
  pairs = {run: p for run, p in pairs.items() if p and p[0]["references"]}
  if not pairs:
    raise InputError(
      f"--workdir {workdir} holds no run that was evaluated against a reference"
    )
  shared = set.intersection(*({x["pair"] for x in p} for p in pairs.values()))
  if not shared:
    raise InputError(f"--workdir {workdir}: its runs share no held-out pair")
  results = {
    run.name: result(run, [pair for pair in p if pair["pair"] in shared])
    for run, p in pairs.items()
  }
  files.write_json(workdir / "results.json", results)
  return text(results)


def result(run, pairs):
  """The figures of one run on the given records of held-out pairs."""
  beta = files.read_json(run / "config.json")["loss"].get("beta", 0.1)
  margin_N = np.array([beta * margin(pair) for pair in pairs])
  lines = files.read_lines(run / "metrics.jsonl")
  # The first step holds the compilation.
  rates = [line["pairs"] / line["seconds"] for line in lines[1:]]
  real, slots = (
    sum(line[f"tokens/{kind}"] for line in lines) for kind in ("real", "slots")
  )
  return {
    "accuracy": accuracy(margin_N),
    "interval": bootstrap_interval(margin_N > 0),
    "margin": float(margin_N.mean()),
    "pairs_per_second": float(np.median(rates)) if rates else None,
    "real_token_share": real / slots,
    "held_out_pairs": len(pairs),
  }


def margin(pair):
  """Log-ratio difference against reference 0, nats, of a line of PAIRS."""
  (chosen, rejected), base = pair["policy"], pair["references"][0]
  return (chosen - base[0]) - (rejected - base[1])


def text(results):
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
  return aligned(rows)


def accuracy(margin_N):
  """Share of strictly positive margins."""
  return float(np.mean(np.asarray(margin_N) > 0))


def bootstrap_interval(value_N, *, seed=0, samples=10_000, level=0.95):
  """Percentile interval of the mean of value_N: [low, high]."""
  value_N = np.asarray(value_N, np.float64)
  rng = np.random.default_rng(seed)
  means = [
    value_N[rng.integers(0, len(value_N), len(value_N))].mean()
    for _ in range(samples)
  ]
  tail = (1 - level) / 2
  return np.quantile(means, [tail, 1 - tail]).tolist()
