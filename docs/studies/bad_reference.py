# SPDX-License-Identifier: Apache-2.0
"""What one bad reference does to a run, and what helps.

  python -m docs.studies.bad_reference --workdir=/tmp/bad_reference

writes `bad_reference.md` and `bad_reference.svg` beside this file, from 60 runs
of about half a minute each on two CPU cores; started again, it goes on where it
was.
"""

import argparse
import contextlib
import datetime
import functools
import gzip
import itertools
import logging
import pathlib

import numpy as np

from configs import quickstart
from docs.studies.grid.models import (
  make_sharp,
  make_shuffled,
  make_starts,
  train_whole,
)
from docs.studies.grid.text import machine, save, svg
from mrpo_jax import configs, files
from mrpo_jax.evaluation.statistics import paired_interval
from mrpo_jax.reports import figures
from mrpo_jax.runs.config import read
from mrpo_jax.runs.workdir import PAIRS

HERE = pathlib.Path(__file__).parent
SEEDS = range(5)  # of the order of the data; the models are the same
STEPS, BATCH = 20, 32
TREATMENTS = {
  "none": dict(scale="sum", clip=None),
  "z-score": dict(scale="zscore", clip=None),
  "CTRO": dict(scale="sum", clip=dict(epsilon_max=0.1, adaptive=True)),
}
BAD = {
  "none": "no bad reference",
  "mistokenised": "the first reference's weights, the second's tokenizer",
  "shuffled": "the second reference, each array's values in random order",
  "tenfold": "the second reference, its logits times ten",
}


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", required=True)
  workdir = pathlib.Path(parser.parse_args().workdir).absolute()
  make_starts(workdir)
  make_shuffled(workdir)
  make_sharp(workdir, "tenfold", 10)
  found = {}
  for treatment in TREATMENTS:
    for bad in BAD:
      for seed in SEEDS:
        found[treatment, bad, seed] = run(workdir, treatment, bad, seed)
  draw(found)
  (HERE / "bad_reference.md").write_text(page(found), encoding="utf-8")


# Models.


def training_pairs(workdir):
  """The pairs of one epoch, as a file."""
  file = workdir / "train.jsonl"
  if not file.exists():
    with gzip.open(configs.HH_HARMLESS / "train.jsonl.gz", "rb") as rows:
      some = itertools.islice(rows, STEPS * BATCH)
      files.write_atomically(file, b"".join(some))
  return file


# Runs.


def config_of(workdir, treatment, bad, seed):
  models = workdir / "models"
  names = ("base", "second") + (() if bad == "none" else (bad,))
  path = "sft-base" if bad == "mistokenised" else bad
  c = quickstart.get_config(f"mrpo,models={models}")
  c.seed, c.steps, c.batch = seed, STEPS, BATCH
  c.data.train = str(training_pairs(workdir))
  c.data.max_prompt = c.data.max_response = 64  # tokens
  c.data.row_length = 256
  c.eval_every = c.checkpoint_every = 0
  c.references = dict(
    names=names,
    base=dict(path="policy", mode="scored"),
    second=dict(path=f"{models}/sft-second", mode="scored"),
  )
  if bad != "none":
    c.references[bad] = dict(path=f"{models}/{path}", mode="scored")
  if bad == "mistokenised":
    c.references[bad].tokenizer = f"{models}/sft-second"
  for key, value in TREATMENTS[treatment].items():
    c.loss[key] = value
  return read(c.to_dict())


@contextlib.contextmanager
def logged(name):
  """A list that gets each line of a run, which is printed too."""
  logger, lines, handler = logging.getLogger("mrpo_jax"), [], logging.Handler()

  def emit(record):
    lines.append(record.getMessage())
    print(f"{name}: {lines[-1]}")

  handler.emit = emit
  logger.addHandler(handler)
  logger.setLevel(logging.INFO)
  try:
    yield lines
  finally:
    logger.removeHandler(handler)


def run(workdir, treatment, bad, seed):
  """What one run came to: accuracy of each held-out pair, and its warnings."""
  name = f"{treatment}_{bad}_{seed}"
  done = workdir / "results" / f"{name}.json"
  if not done.exists():
    with logged(name) as lines:
      train_whole(
        config_of(workdir, treatment, bad, seed),
        workdir / name,
        store=str(workdir / "store"),
      )
    done.parent.mkdir(exist_ok=True)
    pairs = files.read_lines(workdir / name / PAIRS)
    last = files.read_lines(workdir / name / "metrics.jsonl")[-1]
    files.write_json(
      done,
      {
        "right": [[pair["pair"], figures.margin(pair) > 0] for pair in pairs],
        "warnings": [x for x in lines if x.startswith("warning: ")],
        "metrics": last,
      },
    )
  return files.read_json(done)


# What came out.


def shared_pairs(found):
  """Pairs that every run kept, whatever its tokenizers."""
  return sorted(
    set.intersection(*({p for p, _ in one["right"]} for one in found.values()))
  )


def right_SN(found, treatment, bad):
  """1 where a run of a seed ranks a shared held-out pair as people did."""
  pairs = shared_pairs(found)
  return np.array(
    [
      [dict(found[treatment, bad, seed]["right"])[pair] for pair in pairs]
      for seed in SEEDS
    ],
    float,
  )


