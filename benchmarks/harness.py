# SPDX-License-Identifier: Apache-2.0
r"""lm-evaluation-harness on HarnessLM beside its own Hugging Face back end.

  python -m benchmarks.harness --workdir=DIR --torch_python=PYTHON \
    --model=FOLDER --data=DIR [--tasks=truthfulqa_mc1,...] [--limit=32]
  python -m benchmarks.harness ... --equality      the same numbers?

PYTHON has torch, transformers and lm-eval.  Both answer the same requests in
float32, of which the harness then makes its figures; --data is the folder of
`mrpo evaluate`.  With --equality each plays once, alone.
"""

import argparse
import json
import pathlib
import sys

from lm_eval.api.model import LM

from benchmarks import turns
from mrpo_jax.evaluation import evaluate_tasks, figures

NATS = 1e-3  # apart at most


class Script(LM):
  """An LM that says what it is told, and keeps what it was asked, once each."""

  def __init__(self, answers=None):
    super().__init__()
    self._answers, self.asked = answers or {}, {}

  def _say(self, kind, requests, otherwise):
    arguments = [list(request.args) for request in requests]
    keys = list(map(json.dumps, arguments))
    self.asked[kind] = list(dict(zip(keys, arguments, strict=True)).values())
    answers = self._answers.get(kind, [otherwise] * len(self.asked[kind]))
    said = dict(zip(dict.fromkeys(keys), answers, strict=True))
    return [said[key] for key in keys]

  def loglikelihood(self, requests):
    said = self._say("loglikelihood", requests, (0.0, False))
    return [tuple(one) for one in said]

  def loglikelihood_rolling(self, requests):
    return self._say("loglikelihood_rolling", requests, 0.0)

  def generate_until(self, requests):
    return self._say("generate_until", requests, "")


def results_of(given, answers=None):
  """(the harness's results, its requests by kind)."""
  lm = Script(answers)
  found = evaluate_tasks(
    lm,
    given.tasks.split(","),
    data=given.data,
    limit=given.limit,
    num_fewshot=given.num_fewshot,
  )
  return found, lm.asked


def job_of(given):
  """(file with the work of all players, how many documents it is)."""
  workdir = pathlib.Path(given.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  found, requests = results_of(given)
  for arguments in requests.get("generate_until", ()):
    arguments[1]["max_gen_toks"] = given.max_gen_toks
  path = workdir / "harness.json"
  path.write_text(json.dumps({"folder": given.model, "requests": requests}))
  return path, sum(n["effective"] for n in found["n-samples"].values())


def players_of(given, job):
  theirs = turns.Process(
    *("Hugging Face back end", given.torch_python),
    *("benchmarks.peers.harness_hf", job, (f"--batch={given.batch}",)),
  )
  module = "benchmarks.peers.our_harness"
  return theirs, turns.Process("HarnessLM", sys.executable, module, job)


def about(given):
  return dict(
    model=pathlib.Path(given.model).name,
    tasks=given.tasks.replace(",", " "),
    shots="the tasks'" if given.num_fewshot is None else given.num_fewshot,
  )


def speeds(given):
  """Documents per second, in turns."""
  job, documents = job_of(given)
  players = players_of(given, job)
  replies = turns.play(list(players), given.rounds + 1)
  lines = [
    f"| {documents} documents | documents/s | to the back end | peak memory |",
    "|---|---|---|---|",
  ]
  first = replies[players[0].name]
  for player in players:
    mine = replies[player.name]
    speed = turns.quartiles([documents / one["seconds"] for one in mine])
    ratio = turns.quartiles(
      [a["seconds"] / b["seconds"] for a, b in zip(first, mine, strict=True)]
    )
    lines.append(
      f"| {player.name} | {speed[1]:.2f} ({speed[0]:.2f} to {speed[2]:.2f}) "
      f"| {ratio[1]:.2f} ({ratio[0]:.2f} to {ratio[2]:.2f}) "
      f"| {mine[-1]['memory'] / 1e6:,.0f} MB |"
    )
  said = turns.circumstances(players, replies, **about(given))
  turns.deliver("\n".join([*lines, "", said]), given.out)


def apart(one, other):
  """(the greatest difference in nats, how often greedy differs)."""
  pairs = list(zip(one, other, strict=True))
  gaps = [abs(a[0] - b[0]) for a, b in pairs]
  return max(gaps, default=0.0), sum(a[1] != b[1] for a, b in pairs)


def equality(given):
  """The same log-likelihoods, texts and figures?"""
  job, documents = job_of(given)
  players = players_of(given, job)
  replies = turns.play(list(players), 1, warmup=0, together=False)
  theirs, ours = (replies[player.name][0]["answers"] for player in players)
  gap, greedy = apart(
    theirs.get("loglikelihood", []), ours.get("loglikelihood", [])
  )
  texts = list(
    zip(
      theirs.get("generate_until", []),
      ours.get("generate_until", []),
      strict=True,
    )
  )
  same = sum(a == b for a, b in texts)
  lines = [
    f"{pathlib.Path(given.model).name}: {documents} documents, "
    f"{len(theirs.get('loglikelihood', []))} log-likelihoods at most {gap:.1e} "
    f"nats apart, {greedy} otherwise greedy; {same} of {len(texts)} texts the "
    "same",
    "",
    "| figure | Hugging Face back end | HarnessLM |",
    "|---|---|---|",
  ]
  found = [figures(results_of(given, one)[0]) for one in (theirs, ours)]
  lines += [
    f"| {name} | {value:.6f} | {found[1][name]:.6f} |"
    for name, value in found[0].items()
    if given.subjects or not name.startswith("mmlu_")
  ]
  said = turns.circumstances(players, replies, **about(given))
  turns.deliver("\n".join([*lines, "", said]), given.out)
  answers = {"theirs": theirs, "ours": ours}
  path = pathlib.Path(given.workdir) / "answers.json"
  path.write_text(json.dumps(answers))
  if gap > NATS:
    raise SystemExit(1)


def main():
  flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  for name in ("workdir", "model", "data"):
    flags.add_argument(f"--{name}", required=True)
  flags.add_argument("--torch_python", default=sys.executable)
  flags.add_argument("--tasks", default="truthfulqa_mc1,truthfulqa_mc2")
  flags.add_argument("--num_fewshot", type=int)
  for name, value in dict(
    limit=32, rounds=3, batch=8, max_gen_toks=256
  ).items():
    flags.add_argument(f"--{name}", type=int, default=value)
  flags.add_argument("--equality", action="store_true")
  flags.add_argument("--subjects", action="store_true", help="of mmlu, too")
  flags.add_argument("--out", default="", help="file for the table")
  given = flags.parse_args()
  equality(given) if given.equality else speeds(given)


if __name__ == "__main__":
  main()
