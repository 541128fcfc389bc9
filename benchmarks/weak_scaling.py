# SPDX-License-Identifier: Apache-2.0
"""Does what a device sends stay the same when devices and batch both grow?

  python -m benchmarks.weak_scaling --config=FILE[:args] --fsdp=4 TOPOLOGY ...

Pairs of a step and rows of a micro-batch grow with the devices.  Weights are
split over --fsdp devices, or over all, and `data` grows.  Compiled ahead of
time, nothing is run.
"""

import argparse

from mrpo_jax.performance import plan
from mrpo_jax.performance.topology import find_target
from mrpo_jax.runs.config import load
from mrpo_jax.text import aligned, sized_bytes


def main(argv=None):
  parser = argparse.ArgumentParser()
  parser.add_argument("--config", required=True)
  parser.add_argument("--pairs", type=int, default=8, help="of each device")
  parser.add_argument("--fsdp", type=int, default=0, help="0: all devices")
  parser.add_argument("topologies", nargs="+")
  given = parser.parse_args(argv)
  config = load(given.config)
  rows = [("topology", "devices", "fsdp", "sent", "to the first", "peak")]
  first = None
  for topology in given.topologies:
    target = find_target(topology)
    n = len(target.devices)
    fsdp = given.fsdp or n
    flags = {"batch": given.pairs * n, "data.rows": n}
    flags |= {"mesh.data": -1, "mesh.fsdp": fsdp, "mesh.model": 1}
    lengths = plan.usual_lengths(config)
    found = plan.plan(config.changed(flags), target, lengths)
    figures = found["steps"]["train"]
    sent = sum(row["bytes"] for row in figures["collectives"])
    for row in figures["collectives"]:
      axes = " x ".join(row["axes"])
      sent_so = sized_bytes(row["bytes"])
      print(f"  {row['kind']} over {axes}: {sent_so}", flush=True)
    first = first or sent
    size = sized_bytes(figures["bytes"]["peak"])
    ratio = f"{sent / first:.3f}"
    rows.append((topology, str(n), str(fsdp), sized_bytes(sent), ratio, size))
    print(aligned(rows), flush=True)


if __name__ == "__main__":
  main()
