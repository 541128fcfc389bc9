# SPDX-License-Identifier: Apache-2.0
"""Kills `mrpo train` at random moments and compares what is left.

  python -m benchmarks.kill_training --workdir=/tmp/kills [--kills=20]

DPO on a tiny model.  One run that nobody disturbs; one that is killed
(SIGKILL) again and again, on its way to the first step, some milliseconds after
a step, or while a checkpoint is written, and whose newest checkpoint is then
cut in half; one that is asked to stop (SIGTERM).  The same command follows each
time.  All three must end with the same parameters, optimizer state, metrics and
evaluated pairs, bit by bit.
"""

import argparse
import gzip
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from mrpo_jax import configs, files
from mrpo_jax.runs.workdir import PAIRS
from mrpo_jax.training import checkpoints

ROOT = pathlib.Path(__file__).parents[1]
SLICE = 96  # of the quickstart: a run starts sooner
KINDS = ("step", "save", "step", "save", "start")
UNTIMED = ("seconds", "seconds/input")
PATIENCE = 600  # seconds, for one moment to come


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--stops", type=int, default=4)
  parser.add_argument("--steps", type=int, default=40)
  parser.add_argument("--seed", type=int, default=0)
  given = parser.parse_args()
  if given.kills < 2:
    parser.error("--kills: want 2 or more; after one there is no checkpoint")
  workdir, steps = pathlib.Path(given.workdir), given.steps
  whole, killed, stopped = (workdir / n for n in ("whole", "killed", "stopped"))
  rng = random.Random(given.seed)
  write_pairs(workdir)
  assert start(whole, steps).wait() == 0
  for number in range(given.kills):
    kind = KINDS[number % len(KINDS)]
    target = 1 + number * (steps - 3) // given.kills
    print(f"kill {number + 1}, {kill(killed, steps, kind, target, rng)}")
  path = newest(killed)
  for file in path.rglob("*"):
    if file.is_file():
      file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  process = start(killed, steps, stdout=subprocess.PIPE)
  said = process.communicate()[0].decode()
  used = re.search(f"{path} cannot be read .*; using step (.*)", said)
  assert process.returncode == 0 and used, said
  print(f"checkpoint {path.name} was cut in half, {used[1]} used instead")
  compare(whole, killed, steps)
  print(f"after {given.kills} kills: equal, bit by bit")
  for number in range(given.stops):
    target = 1 + number * (steps - 3) // given.stops
    print(f"SIGTERM {number + 1}, {stop(stopped, steps, target, rng)}")
  assert start(stopped, steps).wait() == 0
  compare(whole, stopped, steps)
  print(f"after {given.stops} SIGTERMs: equal, bit by bit")


def write_pairs(folder):
  """What the runs in this folder train and are judged on."""
  folder.mkdir(parents=True, exist_ok=True)
  with gzip.open(configs.HH_HARMLESS / "eval.jsonl.gz") as file:
    lines = file.readlines()[:SLICE]
  (folder / "pairs.jsonl").write_bytes(b"".join(lines))


def start(workdir, steps, stdout=subprocess.DEVNULL):
  pairs = workdir.parent / "pairs.jsonl"
  command = [
    *(sys.executable, "-m", "mrpo_jax", "train", f"--workdir={workdir}"),
    f"--config={ROOT}/configs/quickstart.py:dpo,debug",
    *(f"--config.data.{split}={pairs}" for split in ("train", "eval")),
    *(f"--config.steps={steps}", "--config.checkpoint_every=3"),
    *("--config.eval_every=5", "--config.checkpoints.best=eval/loss"),
  ]
  cache = {
    "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  env = {**os.environ, **cache, "PYTHONPATH": str(ROOT)}
  return subprocess.Popen(command, env=env, stdout=stdout)


def kill(workdir, steps, kind, target, rng):
  """Runs until a moment of that kind, at the earliest after step `target`.

  Returns:
    what is left, in words.
  """
  began, process = time.time(), start(workdir, steps)
  if kind == "start":
    time.sleep(rng.uniform(0.0, 8.0))
  else:
    await_step(process, workdir, target, began)
    if kind == "save":
      wait_until(process, lambda: half_written(workdir))
      time.sleep(rng.uniform(0.0, 0.02))
    else:
      time.sleep(rng.uniform(0.0, 0.2))
  process.kill()
  process.wait()
  left = f"{kind}: stands at step {last_step(workdir)}"
  for path in checkpoints.steps(workdir)[:1]:
    left += f", newest checkpoint {path}"
  return left + (", one half-written" if half_written(workdir) else "")


def stop(workdir, steps, target, rng):
  """The same with SIGTERM, which must leave a checkpoint of the last step."""
  began, process = time.time(), start(workdir, steps)
  await_step(process, workdir, target, began)
  time.sleep(rng.uniform(0.0, 0.2))
  process.send_signal(signal.SIGTERM)
  assert process.wait() == 0
  assert checkpoints.steps(workdir)[0] == last_step(workdir)
  return f"stands at step {last_step(workdir)}, as does its checkpoint"


def await_step(process, workdir, step, began):
  """Until this process, which began then, has done so many steps."""
  path = workdir / "metrics.jsonl"

  def done():
    is_its_own = path.exists() and path.stat().st_mtime > began
    return is_its_own and last_step(workdir) >= step

  wait_until(process, done)


def wait_until(process, come):
  deadline = time.monotonic() + PATIENCE
  while not come():
    assert process.poll() is None, "ended before the moment came"
    assert time.monotonic() < deadline, "the moment never came"
    time.sleep(0.001)


def last_step(workdir):
  lines = files.read_lines(workdir / "metrics.jsonl")
  return lines[-1]["step"] if lines else 0


def half_written(workdir):
  return any((workdir / "checkpoints").glob("*orbax-checkpoint-tmp*"))


def newest(workdir):
  return workdir / "checkpoints" / str(checkpoints.steps(workdir)[0])


def compare(one, other, steps):
  """Fails where anything but time differs in what two runs have left."""
  lines = [metrics_of(workdir) for workdir in (one, other)]
  assert [line["step"] for line in lines[1]] == list(range(1, steps + 1))
  assert lines[0] == lines[1], "the metrics differ"
  pairs = [(workdir / PAIRS).read_bytes() for workdir in (one, other)]
  assert pairs[0] == pairs[1], "the evaluated pairs differ"
  assert newest(one).name == newest(other).name == str(steps)
  with ocp.PyTreeCheckpointer() as checkpointer:
    states = [
      checkpointer.restore(newest(run) / "state") for run in (one, other)
    ]
  for a, b in zip(*map(jax.tree.leaves, states), strict=True):
    np.testing.assert_array_equal(a, b)


def metrics_of(workdir):
  return [
    {key: value for key, value in line.items() if key not in UNTIMED}
    for line in files.read_lines(workdir / "metrics.jsonl")
  ]


if __name__ == "__main__":
  main()
