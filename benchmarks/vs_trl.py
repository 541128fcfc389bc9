# SPDX-License-Identifier: Apache-2.0
"""One reference: mrpo_jax and TRL on the same pairs, in turns.

  python -m benchmarks.vs_trl --workdir=/tmp/vs_trl --shape=A [--losses]
  python -m benchmarks.vs_trl ... --model=FOLDER [--rank=16]

With --model: a pretrained one; with --rank a LoRA of it is trained, in TRL by
PEFT, from the same start.  With --losses: the same weights, pairs, order and
optimizer in float32, and the losses of both side by side.  TRL lives in an
environment of its own, made in the workdir on first use, or in that of
--trl_python.  All players have their models in memory at once; with large ones
--only=best,online leaves others out.
"""

import argparse
import pathlib
import sys

from benchmarks import material, turns

TRL = (
  "trl==1.16.0",
  "transformers==5.23.0",
  "torch==2.13.0",
  "accelerate==1.15.0",
  "datasets==5.2.0",
  "peft==0.21.2",
)
LOSSES_LR = 1e-4  # large enough that the losses move


def parser(description, **defaults):
  """The flags that all comparisons have."""
  found = argparse.ArgumentParser(description=description.split("\n")[0])
  found.add_argument("--workdir", required=True)
  shapes = material.SHAPES
  found.add_argument(
    "--shape", default=defaults.get("shape", "A"), choices=shapes
  )
  found.add_argument("--rounds", type=int, default=defaults.get("rounds", 8))
  found.add_argument("--steps", type=int, default=defaults.get("steps", 8))
  found.add_argument("--batch", type=int, default=defaults.get("batch", 8))
  found.add_argument(
    "--row_length", type=int, default=2 * material.LONGEST, help="of ours"
  )
  found.add_argument("--out", default="", help="file for the table")
  return found


def prepared(given, **more):
  """material.prepare with these flags; the first round is the warm-up."""
  return material.prepare(
    given.workdir,
    given.shape,
    rounds=given.rounds + 1,
    steps=given.steps,
    batch=given.batch,
    row_length=given.row_length,
    **more,
  )


def trl_python(given):
  """The python that has TRL."""
  folder = pathlib.Path(given.workdir) / "trl"
  return given.trl_python or turns.environment(folder, TRL)


def ours(name, job, *arguments, **more):
  """A player with mrpo_jax."""
  module = "benchmarks.peers.ours"
  return turns.Process(name, sys.executable, module, job, arguments, **more)


def trl(name, python, job, *arguments, **more):
  """A player with TRL."""
  return turns.Process(
    name, python, "benchmarks.peers.trl", job, arguments, **more
  )


def tell(given, players, **more):
  """Plays all rounds and delivers the table; returns the replies."""
  replies = turns.play(players, given.rounds + 1, **more)
  names = ("shape", "steps", "batch", "row_length")
  shape = {name: getattr(given, name) for name in names}
  text = turns.markdown(players, replies)
  text += "\n\n" + turns.circumstances(players, replies, **shape)
  turns.deliver(text, given.out)
  return replies


def losses(given, peer, **more):
  """Both curves of 20 steps, and how far they are apart.

  `peer(job)` gives the other player, which keeps the order of the pairs.
  """
  given.rounds, given.steps = 1, 10  # and the round of the warm-up
  job = prepared(given, lr=LOSSES_LR, **more)
  players = [ours("mrpo_jax online", job), peer(job)]
  replies = turns.play(players, given.rounds + 1, warmup=0)
  curves = [
    [loss for reply in replies[one.name] for loss in reply["losses"]]
    for one in players
  ]
  names = " | ".join(player.name for player in players)
  lines = [f"| step | {names} | difference |", "|---|---|---|---|"]
  for step, (a, b) in enumerate(zip(*curves, strict=True), 1):
    lines.append(f"| {step} | {a:.6f} | {b:.6f} | {abs(a - b):.1e} |")
  largest = max(abs(a - b) for a, b in zip(*curves, strict=True))
  lines.append(f"\nLargest difference: {largest:.2e}")
  where = turns.circumstances(players, replies, shape=given.shape)
  turns.deliver("\n".join([*lines, where]), given.out)


def main():
  flags = parser(__doc__)
  flags.add_argument("--trl_python", default="")
  flags.add_argument("--losses", action="store_true")
  flags.add_argument("--model", default="", help="folder, not --shape")
  flags.add_argument("--rank", type=int, default=0, help="of a LoRA; 0: none")
  flags.add_argument("--only", default="", help="words of players' names")
  given = flags.parse_args()
  python = trl_python(given)
  pretrained = dict(model=given.model, rank=given.rank)
  given.shape = given.model or given.shape
  if given.losses:
    losses(
      given,
      lambda job: trl("TRL", python, job, "--kind=default"),
      **pretrained,
    )
    return
  job = prepared(given, **pretrained)
  online, scored = "mrpo_jax online", "mrpo_jax scored"
  players = [
    trl("TRL best", python, job, "--kind=best", work_of=online),
    trl("TRL default", python, job, "--kind=default", work_of=online),
    trl("TRL cached", python, job, "--kind=cached", work_of=scored),
    ours(online, job),
    ours(scored, job, "--mode=scored"),
  ]
  only = given.only.split(",")
  tell(given, [p for p in players if any(word in p.name for word in only)])


if __name__ == "__main__":
  main()
