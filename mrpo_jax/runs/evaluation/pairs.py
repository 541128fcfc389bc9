# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a model on preference pairs, with or without a reference.

DIR/pairs.jsonl holds what each pair gets, DIR/results.json the figures.
"""

import contextlib
import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp

from mrpo_jax import files, parallel, processes
from mrpo_jax.data import pack
from mrpo_jax.data import source as rows_source
from mrpo_jax.data.batches import Packing
from mrpo_jax.data.chat.sandbox import sandbox
from mrpo_jax.data.table import encode_table
from mrpo_jax.errors import InputError, blames
from mrpo_jax.evaluation import pairs as figures_of
from mrpo_jax.models.attention import kernels
from mrpo_jax.models.packed import Computation
from mrpo_jax.models.partition import WHOLE
from mrpo_jax.references import score
from mrpo_jax.runs.config.method import log_odds_beta
from mrpo_jax.runs.evaluation import RESULTS
from mrpo_jax.runs.evaluation.pair_records import (
  LIMITS,
  PAIRS,
  difference_to,
  margins,
  read_records,
  records_of,
  refuse_unshared,
)
from mrpo_jax.runs.evaluation.pairs_text import text
from mrpo_jax.runs.inference.model import find_model

logger = logging.getLogger(__name__)

BATCH = 64  # pairs that are scored at once
TOKENS = 8192  # of the rows that are computed at once, about
LANES = 128  # that many tokens a row's length is a multiple of


@dataclasses.dataclass(frozen=True)
class Views:
  """Tokenizers of the models, as `encode_table` takes them."""

  views: list
  names: list  # of the models that have each

  def users(self, index):
    """The models that have the view of that index."""
    return self.names[index]


class MemoryStore:
  """Scores in memory, in the place of a references.store.Store."""

  def __init__(self):
    self.scores = {}

  def known(self):
    """The pairs that it holds."""
    return set(self.scores)

  def write(self, names, scores):
    """Takes Scores of the pairs of these fingerprints."""
    for name, logp_C, token_C in zip(
      names, scores.logp_PC, scores.token_PC, strict=True
    ):
      self.scores[name] = logp_C.tolist(), token_C.tolist()


def evaluate_pairs(
  source,
  pairs,
  to,
  *,
  reference=None,
  against=None,
  max_prompt=None,
  max_response=None,
  beta=None,
):
  """Writes pairs.jsonl and results.json of a model; gives their table.

  Args:
    source: inference.model.Source of the model.
    pairs: their file, or another name that config.data.eval may have.
    to: new folder to write.
    reference: folder of a model with its own tokenizer, held as `source` says;
      margins are then of log-ratios.  None: of the model's log-probabilities.
    against: folder that an evaluation of another model was written to: the
      difference on the pairs of both is said, too.
    max_prompt: tokens; a longer prompt loses its start.  None: what the run
      trained with, or half of what the models take.
    max_response: the same of a response, which loses its end.
    beta: of the loss, for the calibration against a reference.  None: that of
      the run, if it is per nat of a log-ratio; see `log_odds_beta`.

  Returns:
    The table, on every process.

  Raises:
    InputError: something that was given is wrong; nothing is written then.
  """
  # Of several processes all score, and the first one writes.
  is_first = processes.is_first()
  with files.new_folder(to) if is_first else contextlib.nullcontext() as folder:
    models = _models(source, reference)
    beta = _beta(models["model"].run, beta) if reference else None
    margin = _margin(models, _limits(models, max_prompt, max_response))
    other = against and read_records(against, margin)
    found = rows_source.load(pairs, conversations=models["model"].conversations)
    table, encoded = _encoded(models, found, pairs, margin)
    if other:
      refuse_unshared(against, table, found, other)
    scores = _scores(models, table, encoded)

    def written():
      records = [*records_of(table, found, scores)]
      results = {
        "model": models["model"].name,
        "reference": models["reference"].name if reference else None,
        "data": str(pairs),
        **margin,
        "beta": beta,
        **_figures(table, records, beta),
      }
      if other:
        results["against"] = difference_to(against, records, other)
      files.write_lines(folder / PAIRS, records)
      files.write_json(folder / RESULTS, results, sort_keys=False)
      return text(results)

    said = processes.first(written)
  logger.info(f"{to} holds {RESULTS} and {PAIRS}")
  return said


# Models and pairs.


def _models(source, reference):
  """{"model": its InferenceModel, and "reference" where there is one}."""
  found = {"model": find_model(source)}
  if reference:
    found["reference"] = find_model(
      source._replace(model=reference, workdir="", step="", template="")
    )
  for one in found.values():
    with blames(f"--mesh: {one.name}"):
      partition = one.forward.get("partition", WHOLE)
      kernels.check_heads("auto", one.config, partition)
  return found


def _margin(models, limits):
  """What margins of two models have to share, as results.json says it."""
  identity = None
  if "reference" in models:
    whole = models["reference"].identity
    identity = {
      name: whole[name] for name in ("model", "tokenizer", "quantize")
    }
  return {"reference_identity": identity, **limits}


def _limits(models, max_prompt, max_response):
  """Tokens of a prompt and of a response that are kept."""
  most = min(
    one.config.longest or one.config.max_positions for one in models.values()
  )
  prompt, response = most - most // 2, most // 2
  if run := models["model"].run:
    prompt, response = run.data.max_prompt, run.data.max_response
  limits = dict(
    max_prompt=max_prompt or prompt, max_response=max_response or response
  )
  if sum(limits.values()) > most:
    raise InputError(
      f"prompts of {limits['max_prompt']} tokens and responses of "
      f"{limits['max_response']} are more than the {most} that the models take"
    )
  return limits


def _beta(run, beta):
  """The beta that is given, or of the run; None where there is none.

  See `log_odds_beta`.
  """
  if beta is None and run:
    return log_odds_beta(run)
  return beta


def _encoded(models, pairs, origin, margin):
  """(table.Table, {name of a model: its list of Encoded})."""
  limits = {name: margin[name] for name in LIMITS}
  marks = {name: one.identity["tokenizer"] for name, one in models.items()}
  distinct = list(dict.fromkeys(marks.values()))
  first = [list(marks.values()).index(mark) for mark in distinct]
  tokenizers = Views(
    [list(models.values())[place].tokenizer for place in first],
    [[n for n, mark in marks.items() if mark == one] for one in distinct],
  )
  table = encode_table(
    "pairs",
    pairs,
    tokenizers,
    origin=origin,
    row_length=limits["max_prompt"] + 2 * limits["max_response"],
    **limits,
  )
  sandbox.close()
  encoded = {
    name: table.views[distinct.index(mark)] for name, mark in marks.items()
  }
  for name, one in models.items():
    _check_ids(one, table, encoded[name])
  return table, encoded


def _check_ids(model, table, encoded):
  size = model.config.vocab_size
  for place, pair in zip(table.places, encoded, strict=True):
    largest = max(*pair.prompt_ids, *pair.chosen_ids, *pair.rejected_ids)
    if largest >= size:
      token = model.tokenizer.convert_ids_to_tokens(largest)
      raise InputError(
        f"pair {place} has the token {token!r}, id {largest}; {model.name} has "
        f"only {size}"
      )


# Scores.


def _scores(models, table, encoded):
  """{name of a model: {fingerprint: what `_scored` gives}}."""
  longest = max(pack.size(pair) for view in table.views for pair in view)
  found, dtypes = {}, {}
  for name, one in models.items():
    params = one.load()
    dtypes[name] = jnp.dtype(one.forward.get("dtype") or params["norm"].dtype)
    _warn_of_dtypes(dtypes)
    found[name] = _scored(name, one, params, table, encoded[name], longest)
    del params  # one model is in memory at a time
  return found


def _warn_of_dtypes(dtypes):
  """A folder's model and a run's are each as they are, unless --dtype is given.

  Args:
    dtypes: {name of a model: what it computes in}.
  """
  if len({*dtypes.values()}) > 1:
    logger.warning(
      f"warning: the model computes in {dtypes['model']}, the reference in "
      f"{dtypes['reference']}: margins have the rounding of the coarser one; "
      "--dtype gives both the same"
    )


def _scored(name, model, params, table, encoded, longest):
  """{fingerprint: (log-probabilities, tokens) of both responses}."""
  partition = model.forward.get("partition")
  mesh = partition.mesh if partition else None
  packing = _packing(mesh, longest)
  computation = Computation(**model.forward)
  kept = MemoryStore()
  score.score(
    kept,
    table.fingerprints,
    encoded,
    _step(model.config, packing.batch, computation),
    params,
    packing=packing,
    place=functools.partial(_placed, mesh),
    title=f"scoring under the {name}:",
  )
  return kept.scores


@functools.lru_cache(maxsize=2)
def _step(config, pairs, computation):
  """The scoring step; models that are alike are one program."""
  return score.compile_figures(config, pairs, False, computation)


def _packing(mesh, longest):
  """Rows as long as the longest pair, and as many as TOKENS allow."""
  unit = LANES * (mesh.shape["context"] if mesh else 1)
  length = -(-longest // unit) * unit
  shards = parallel.row_shards(mesh) if mesh else 1
  share, shares = parallel.row_share(mesh) if mesh else (0, 1)
  return Packing(
    batch=-(-BATCH // shares) * shares,
    length=length,
    rows=max(TOKENS // length // shards, 1) * shards,
    process=share,
    processes=shares,
    few_pairs=True,  # of which few are much shorter than the longest
  )


def _placed(mesh, views):
  if mesh is None:
    return jax.device_put(views)
  return [parallel.global_rows(view, mesh) for view in views]


# Figures.


def _figures(table, records, beta):
  found = figures_of.pair_figures(
    margins(records),
    margins(records, length_normalised=True),
    [one["tokens"] for one in records],
    [one["prompt"] for one in records],
    beta=beta,
  )
  return {"dropped": table.dropped, "truncated": table.truncated, **found}
