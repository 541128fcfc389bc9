# SPDX-License-Identifier: Apache-2.0
"""Online DPO: mrpo_jax and TRL on the same model, prompts and reward, in turns.

  python -m benchmarks.vs_online --workdir=/tmp/vs_online --model=FOLDER \
    [--trl_python=PYTHON] [--losses]

Every step samples two responses to each prompt of a batch, asks a reward that
costs nothing, and trains on the pairs, in float32.  With --losses TRL trains on
what mrpo_jax sampled, and the losses of both stand side by side.  TRL lives in
an environment of its own, made in the workdir on first use, or in that of
--trl_python.
"""

import argparse
import json
import pathlib
import sys

from benchmarks import turns, vs_trl
from mrpo_jax import configs, files
from mrpo_jax.data.tokenizer import load_tokenizer
from mrpo_jax.runs.config import load
from mrpo_jax.runs.inference.prompts import read_prompts

CONFIG = configs.SHIPPED / "online_dpo.py"
PROMPTS = configs.HH_HARMLESS / "train.jsonl.gz"
LOSSES_LR = 1e-3  # large enough that the losses move
SPANS = {"sampling": "sampling", "labels": "labels and divergence"}


def prompts_of(given):
  """The file of prompts that both can take, as texts."""
  tokenizer, kept = load_tokenizer(given.model), []
  for one in read_prompts(PROMPTS, keys=()):
    ids = tokenizer(one.pair.prompt).input_ids
    if len(ids) <= given.max_prompt:
      kept.append({"prompt": one.pair.prompt})
  path = pathlib.Path(given.workdir) / "prompts.jsonl"
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_lines(path, kept)
  return path


def job_of(given, lr):
  """The file of the work of both; the first round is the warm-up."""
  prompts, rounds = prompts_of(given), given.rounds + 1
  steps = rounds * given.steps
  config = load(str(CONFIG)).to_dict()
  config |= dict(steps=steps, batch=given.batch, seed=0)
  config["data"] |= dict(
    max_prompt=given.max_prompt,
    row_length=2 * (given.max_prompt + 2 * given.max_new_tokens),
  )
  config["online"] |= dict(
    prompts=str(prompts),
    reward="benchmarks.peers.text_reward:reward",
    rounds=steps,
    max_new_tokens=given.max_new_tokens,
  )
  config["policy"]["path"] = given.model
  config["loss"]["beta"] = given.beta
  config["optimizer"] |= dict(
    peak_lr=lr, warmup=0.0, end_lr_share=1.0, clip_norm=1.0
  )
  workdir = pathlib.Path(given.workdir)
  names = ("model", "batch", "steps", "beta", "max_prompt", "max_new_tokens")
  job = {
    **{name: getattr(given, name) for name in names},
    "rounds": rounds,
    "lr": lr,
    "prompts": str(prompts),
    "workdir": str(workdir / "ours"),
    "config": config,
  }
  path = workdir / "online.json"
  path.write_text(json.dumps(job))
  return path


def players_of(python, job, *said):
  module = "benchmarks.peers.our_online"
  ours = turns.Process("mrpo_jax", sys.executable, module, job)
  module = "benchmarks.peers.trl_online"
  return ours, turns.Process("TRL", python, module, job, said)


def speeds(given, python):
  ours, trl = players_of(python, job_of(given, lr=1e-4))
  players = [trl, ours]  # ratios are to the first
  replies = turns.play(players, given.rounds + 1)
  mine = replies["mrpo_jax"]
  whole = sum(one["seconds"] for one in mine)
  shares = {
    title: sum(one["spans"][name] for one in mine) / whole
    for name, title in SPANS.items()
  }
  parts = ", ".join(f"{title} {one:.0%}" for title, one in shares.items())
  text = turns.markdown(players, replies)
  text += f"\n\nOf mrpo_jax's time: {parts}, the rest trains."
  about = dict(batch=given.batch, max_new_tokens=given.max_new_tokens)
  text += "\n\n" + turns.circumstances(
    players, replies, model=pathlib.Path(given.model).name, **about
  )
  turns.deliver(text, given.out)


def losses(given, python):
  """Losses of both on what mrpo_jax sampled, and how far they are apart."""
  job = job_of(given, LOSSES_LR)
  said = pathlib.Path(given.workdir) / "ours" / "rounds"
  players = [*players_of(python, job, f"--said={said}")]
  # TRL reads the rounds when it starts: ours plays all of them before.
  replies = turns.play(players, given.rounds + 1, warmup=0, together=False)
  curves = [
    [loss for reply in replies[one.name] for loss in reply["losses"]]
    for one in players
  ]
  lines = ["| step | mrpo_jax | TRL | difference |", "|---|---|---|---|"]
  for step, (a, b) in enumerate(zip(*curves, strict=True), 1):
    lines.append(f"| {step} | {a:.6f} | {b:.6f} | {abs(a - b):.1e} |")
  largest = max(abs(a - b) for a, b in zip(*curves, strict=True))
  lines.append(f"\nLargest difference: {largest:.2e}")
  where = turns.circumstances(players, replies, batch=given.batch)
  turns.deliver("\n".join([*lines, where]), given.out)


def main():
  flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  flags.add_argument("--workdir", required=True)
  flags.add_argument("--model", required=True)
  flags.add_argument("--trl_python", default="")
  flags.add_argument("--losses", action="store_true")
  for name, value in dict(
    rounds=5, steps=4, batch=16, max_prompt=96, max_new_tokens=48
  ).items():
    flags.add_argument(f"--{name}", type=int, default=value)
  flags.add_argument("--beta", type=float, default=0.1)
  flags.add_argument("--out", default="", help="file for the table")
  given = flags.parse_args()
  (losses if given.losses else speeds)(given, vs_trl.trl_python(given))


if __name__ == "__main__":
  main()