def interval(found, treatment):
  """95 % interval of the mean accuracy without a bad reference."""
  return paired_interval(right_SN(found, treatment, "none").mean(0))


def mean_metric(found, treatment, bad, name):
  return np.mean(
    [found[treatment, bad, seed]["metrics"][name] for seed in SEEDS]
  )


def table(found):
  rows = ["| treatment | reference added | accuracy | over seeds | within |"]
  rows += ["|---|---|---|---|---|"]
  for treatment in TREATMENTS:
    low, high = interval(found, treatment)
    for bad in BAD:
      accuracy_S = right_SN(found, treatment, bad).mean(1)
      mean = accuracy_S.mean()
      within = f"[{low:.3f}, {high:.3f}]"
      if bad != "none":
        within = "yes" if low <= mean <= high else "**no**"
      rows.append(
        f"| {treatment} | {bad} | {mean:.3f} | {accuracy_S.min():.3f} to "
        f"{accuracy_S.max():.3f} | {within} |"
      )
  return "\n".join(rows)


def shares(found):
  """How the mixture is divided, and how far the loss is saturated."""
  rows = ["| treatment | reference added | its share of the mixture | "]
  rows[0] += "gradient scale below 0.01 | above 0.99 |"
  rows += ["|---|---|---|---|---|"]
  for treatment in TREATMENTS:
    for bad in BAD:
      mean = functools.partial(mean_metric, found, treatment, bad)
      share = "-"
      if bad != "none":
        share = f"{mean(f'eval/references/{bad}/responsibility'):.0%}"
      rows.append(
        f"| {treatment} | {bad} | {share} | "
        f"{mean('eval/gradient_scale/low'):.0%} | "
        f"{mean('eval/gradient_scale/high'):.0%} |"
      )
  return "\n".join(rows)


def warnings(found):
  lines = []
  for bad in BAD:
    said = found["none", bad, 0]["warnings"]
    lines.append(f"- *{bad}*: " + ("nothing." if not said else ""))
    lines += [f"  - {line.removeprefix('warning: ')}" for line in said]
  return "\n".join(lines)


def verdict(found):
  """One sentence per treatment, from the numbers alone."""
  lines = []
  for treatment in TREATMENTS:
    low, high = interval(found, treatment)
    out = [
      bad
      for bad in BAD
      if not low <= right_SN(found, treatment, bad).mean() <= high
    ]
    what = (
      f"leaves the interval with {', '.join(out)}" if out else "stays in it"
    )
    lines.append(f"- {treatment}: held-out accuracy {what}.")
  return "\n".join(lines)


def page(found):
  return TEMPLATE.format(
    pairs=len(shared_pairs(found)),
    seeds=len(SEEDS),
    steps=STEPS,
    batch=BATCH,
    kinds="\n".join(f"- *{bad}*: {what}" for bad, what in BAD.items()),
    table=table(found),
    shares=shares(found),
    warnings=warnings(found),
    verdict=verdict(found),
    date=datetime.date.today(),
    machine=machine(),
  )


def draw(found):
  pyplot = svg()
  figure, axes = pyplot.subplots(
    1, len(TREATMENTS), figsize=(9, 3), sharey=True, layout="constrained"
  )
  for axis, treatment in zip(axes, TREATMENTS, strict=True):
    axis.axhspan(*interval(found, treatment), color="0.9")
    for x, bad in enumerate(BAD):
      accuracy_S = right_SN(found, treatment, bad).mean(1)
      axis.plot([x] * len(accuracy_S), accuracy_S, "o", color="C0", alpha=0.5)
      axis.plot([x - 0.2, x + 0.2], [accuracy_S.mean()] * 2, color="C3")
    axis.set_title(f"treatment: {treatment}")
    axis.set_xticks(range(len(BAD)), BAD, rotation=30)
  axes[0].set_ylabel("held-out accuracy")
  save(pyplot, figure, HERE / "bad_reference.svg")


TEMPLATE = """\
# One bad reference

Made by `python -m docs.studies.bad_reference --workdir=DIR` on {date}
({machine}).

MRPO (harmonic mean, uniform weights, beta 0.1) of the quickstart's policy
against its own start and a second model, and against these two and a bad one:

{kinds}

Each run is {steps} steps of {batch} human preference pairs (HH-RLHF, harmless);
{seeds} seeds of the order of the data.  Accuracy is on {pairs} held-out pairs
against the policy's start: the same yardstick for all.  Treatments: none (sums,
no clipping), z-score (`loss.scale="zscore"`), CTRO (`loss.clip`, epsilon 0.1,
adaptive).

{table}

*Within*: the 95 % interval of the runs without a bad reference, under the same
treatment, over held-out pairs; then whether the mean over seeds stays in it.

![held-out accuracy of every run](bad_reference.svg)

{verdict}

What the bad reference does to the loss, on held-out pairs:

{shares}

What the runs without a treatment said (seed 0):

{warnings}

Not varied: the two good models and their seed, the mixture and its weights,
beta, the learning rate, steps, the lengths of texts.

The models have 1.0 and 0.5 million parameters and train for seconds: this shows
what a reference can do to the loss, not how large the effect is at scale.
"""


if __name__ == "__main__":
  main()
