# SPDX-License-Identifier: Apache-2.0
"""A folder of runs made by hand, with all that a report can show."""

import random

from mrpo_jax import files

ODD = "<script>alert(1)</script> <img src=x onerror=alert(2)> \" ' & \u202e"
PROMPTS = ("How do I bake bread?", f"A book? {ODD}", "I feel sad today.")
STEPS = 30
WORDS = "the bread of an hour bakes with flour and water until it rises".split()


def make_study(folder, seeds=3):
  """DPO and MRPO, `seeds` of each, on 60 held-out pairs of 40 prompts."""
  for method in ("dpo", "mrpo"):
    for seed in range(seeds):
      make_run(folder / f"loss.name={method},seed={seed}", method, seed)


def make_run(folder, method, seed):
  folder.mkdir(parents=True)
  rng = random.Random(f"{method} {seed}")
  names = ("base", "second") if method == "mrpo" else ("base",)
  references = {name: {"path": f"/models/{name}"} for name in names}
  config = {
    "seed": seed,
    "steps": STEPS,
    "data": {"train": ODD, "eval": "pairs.jsonl"},
    "loss": {"name": "dpo", "beta": 0.1 if method == "dpo" else 0.2},
    "references": {"names": [*names], **references},
    "identity": {"data.eval": "x"},
  }
  files.write_json(folder / "config.json", config)
  lines = [{"step": 0, "samples": _samples(rng, 2), **_scores(rng, 0.0)}]
  lines += [_line(rng, step, names) for step in range(1, STEPS + 1)]
  files.write_lines(folder / "metrics.jsonl", lines)
  files.write_lines(folder / "eval_pairs.jsonl", [*_pairs(rng, method, names)])


def _line(rng, step, names):
  rise = step / STEPS
  line = {
    "step": step,
    "loss": 0.7 - 0.1 * rise + rng.uniform(-0.02, 0.02),
    "rewards/accuracies": 0.5 + 0.1 * rise + rng.uniform(-0.05, 0.05),
    "rewards/margins": 0.3 * rise + rng.uniform(-0.05, 0.05),
    "grad_norm": rng.uniform(1.0, 2.0),
    **{"pairs": 64, "seconds": 2.0, "tokens/real": 90, "tokens/slots": 100},
  }
  for k, name in enumerate(names):
    share = 0.3 + 0.4 * rise
    line[f"references/{name}/responsibility"] = 1 - share if k else share
    line[f"references/{name}/margin"] = rng.uniform(60, 80)
    line[f"references/{name}/margin_sd"] = 300.0
  if step % 15 == 0:
    line |= {
      "eval/loss": line["loss"],
      "eval/rewards/accuracies": line["rewards/accuracies"],
      "eval/rewards/margins": line["rewards/margins"],
      "samples": _samples(rng, 0),
      **_scores(rng, rise),
    }
  return line


def _scores(rng, rise):
  return {
    "eval/gsm8k/exact_match,strict-match": 0.03 + 0.02 * rise,
    "eval/truthfulqa_mc2/acc,none": 0.35 + rng.uniform(0, 0.05),
  }


def _samples(rng, repeats):
  for_all = []
  for index, prompt in enumerate(PROMPTS):
    words = rng.choices(WORDS, k=20)
    text = " ".join(words + words[:8] * repeats)
    one = {"index": index, "prompt": prompt, "response": f"{text} {ODD}"}
    for_all.append({**one, "tokens": 20 + 8 * repeats, "finish": "stop"})
  return for_all


def _pairs(rng, method, names):
  gain = 0.5 if method == "dpo" else 0.9
  for pair in range(60):
    yield {
      "pair": pair,
      "prompt": f"{min(pair, 39)}",
      "policy": [-40.0 + rng.gauss(gain, 1.0), -40.0],
      "references": [[-40.0, -40.0]] * len(names),
      "tokens": [20, 20],
    }
