# SPDX-License-Identifier: Apache-2.0
"""mrpo_jax's online DPO as a player; see benchmarks/turns.py."""

import pathlib
import shutil
import time

import jax

from benchmarks import turns
from mrpo_jax.performance import bench
from mrpo_jax.runs.config import read
from mrpo_jax.runs.models import load_models
from mrpo_jax.runs.program import Program, compile_ahead
from mrpo_jax.runs.rounds.driver import RoundDriver, with_figures
from mrpo_jax.runs.score import ScorePlan
from mrpo_jax.runs.setup import set_up

SPANS = ("sampling", "labels")


def main():
  given = turns.worker_arguments(__doc__)
  job = given.job
  shutil.rmtree(job["workdir"], ignore_errors=True)  # of an earlier command
  setup = set_up(read(job["config"]), pathlib.Path(job["workdir"]))
  driver, scores = RoundDriver(setup), ScorePlan.of(setup, "", fresh=True)
  program = Program(
    setup, load_models(setup.described, setup.mesh), compile_ahead(setup)
  )
  state, _ = program.start(scores)
  next_batch, step = driver.of(program, 0), with_figures(program.step)

  def turn(_):
    nonlocal state
    started, losses = time.perf_counter(), []
    spans = dict.fromkeys(SPANS, 0.0)
    for _ in range(job["steps"]):
      state, _, batch = next_batch(state)
      state, metrics = step(state, batch)
      losses.append(metrics["loss"])
      for name in SPANS:
        spans[name] += metrics[f"seconds/{name}"]
    losses = [float(one) for one in jax.device_get(losses)]
    return {
      "seconds": time.perf_counter() - started,
      "pairs": job["steps"] * job["batch"],
      "losses": losses,
      "spans": spans,
      "memory": bench.peak_memory()[0],
    }

  turns.serve(
    given.channel,
    {name: bench.machine()[name] for name in ("jax", "device")},
    turn,
  )


if __name__ == "__main__":
  main()
