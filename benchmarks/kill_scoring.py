# SPDX-License-Identifier: Apache-2.0
"""Kills `mrpo score` at random moments and compares what is left.

  python benchmarks/kill_scoring.py --workdir=/tmp/kills [--kills=10]

The quickstart's pairs under two references made on the spot.  Each attempt is
killed (SIGKILL) some milliseconds after a random number of files is there; the
last one may finish.  Every row must then equal that of a run that nobody
disturbed, bit by bit, and every file be as it was written.
"""

import argparse
import pathlib
import random
import subprocess
import sys
import time

import pyarrow.parquet as pq

from mrpo_jax.references import maintenance

# A file per batch: kills fall between files, not only before the first.
CODE = (
  "import sys; from mrpo_jax import cli; "
  "from mrpo_jax.references import score; score.SHARD = 1; "
  "sys.exit(cli.main(sys.argv[1:]))"
)
MODES = [f"--config.references.{n}.mode=scored" for n in ("base", "second")]


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--kills", type=int, default=10)
  parser.add_argument("--seed", type=int, default=0)
  given = parser.parse_args()
  workdir = pathlib.Path(given.workdir)
  assert score(workdir / "whole").wait() == 0
  whole = files_of(workdir / "whole")
  rng, left = random.Random(given.seed), []
  for count in sorted(rng.sample(range(1, whole - 1), given.kills)):
    process = score(workdir / "killed")
    while files_of(workdir / "killed") < count:
      assert process.poll() is None
      time.sleep(0.002)
    time.sleep(rng.uniform(0.0, 0.05))
    process.kill()
    process.wait()
    left.append(files_of(workdir / "killed"))
  assert score(workdir / "killed").wait() == 0
  print(f"of {whole} files, there after each kill: {left}")
  one, other = (contents(workdir / name) for name in ("whole", "killed"))
  assert one == other, "the stores differ"
  assert maintenance.verify(workdir / "killed" / "store") == []
  rows = sum(table.num_rows for table in one.values())
  print(f"{rows} rows under {len(one)} references: equal, bit by bit")


def files_of(workdir):
  return len(list(workdir.rglob("*.parquet")))


def score(workdir):
  config = "--config=configs/quickstart.py:mrpo,debug"
  data = "--config.data.train=configs/hh_harmless/train.jsonl.gz"
  argv = ["score", config, data, f"--workdir={workdir}", *MODES]
  return subprocess.Popen(
    [sys.executable, "-c", CODE, *argv],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )


def contents(workdir):
  """{key: its rows, sorted} of a store."""
  root, tables = workdir / "store", {}
  for entry in maintenance.entries(root):
    to = workdir / f"{entry['key']}.parquet"
    to.unlink(missing_ok=True)
    maintenance.export(root, entry["key"], to)
    tables[entry["key"]] = pq.read_table(to)
  return tables


if __name__ == "__main__":
  main()
