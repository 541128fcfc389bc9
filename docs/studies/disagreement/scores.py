# SPDX-License-Identifier: Apache-2.0
"""-log dispersion of judged items under a model, from the reference store."""

from typing import NamedTuple

import numpy as np

from configs import quickstart
from mrpo_jax import files, losses
from mrpo_jax.runs.config import read
from mrpo_jax.runs.score import ScorePlan
from mrpo_jax.runs.setup import set_up

SPLITS = ("train", "eval")  # of a run: one for each of two files of labels
MAX_PROMPT, MAX_RESPONSE = 256, 320  # tokens


class Scored(NamedTuple):
  """What a model says of the items of one file."""

  places: list  # of the items that it scored
  neg_log_dispersion: np.ndarray  # [items scored]
  tokens: np.ndarray  # of their responses, together
  truncated: int  # rows of which something was cut


def score_labels(workdir, name, path, labels):
  """A Scored of each file of labels under a model; nothing is scored twice.

  Args:
    workdir: folder of the study.
    name: of the model.
    path: its folder.
    labels: two of labels.Labels.
  """
  setup = set_up(config_of(workdir, path, labels), workdir / "scores" / name)
  plan = ScorePlan.of(setup, str(workdir / "store"), fresh=True)
  plan.fill()
  vocab_size = setup.described["start"].model.config.vocab_size
  return [
    _scored(plan.read("start", split), setup.tables[split], one, vocab_size)
    for split, one in zip(SPLITS, labels, strict=True)
  ]


def config_of(workdir, path, labels):
  """The Config of a run that would read these scores."""
  c = quickstart.get_config(f"dpo,models={workdir}")
  c.policy = dict(path=str(path), dtype="float32")
  c.references = dict(
    names=("start",), start=dict(path="policy", mode="scored")
  )
  c.data.max_prompt, c.data.max_response = MAX_PROMPT, MAX_RESPONSE
  c.batch, c.data.row_length = 16, 1024
  for split, one in zip(SPLITS, labels, strict=True):
    c.data[split] = str(_rows(workdir, one))
  return read(c.to_dict())


def _rows(workdir, labels):
  """The file of the pairs of all items."""
  path = workdir / "pairs" / f"{labels.sha256[:12]}.jsonl"
  path.parent.mkdir(parents=True, exist_ok=True)
  if not path.exists():
    files.write_lines(path, [row for one in labels.items for row in one.rows()])
  return path


def _scored(scores, table, labels, vocab_size):
  share_PC = losses.normalised_entropy(
    scores.entropy_PC, scores.token_PC, vocab_size=vocab_size
  )
  return of_items(
    dict(zip(table.places, np.asarray(share_PC, float), strict=True)),
    dict(zip(table.places, scores.token_PC.sum(1), strict=True)),
    labels,
  )._replace(truncated=table.truncated)


def of_items(shares, tokens, labels):
  """The Scored of items all of whose rows are there.

  Args:
    shares: {row: (entropy share of its first response, of its second)}.
    tokens: {row: of both responses}.
    labels: Labels.
  """
  rows = {
    place: range(place * labels.per_item, (place + 1) * labels.per_item)
    for place in range(len(labels.items))
  }
  kept = [
    place for place, some in rows.items() if all(r in shares for r in some)
  ]
  # The loss's own figure of a pair, of the means over its first and second
  # responses: of four responses that is the mean over all.
  mean_BC = np.array(
    [np.mean([shares[row] for row in rows[place]], 0) for place in kept]
  ).reshape(-1, 2)
  return Scored(
    kept,
    np.asarray(losses.neg_log_dispersion(mean_BC), float),
    np.array([sum(tokens[row] for row in rows[place]) for place in kept]),
    0,
  )
