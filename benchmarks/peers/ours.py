# SPDX-License-Identifier: Apache-2.0
"""mrpo_jax as a player; see benchmarks/turns.py."""

import tempfile

from benchmarks import material, turns
from mrpo_jax.performance import bench
from mrpo_jax.runs.config import read

SAID = ("jax", "device")


def player(job, references=1, mode="online", change=None):
  """(about, turn) of turns.Local: the train step of `mrpo train`.

  Args:
    job: of material.prepare, as read.
    references: K.
    mode: of all of them, "online" or "scored".
    change: Setup -> Setup, for what no config can say.
  """
  config = read(material.settings_of(job, references, mode))
  with tempfile.TemporaryDirectory() as workdir:
    setup = bench.bench_setup(config, workdir)
    setup = change(setup) if change else setup
    one = bench.Bench(setup)
  if one.pairs != sum(len(pairs) for r in job["rounds"] for pairs in r):
    raise SystemExit("error: some pairs of the job cannot be used")

  def turn(number):
    steps = job["rounds"][number]
    found = [one.step(pairs) for pairs in steps]
    return {
      "seconds": sum(step["seconds"] for step in found),
      "pairs": sum(map(len, steps)),
      "flops": sum(step["flops"] for step in found),
      "losses": [step["loss"] for step in found],
      "peak": one.matmul_peak(),
    }

  about = {name: bench.machine()[name] for name in SAID}
  return about, turn


def main():
  given = turns.worker_arguments(__doc__, references=1, mode="online")
  about, turn = player(given.job, given.references, given.mode)

  def reply(number):
    return turn(number) | {"memory": bench.peak_memory()[0]}

  turns.serve(given.channel, about, reply)


if __name__ == "__main__":
  main()
