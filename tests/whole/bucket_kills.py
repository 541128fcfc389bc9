# SPDX-License-Identifier: Apache-2.0
"""Runs in a bucket that are killed again and again, against one on a disk.

  python -m tests.whole.bucket_kills --kind=gs --kills=50 [--seed=0]

Each process is killed (SIGKILL) at a random request to the service: before the
service has it, or before its answer is back.  The same command goes on, until
the run is done: then its last checkpoint is that of the run on the disk bit by
bit, and so are its metrics but for the clock.  Another run begins, until so
many were killed.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import random
import sys
import tempfile
import time

FLAGS = "--xla_backend_optimization_level=0"
PRELOAD = ["mrpo_jax.cli", "mrpo_jax.runs.train", "gcsfs", "s3fs", "jax"]
PRELOAD += ["google.cloud.storage", "orbax.checkpoint", "tensorstore"]
STEPS = 6
MOST = 150  # requests, at most, that a process is let do


def _train(argv, environment, log):
  """A process that trains, its lines added to a file."""
  os.environ.update(environment)
  with open(log, "ab") as file:
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
  from mrpo_jax import cli

  sys.exit(cli.main(argv))


def _argv(inputs, workdir):
  root = pathlib.Path(__file__).parents[1]
  return [
    "train",
    f"--config={root}/material/config.py:dpo,inputs={inputs}",
    f"--workdir={workdir}",
    *(f"steps={STEPS}", "checkpoint_every=1"),
    *(f"data.eval={inputs}/few.jsonl", "eval_every=3"),
    "checkpoints.best=eval/loss",
  ]


def result(workdir):
  """(bytes of each array of the last state, metrics without the clock)."""
  import jax
  import numpy as np
  import orbax.checkpoint as ocp

  from mrpo_jax import files
  from mrpo_jax.training import checkpoints, uploaded

  assert checkpoints.steps(workdir)[0] == STEPS
  state = files.absolute(workdir) / "checkpoints" / str(STEPS) / "state"
  with (
    uploaded.readable(state) as folder,
    ocp.PyTreeCheckpointer() as checkpointer,
  ):
    tree = checkpointer.restore(folder)
  arrays = {
    jax.tree_util.keystr(path): np.asarray(leaf).tobytes()
    for path, leaf in jax.tree.leaves_with_path(tree)
  }
  lines = [
    {name: x for name, x in line.items() if "seconds" not in name}
    for line in files.read_lines(files.path_of(workdir) / "metrics.jsonl")
  ]
  return arrays, lines


def _left(workdir):
  """What a finished run leaves beside what it is for."""
  from mrpo_jax import files

  names = [path.name for path in files.below(workdir)]
  return [n for n in names if n.startswith((".", "owner-")) or "tmp" in n]


def killed_runs(kind, kills, seed, folder, environment, faults):
  """(kills, finished runs); AssertionError where one differs from the disk's.

  Args:
    kind: "gs" or "s3".
    kills: at least so many.
    seed: of where they are killed.
    folder: pathlib.Path of a new folder here.
    environment, faults: of `services.service`.
  """
  from tests.material import services
  from tests.material.inputs import make_inputs

  make_inputs(folder)
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(PRELOAD)
  log, draw = folder / "log.txt", random.Random(f"{kind} {seed}")

  def start(workdir):
    argv = _argv(folder, workdir)
    process = context.Process(target=_train, args=(argv, environment, str(log)))
    process.start()
    return process

  process = start(folder / "disk")
  process.join()
  assert process.exitcode == 0, log.read_text()
  wanted, done, finished = result(folder / "disk"), 0, 0
  began = time.monotonic()
  while done < kills:
    workdir = f"{kind}://{services.BUCKET}/killed/{finished}"
    while True:
      process = start(workdir)
      if done < kills:
        faults.kill_at(draw.randint(1, MOST), draw.random() < 0.5, process.kill)
      process.join()
      faults.kill_at(None)
      if process.exitcode == 0:
        break
      assert process.exitcode == -9, log.read_text()[-4000:]
      done += 1
      print(
        f"{kind}: {done} killed, {time.monotonic() - began:.0f} s", flush=True
      )
    arrays, lines = result(workdir)
    assert arrays == wanted[0], f"{workdir}: another state"
    assert lines == wanted[1], f"{workdir}: {lines} instead of {wanted[1]}"
    assert not _left(workdir), f"{workdir}: {_left(workdir)}"
    finished += 1
  return done, finished


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--kind", choices=["gs", "s3"], required=True)
  parser.add_argument("--kills", type=int, default=50)
  parser.add_argument("--seed", type=int, default=0)
  given = parser.parse_args()
  os.environ["JAX_PLATFORMS"], os.environ["XLA_FLAGS"] = "cpu", FLAGS
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  from tests.material import services

  with (
    tempfile.TemporaryDirectory() as folder,
    services.service(given.kind) as (environment, faults),
  ):
    os.environ.update(environment)
    os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
    done, finished = killed_runs(
      given.kind,
      given.kills,
      given.seed,
      pathlib.Path(folder),
      environment,
      faults,
    )
  print(json.dumps({"kind": given.kind, "kills": done, "finished": finished}))


if __name__ == "__main__":
  main()
