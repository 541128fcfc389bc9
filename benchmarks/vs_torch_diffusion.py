# SPDX-License-Identifier: Apache-2.0
"""Diffusion-DPO: our step beside one in plain torch, in turns.

  python -m benchmarks.vs_torch_diffusion --workdir=/tmp/vs_torch \
    [--torch_python=PYTHON] [--config=configs/diffusion_digits.py]

The denoiser and the batch of the config, in float32, one reference; images are
drawn at random.  *online*: the reference runs in every step, as torch's does;
*scored*: its errors are known, of 16 noises of each pair.
"""

import argparse
import functools
import json
import math
import pathlib
import time

import jax
import numpy as np

from benchmarks import turns
from mrpo_jax import losses
from mrpo_jax.diffusion.denoiser import DenoiserConfig, table
from mrpo_jax.diffusion.step import PairBatch, PairObjective, preference_step
from mrpo_jax.models.parameters import init_table
from mrpo_jax.performance import bench
from mrpo_jax.runs.config import load
from mrpo_jax.runs.diffusion.setup import NATS
from mrpo_jax.training import optimizer, train_state

TORCH = ("torch==2.13.0", "numpy")
IMAGE = (8, 8, 1)  # of the digits


def player(job, draws):
  """(about, turn) of turns.Local."""
  shape = {**job["shape"], "image": tuple(job["shape"]["image"])}
  config = DenoiserConfig(**shape)
  nats = NATS * math.prod(config.image)
  method = losses.build("dpo", beta=job["beta"] / nats)
  objective = PairObjective(config, (config,), method, nats, draws=draws)
  transformation, _ = optimizer.make(steps=10_000, peak_lr=1e-4)
  params = init_table(table(config), jax.random.key(0))
  state = train_state.create(
    jax.tree.map(lambda array: array.copy(), params),
    transformation,
    method.init(1),
  )
  rng, B = np.random.default_rng(0), job["batch"]
  scores = {}
  if draws:
    shape = (B, 2, 1)
    scores = {
      name: rng.random(shape, np.float32)
      for name in ("ref_error_BCK", "mean_ref_error_BCK")
    }
  batch = PairBatch(
    2 * rng.random((B, 2, *config.image), np.float32) - 1,
    rng.integers(config.classes, size=B).astype(np.int32),
    np.arange(B, dtype=np.int32),
    np.zeros(B, np.int32),
    **scores,
  )
  step = jax.jit(
    functools.partial(
      preference_step, objective=objective, transformation=transformation
    ),
    donate_argnums=0,
  )
  kept = {"state": state, "references": () if draws else (params,)}

  def turn(number):
    started = time.perf_counter()
    for _ in range(job["steps"]):
      kept["state"], metrics = step(kept["state"], kept["references"], batch)
      float(metrics["loss"])  # as torch's loop reads it
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "pairs": job["steps"] * B}

  return {name: bench.machine()[name] for name in ("jax", "device")}, turn


def main():
  flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  flags.add_argument("--workdir", required=True)
  flags.add_argument("--config", default="configs/diffusion_digits.py")
  flags.add_argument("--torch_python", default="")
  flags.add_argument("--rounds", type=int, default=8)
  flags.add_argument("--steps", type=int, default=20)
  flags.add_argument("--out", default="", help="file for the table")
  given = flags.parse_args()
  workdir = pathlib.Path(given.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  config = load(given.config)
  shape = config.denoiser.new.to_dict()
  for name, have in dict(prediction="epsilon", schedule="cosine").items():
    if shape.pop(name) != have:
      flags.error(f"--config: torch's {name} is {have!r}")
  shape |= dict(image=IMAGE, classes=len(config.data.classes))
  beta = config.loss.keywords["beta"] * NATS * math.prod(IMAGE)
  job = dict(shape=shape, batch=config.batch, steps=given.steps, beta=beta)
  path = workdir / "job.json"
  path.write_text(json.dumps(job))
  python = given.torch_python or turns.environment(workdir / "torch", TORCH)
  players = [
    turns.Process("torch", python, "benchmarks.peers.torch_denoiser", path),
    turns.Local("mrpo_jax online", lambda: player(job, 0)),
    turns.Local("mrpo_jax scored", lambda: player(job, 16)),
  ]
  replies = turns.play(players, given.rounds)
  lines = [
    "| | pairs/s | quartiles | to torch | quartiles |",
    "|---|" + "---|" * 4,
  ]
  for one in players:
    rates = [turns.speed(reply) for reply in replies[one.name]]
    ratios = [
      turns.speed(reply) / turns.speed(first)
      for reply, first in zip(replies[one.name], replies["torch"], strict=True)
    ]
    cells = []
    for values, form in ((rates, ".0f"), (ratios, ".2f")):
      low, middle, high = turns.quartiles(values)
      cells += [f"{middle:{form}}", f"{low:{form}} to {high:{form}}"]
    lines.append(f"| {one.name} | {' | '.join(cells)} |")
  lines += [
    "",
    turns.circumstances(players, replies, **shape, batch=config.batch),
  ]
  turns.deliver("\n".join(lines), given.out)


if __name__ == "__main__":
  main()
