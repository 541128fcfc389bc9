# SPDX-License-Identifier: Apache-2.0
r"""The ranking of AlpacaEval's models, from its judgements, beside its own.

  python -m benchmarks.alpaca_ranking --data=DIR --leaderboards=DIR \
    [--limit=N]

DIR holds `alpaca_eval_annotations.jsonl.gz` and `alpaca_eval_outputs.jsonl.gz`;
the leaderboards are those of tatsu-lab/alpaca_eval,
`src/alpaca_eval/leaderboards/*/<annotator>_leaderboard.csv`, in one folder.
Prints a row per model of every annotator, and how well both agree.  The data
are CC BY-NC: nothing but such figures of them leaves their folder.
"""

import argparse
import collections
import csv
import gzip
import json
import pathlib

import numpy as np
import scipy.stats

from mrpo_jax.evaluation.win_rates import length_controlled, wins
from mrpo_jax.text import aligned

LEAST = 500  # judgements of a model that is ranked


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--data", required=True, type=pathlib.Path)
  parser.add_argument("--leaderboards", required=True, type=pathlib.Path)
  parser.add_argument("--limit", type=int, help="models of an annotator")
  given = parser.parse_args()
  judged = judgements(given.data)
  published = {one: leaderboard(given.leaderboards, one) for one, _ in judged}
  length = lengths(given.data)
  rows, found = [], collections.defaultdict(list)
  for (annotator, model), judgements_N in judged.items():
    theirs = published[annotator].get(model)
    if len(judgements_N) < LEAST or theirs is None:
      continue
    if given.limit and len(found[annotator]) >= given.limit:
      continue
    ours = rates(judgements_N, model, length)
    found[annotator].append((*ours, *theirs))
    rows.append([annotator, model, *map(figure, (*ours, *theirs))])
  head = ["annotator", "model", "n", "raw", "controlled"]
  rows.sort(key=lambda row: (row[0], -float(row[3])))
  print(aligned([[*head, "their raw", "their controlled"], *rows]))
  print()
  print("\n".join(summary(found)))


def judgements(data):
  """{(annotator, model): [(id, baseline, preference)]}."""
  found = collections.defaultdict(list)
  for row in lines(data / "alpaca_eval_annotations.jsonl.gz"):
    of = row["annotator"], row["generator_2"]
    found[of].append((row["id"], row["generator_1"], row["preference"]))
  return found


def lengths(data):
  """{(id, model): characters of its answer}."""
  return {
    (row["id"], model): len(text)
    for row in lines(data / "alpaca_eval_outputs.jsonl.gz")
    for model, text in row["outputs"].items()
  }


def lines(path):
  with gzip.open(path, "rt", encoding="utf-8") as file:
    yield from map(json.loads, file)


def leaderboard(folder, annotator):
  """{model: its published (raw, length-controlled) rates, percent}."""
  path = folder / f"{annotator}_leaderboard.csv"
  if not path.exists():
    return {}
  with open(path, encoding="utf-8", newline="") as file:
    return {
      row[""]: tuple(
        float(row.get(kind) or "nan")
        for kind in ("win_rate", "length_controlled_winrate")
      )
      for row in csv.DictReader(file)
    }


def rates(judgements_N, model, length):
  """(judgements, raw rate, length-controlled rate), percent."""
  ids, baselines, preferences = zip(*judgements_N, strict=True)
  difference_N = [
    length[one, model] - length[one, baseline]
    for one, baseline in zip(ids, baselines, strict=True)
  ]
  win_N = wins(preferences)
  controlled = length_controlled(win_N, difference_N)
  return len(ids), 100 * win_N.mean(), 100 * controlled.win_rate


def summary(found):
  """Lines of a Markdown table: each annotator's agreement."""
  head = "annotator models rate Spearman Kendall mean&nbsp;gap largest&nbsp;gap"
  yield f"| {' | '.join(head.split())} |"
  yield "|---" * len(head.split()) + "|"
  for annotator, models in found.items():
    value_MF = np.array(models)
    for name, ours, theirs in (("raw", 1, 3), ("controlled", 2, 4)):
      known_MF = value_MF[np.isfinite(value_MF[:, theirs])]
      if len(known_MF) < 2:
        continue
      a_M, b_M = known_MF[:, ours], known_MF[:, theirs]
      gap_M = np.abs(a_M - b_M)
      cells = [
        *(f"`{annotator}`", len(known_MF), name),
        f"{scipy.stats.spearmanr(a_M, b_M).statistic:.4f}",
        f"{scipy.stats.kendalltau(a_M, b_M).statistic:.4f}",
        *(f"{gap_M.mean():.2f}", f"{gap_M.max():.2f}"),
      ]
      yield f"| {' | '.join(map(str, cells))} |"


def figure(value):
  return f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
  main()
