# SPDX-License-Identifier: Apache-2.0
r"""Generation beside transformers' `generate`, in turns; a Markdown table.

  python -m benchmarks.generation --workdir=DIR --torch_python=PYTHON \
    [--model=FOLDER | --shape=A] [--batch=64] [--new=32] [--rounds=5] [--int8]
  python -m benchmarks.generation ... --equality     same ids, token for token?
  python -m benchmarks.generation ... --refill       slots that are filled anew
                                                     beside batches that wait

Prompts are those of conversations in configs/hh_harmless, cut to --longest
tokens (with --refill its first questions, in the model's chat template); all
decode greedily, in float32.  PYTHON has torch and transformers.

Columns: tokens per second of the whole call, prompts included, and of decoding
alone; the share of what the machine can do, which is the longer of reading
weights and cache once a step at the measured bandwidth, and of multiplying at
the rate of the fastest matrix product.
"""

import argparse
import json
import pathlib
import statistics
import sys

from benchmarks import material, turns
from mrpo_jax import configs
from mrpo_jax.data import formats
from mrpo_jax.data.tokenizer import load_tokenizer

TIE = 1e-4  # nats; beyond a tie two programs may say different things


def prompts_of(folder, count, longest, chat):
  """(tokenizer, ids of `count` distinct prompts), cut to the longest.

  With `chat` they are questions in the chat template, none of them cut: models
  end an answer to these by themselves.
  """
  tokenizer, found = load_tokenizer(folder), {}
  for pair in formats.read(configs.HH_HARMLESS / "train.jsonl.gz"):
    text = next(iter(formats.texts(pair)))
    if chat:
      question = text.removeprefix("\n\nHuman: ").partition("\n\n")[0]
      turns = [{"role": "user", "content": question}]
      ids = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_dict=False
      )
      ids = ids if len(ids) <= longest else []
    else:
      ids = tokenizer.encode(text, add_special_tokens=False)[:longest]
    if ids:
      found[tuple(ids)] = None
    if len(found) == count:
      return tokenizer, [list(ids) for ids in found]
  raise SystemExit(f"error: fewer than {count} prompts")


