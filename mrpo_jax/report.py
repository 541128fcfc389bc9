# SPDX-License-Identifier: Apache-2.0
"""Several runs on the same held-out pairs, side by side."""

import pathlib

import numpy as np

from mrpo_jax import evaluate, writer
from mrpo_jax.errors import InputError

PAIRS = "eval_pairs.jsonl"  # per evaluated pair, written by the trainer
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
  pairs = {run: writer.read_lines(run / PAIRS) for run in runs}
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
  writer.write_json(workdir / "results.json", results)
  return table(results)


def result(run, pairs):
  """The figures of one run on the given records of held-out pairs."""
  beta = writer.read_json(run / "config.json")["loss"].get("beta", 0.1)
  margin_N = np.array([beta * margin(pair) for pair in pairs])
  lines = writer.read_lines(run / "metrics.jsonl")
  # The first step holds the compilation.
  rates = [line["pairs"] / line["seconds"] for line in lines[1:]]
  real, slots = (
    sum(line[f"tokens/{kind}"] for line in lines) for kind in ("real", "slots")
  )
  return {
    "accuracy": evaluate.accuracy(margin_N),
    "interval": evaluate.bootstrap_interval(margin_N > 0),
    "margin": float(margin_N.mean()),
    "pairs_per_second": float(np.median(rates)) if rates else None,
    "real_token_share": real / slots,
    "held_out_pairs": len(pairs),
  }


def margin(pair):
  """Log-ratio difference against reference 0, nats, of a line of PAIRS."""
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
  return aligned(rows)


def stored(entries):
  """What a store holds, a line per key, from `store.entries`."""
  rows = [("key", "pairs", "files", "MB", "dtype", "weights")]
  for one in entries:
    about = one["material"]
    rows.append(
      (
        one["key"][:16],
        f"{one['pairs']:,}",
        str(one["shards"]),
        f"{one['bytes'] / 1e6:.1f}",
        about.get("quantize") or about.get("dtype", "-"),
        about.get("weights", "-")[:40],
      )
    )
  return aligned(rows)


def verified(root, problems):
  """Prints that nothing is wrong with a store; else raises InputError."""
  for problem in problems:
    print(problem)
  if problems:
    raise InputError(
      f"{len(problems)} broken in {root}; mrpo store prune removes broken "
      "rows, and mrpo score fills the gap"
    )
  print(f"{root}: every file is as it was written")


def aligned(rows):
  """Rows of text as lines whose columns stand below each other."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return "\n".join(
    "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows
  )
