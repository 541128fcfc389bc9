# SPDX-License-Identifier: Apache-2.0
"""Records of pairs.jsonl: their margins, and those of an earlier evaluation."""

import numpy as np

from mrpo_jax import files
from mrpo_jax.data import source as rows_source
from mrpo_jax.data.table import MARK
from mrpo_jax.errors import InputError
from mrpo_jax.evaluation import pairs as figures_of
from mrpo_jax.files import is_figure
from mrpo_jax.runs.evaluation import RESULTS

PAIRS = "pairs.jsonl"
LIMITS = ("max_prompt", "max_response")


def records_of(table, pairs, scores):
  """One dict per pair, of the form of a run's eval_pairs.jsonl and more."""
  references = [one for name, one in scores.items() if name != "model"]
  for place, mark, prompt in zip(
    table.places, table.fingerprints, table.prompts, strict=True
  ):
    logp_C, token_C = scores["model"][mark]
    yield {
      "pair": place,
      "policy": logp_C,
      "references": [one[mark][0] for one in references],
      "tokens": token_C,
      "prompt": prompt,
      "text": text_mark(pairs[place]),
    }


def text_mark(pair):
  """Of a pair's text, wherever a model cuts it."""
  return rows_source.pair_id(pair)[:MARK]


def margins(records, *, length_normalised=False):
  """[N] nats of records: of the model, less the reference where there is one.

  Args:
    records: list of dicts of pairs.jsonl.
    length_normalised: of each response's mean over the model's tokens?
  """
  logp_NC = np.array([one["policy"] for one in records])
  if records[0]["references"]:
    logp_NC = logp_NC - [one["references"][0] for one in records]
  if length_normalised:
    logp_NC = logp_NC / [one["tokens"] for one in records]
  return logp_NC[:, 0] - logp_NC[:, 1]


def read_records(folder, margin):
  """{(pair, text): record} of a folder that `evaluate_pairs` wrote.

  Args:
    folder: that one.
    margin: what its margins have to be of, as results.json says it.

  Raises:
    InputError: it holds none, or margins of another kind.
  """
  path = files.path_of(folder) / PAIRS
  records = files.read_lines(path)
  if not records:
    raise InputError(
      f"--against {folder} holds no {PAIRS}; name the folder that mrpo "
      "evaluate --pairs wrote"
    )
  _refuse_other_margin(folder, margin)
  count = 1 if margin["reference_identity"] else 0
  for number, one in enumerate(records, 1):
    _check_record(one, count, f"{path} line {number}")
  found = {(one["pair"], one["text"]): one for one in records}
  if len(found) < len(records):
    raise InputError(f"{path} has a pair twice; evaluate that anew")
  return found


def _check_record(record, references, where):
  """InputError where a record is none that `records_of` makes; names the key.

  Args:
    record: a line of pairs.jsonl, which anybody may have changed.
    references: how many it has the log-probabilities of.
    where: the line, to be said.
  """
  logps = record.get("references")
  is_right = {
    "pair": type(record.get("pair")) is int,
    "text": isinstance(record.get("text"), str),
    "prompt": isinstance(record.get("prompt"), str),
    "policy": _are_two(record.get("policy"), is_figure),
    "references": isinstance(logps, list)
    and len(logps) == references
    and all(_are_two(one, is_figure) for one in logps),
    "tokens": _are_two(
      record.get("tokens"), lambda one: type(one) is int and one > 0
    ),
  }
  for key, right in is_right.items():
    if not right:
      raise InputError(
        f"{where}: {key!r} is not as it was written; evaluate that anew"
      )


def _are_two(values, is_one):
  is_list = isinstance(values, list) and len(values) == 2
  return is_list and all(map(is_one, values))


def _refuse_other_margin(folder, margin):
  path = files.path_of(folder) / RESULTS
  there = files.read_json(path) if path.is_file() else {}
  for name in margin:
    is_right = {
      "reference_identity": lambda one: one is None or isinstance(one, dict)
    }.get(name, lambda one: type(one) is int)
    if name not in there or not is_right(there[name]):
      says = "does not say" if name not in there else "was changed in its"
      raise InputError(f"{path} {says} {name}; evaluate that anew")
  start = f"--against {folder} was evaluated"
  reference, other = margin["reference_identity"], there["reference_identity"]
  if bool(reference) != bool(other):
    kinds = ["without a reference", "with one"]
    raise InputError(
      f"{start} {kinds[bool(other)]}, this {kinds[bool(reference)]}; their "
      "margins are not comparable"
    )
  if reference != other:
    raise InputError(
      f"{start} against another reference, {there.get('reference')}; give the "
      "same one, as it was held there"
    )
  if any(margin[name] != there[name] for name in LIMITS):
    flags = " ".join(f"--{name}={there[name]}" for name in LIMITS)
    raise InputError(
      f"{start} with texts cut elsewhere; give {flags}, or evaluate that anew"
    )


def refuse_unshared(against, table, pairs, other):
  if not any(
    (place, text_mark(pairs[place])) in other for place in table.places
  ):
    raise InputError(f"--against {against} has none of these pairs")


def difference_to(folder, records, other):
  """The difference on the pairs of both, and how many only one has."""
  both = [one for one in records if (one["pair"], one["text"]) in other]
  theirs = [other[one["pair"], one["text"]] for one in both]
  return {
    "folder": str(folder),
    **figures_of.difference(
      margins(both), margins(theirs), [one["prompt"] for one in both]
    ),
    "only_here": len(records) - len(both),
    "only_there": len(other) - len(both),
  }