def job_of(given, count):
  """The file with the work of all players."""
  workdir = pathlib.Path(given.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  folder = given.model
  if not folder:
    job = material.prepare(workdir, given.shape, rounds=1, steps=1, batch=1)
    folder = json.loads(job.read_text())["model"]
  tokenizer, prompts = prompts_of(folder, count, given.longest, given.refill)
  stop = tokenizer.eos_token_id
  path = workdir / "generation.json"
  path.write_text(
    json.dumps(
      {
        "folder": str(folder),
        "prompts": prompts,
        "new": given.new,
        "stop": stop,
        "least": 0 if given.refill else given.new,  # before it nothing ends
        "equality": given.equality,
      }
    )
  )
  return path


def ours(name, job, *arguments):
  module = "benchmarks.peers.our_generation"
  return turns.Process(name, sys.executable, module, job, arguments)


def theirs(name, given, job, *arguments):
  module = "benchmarks.peers.transformers_generate"
  return turns.Process(name, given.torch_python, module, job, arguments)


def speeds(given):
  """Whole calls and decoding alone, beside transformers with both caches."""
  job = job_of(given, given.batch)
  players = [
    theirs("transformers, dynamic cache", given, job),
    theirs("transformers, static cache", given, job, "--cache=static"),
    ours("mrpo_jax", job),
  ]
  if given.int8:
    players.append(ours("mrpo_jax, int8", job, "--quantize=int8"))
  replies = turns.play(players, given.rounds + 1)
  lines = [
    f"| batch {given.batch} | whole, tokens/s | to the best of transformers "
    "| decode, tokens/s | to the best | share of the bound | peak memory |",
    "|---|---|---|---|---|---|---|",
  ]
  rounds = range(given.rounds)
  best = {
    what: [min(replies[p.name][r][what] for p in players[:2]) for r in rounds]
    for what in ("whole", "decode")
  }
  for player in players:
    mine = replies[player.name]
    cells = [player.name]
    for what, tokens in (("whole", given.new), ("decode", 1)):
      seconds = [one[what] for one in mine]
      ratios = [best[what][r] / seconds[r] for r in rounds]
      speed = given.batch * tokens / statistics.median(seconds)
      low, middle, high = turns.quartiles(ratios)
      cells += [f"{speed:.1f}", f"{middle:.2f} ({low:.2f} to {high:.2f})"]
    cells.append(f"{share(mine):.0%}" if "flops" in mine[0] else "-")
    cells.append(f"{mine[-1]['memory'] / 1e6:,.0f} MB")
    lines.append("| " + " | ".join(cells) + " |")
  about = dict(new=given.new, model=given.model or given.shape)
  text = (
    "\n".join(lines) + "\n\n" + turns.circumstances(players, replies, **about)
  )
  mine = replies["mrpo_jax"]
  text += f"\nbandwidth {max(r['bandwidth'] for r in mine) / 1e9:.1f} GB/s"
  turns.deliver(text, given.out)


def told(lines, players, replies, **about):
  """The table and its circumstances."""
  return "\n".join([*lines, "", turns.circumstances(players, replies, **about)])


def share(replies):
  """The least time of a step over the median one."""
  bandwidth = max(one["bandwidth"] for one in replies)
  peak = max(one["peak"] for one in replies)
  one = replies[0]
  least = max((one["weights"] + one["cache"]) / bandwidth, one["flops"] / peak)
  return least / statistics.median([one["decode"] for one in replies])


def refill(given):
  """Requests of real lengths: slots filled anew beside batches that wait."""
  job = job_of(given, 4 * given.batch)
  slots = f"--slots={given.batch}"
  players = [
    ours("batches that wait", job, slots, "--static=1"),
    ours("slots filled anew", job, slots),
  ]
  replies = turns.play(players, given.rounds + 1)
  lines = ["| | tokens/s | ratio | quartiles |", "|---|---|---|---|"]
  first = replies[players[0].name]
  for player in players:
    mine = replies[player.name]
    speed = [one["tokens"] / one["whole"] for one in mine]
    ratio = [a["whole"] / b["whole"] for a, b in zip(first, mine, strict=True)]
    low, middle, high = turns.quartiles(ratio)
    lines.append(
      f"| {player.name} | {statistics.median(speed):.1f} | {middle:.2f} "
      f"| {low:.2f} to {high:.2f} |"
    )
  about = dict(slots=given.batch, requests=4 * given.batch, longest=given.new)
  text = (
    "\n".join(lines) + "\n\n" + turns.circumstances(players, replies, **about)
  )
  turns.deliver(text, given.out)


def equality(given):
  """Are the ids those of transformers, until the first tie?"""
  job = job_of(given, given.prompts)
  slots = f"--slots={given.batch}"
  players = [theirs("transformers", given, job), ours("mrpo_jax", job, slots)]
  replies = turns.play(players, 1, warmup=0, together=False)
  exact, found = (replies[player.name][0]["found"] for player in players)
  same = ties = wrong = 0
  apart = 0.0
  for one, other in zip(exact, found, strict=True):
    pairs = enumerate(zip(one["ids"], other["ids"], strict=True))
    end = next((i for i, (a, b) in pairs if a != b), None)
    logps = zip(one["logp"][:end], other["logp"][:end], strict=True)
    apart = max([apart, *(abs(a - b) for a, b in logps)])
    if end is None:
      same += 1
    elif one["gap"][end] < TIE:
      ties += 1
    else:
      wrong += 1
  text = (
    f"{given.model or given.shape}: {len(exact)} prompts, {given.new} tokens "
    f"each: {same} the same, {ties} until a tie within {TIE} nats, {wrong} "
    f"otherwise; log-probabilities at most {apart:.1e} nats apart\n"
  )
  turns.deliver(text + turns.circumstances(players, replies), given.out)
  if wrong:
    raise SystemExit(1)


def main():
  flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  flags.add_argument("--workdir", required=True)
  flags.add_argument("--torch_python", default=sys.executable)
  flags.add_argument("--model", default="")
  flags.add_argument("--shape", default="A", choices=material.SHAPES)
  for name, value in dict(
    batch=64, new=32, rounds=5, prompts=200, longest=96
  ).items():
    flags.add_argument(f"--{name}", type=int, default=value)
  for name in ("int8", "equality", "refill"):
    flags.add_argument(f"--{name}", action="store_true")
  flags.add_argument("--out", default="", help="file for the table")
  given = flags.parse_args()
  if given.equality:
    equality(given)
  elif given.refill:
    refill(given)
  else:
    speeds(given)


if __name__ == "__main__":
  main()
