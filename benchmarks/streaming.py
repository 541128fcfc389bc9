# SPDX-License-Identifier: Apache-2.0
"""Time and memory until a run on many rows takes its first step.

  python -m benchmarks.streaming --workdir=DIR [--rows=10000000] [--kind=jsonl]

The pairs are the shorter ones of the embedded human preferences, again and
again with a running number; the policy is tiny.  Printed are the seconds from
the command to the line of the first step, what the processors worked until
then, the peak of resident memory, pairs a second, and the share of the time in
which steps waited for their rows, beside runs on the first rows of the same
file, streamed and in memory.  The files stay in DIR: remove them afterwards.
"""

import argparse
import itertools
import json
import os
import pathlib
import subprocess
import sys
import time

from benchmarks import material
from mrpo_jax import configs, files
from mrpo_jax.data import formats

LONGEST = 1000  # characters of a pair
SMALL = 4096  # rows that are also read into memory
BATCH = 32


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--rows", type=int, default=10_000_000)
  parser.add_argument("--kind", choices=("jsonl", "parquet"), default="jsonl")
  parser.add_argument("--row_group", type=int, default=10_000)
  parser.add_argument("--steps", type=int, default=60)
  parser.add_argument("--make", action="store_true", help="the file alone")
  given = parser.parse_args()
  workdir = pathlib.Path(given.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  pairs = embedded()
  paths = []
  for count in (given.rows, min(SMALL, given.rows)):
    path = workdir / f"{count}-{given.row_group}.{given.kind}"
    if not path.exists():
      write(path, pairs, count, given.row_group)
    paths.append(path)
  if given.make:
    return
  (model, *_), _ = material.random_models(workdir, "tiny", "float32", 1, pairs)
  print(
    "| run | size | first step | of processors | peak memory | pairs/s | wait |"
  )
  print("|---|---|---|---|---|---|---|")
  whole, small = paths
  for what, path, streams in (
    ("streamed", whole, True),
    ("streamed", small, True),
    ("in memory", small, False),
  ):
    found = run(workdir, model, path, streams, given.steps)
    print(row(what, path, *found), flush=True)


def embedded():
  """The embedded pairs of at most LONGEST characters."""
  pairs = formats.read(configs.HH_HARMLESS / "train.jsonl.gz")
  return [one for one in pairs if sum(map(len, formats.texts(one))) <= LONGEST]


def write(path, pairs, count, row_group):
  """So many rows, the same pairs again and again with a running number."""
  started, partial = time.perf_counter(), path.with_name(f".{path.name}")
  make = _write_parquet if path.suffix == ".parquet" else _write_lines
  make(partial, pairs, count, row_group)
  partial.rename(path)
  size, took = path.stat().st_size / 1e9, time.perf_counter() - started
  print(f"{path}: {count:,} rows, {size:.2f} GB, made in {took:.0f} s")


def _write_lines(path, pairs, count, _):
  mark = "<number>"
  halves = []
  for pair in pairs:
    values = {"prompt": f"{mark}{pair.prompt}", **sides(pair)}
    start, end = json.dumps(values).split(mark)
    halves.append((start, f"{end}\n"))
  with open(path, "w", encoding="utf-8", buffering=2**24) as file:
    rows = zip(range(count), itertools.cycle(halves), strict=False)
    file.writelines(f"{start}{n}{end}" for n, (start, end) in rows)


def _write_parquet(path, pairs, count, row_group):
  import pyarrow
  import pyarrow.parquet

  schema = pyarrow.schema(
    [(name, pyarrow.string()) for name in ("prompt", "chosen", "rejected")]
  )
  rows = zip(range(count), itertools.cycle(pairs), strict=False)
  with pyarrow.parquet.ParquetWriter(
    path, schema, use_dictionary=False
  ) as writer:
    while some := [*itertools.islice(rows, row_group)]:
      columns = {
        "prompt": [f"{n}{pair.prompt}" for n, pair in some],
        "chosen": [pair.chosen for _, pair in some],
        "rejected": [pair.rejected for _, pair in some],
      }
      table = pyarrow.table(columns, schema=schema)
      writer.write_table(table, row_group_size=row_group)


def sides(pair):
  return {"chosen": pair.chosen, "rejected": pair.rejected}


def run(workdir, model, path, streams, steps):
  """(seconds and processor seconds to the first line, peak bytes, lines)."""
  to = workdir / f"run-{time.time_ns()}"
  command = [
    *(sys.executable, "-m", "mrpo_jax", "train", "dpo", f"--workdir={to}"),
    *(f"policy.path={model}", f"data.train={path}", f"steps={steps}"),
    *(f"data.streaming={streams}", f"batch={BATCH}"),
    *("data.max_prompt=256", "data.max_response=256", "data.row_length=1024"),
  ]
  started = time.perf_counter()
  with open(workdir / "run.log", "w") as log:
    process = subprocess.Popen(command, stdout=log, stderr=log)
  metrics, first, worked = to / "metrics.jsonl", None, None
  while True:
    if first is None and metrics.exists() and metrics.stat().st_size:
      first = time.perf_counter() - started
      worked = processor_seconds(process.pid)
    pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    if pid:
      break
    time.sleep(0.05)
  if status:
    raise SystemExit((workdir / "run.log").read_text())
  return first, worked, usage.ru_maxrss * 1024, files.read_lines(metrics)


def processor_seconds(pid):
  """What a process has worked so far, all its threads together; Linux."""
  fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
  user, system = fields.split()[11:13]
  return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def row(what, path, first, worked, peak, lines):
  """The line of the table of one run."""
  late = lines[len(lines) // 2 :]
  seconds = sum(line["seconds"] for line in late)
  waited = sum(line["seconds/input"] for line in late)
  return (
    f"| {what}, {path.name} | {path.stat().st_size / 1e9:.2f} GB "
    f"| {first:.1f} s | {worked:.1f} s | {peak / 1e9:.2f} GB "
    f"| {BATCH * len(late) / seconds:.0f} | {waited / seconds:.0%} |"
  )


if __name__ == "__main__":
  main()
