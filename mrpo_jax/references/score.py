# SPDX-License-Identifier: Apache-2.0
"""Scoring: one frozen reference over pairs, once, into its store."""

import functools
import time

import jax
import numpy as np

from mrpo_jax import processes
from mrpo_jax.data import pack
from mrpo_jax.data.batches import Known
from mrpo_jax.models import packed
from mrpo_jax.progress import Progress
from mrpo_jax.references.store import Scores


def known_of(characters, scores, K, weights=None, rewards=None, labels=None):
  """batches.Known of N pairs.

  Args:
    characters: N of (chosen, rejected).
    scores: {place among the K references: Scores of the N pairs}.
    K: how many references there are.
    weights: N of K weights of the references; None where pairs have none.
    rewards: N of (chosen, rejected), where the method reads them.
    labels: N of whether a single response is good; None of pairs.
  """
  arrays = {"character_BC": np.array(characters, np.float32).reshape(-1, 2)}
  if weights is not None:
    arrays["weight_BK"] = np.array(weights, np.float32).reshape(-1, K)
  if rewards is not None:
    arrays["aux_reward_BC"] = np.array(rewards, np.float32).reshape(-1, 2)
  if labels is not None:
    arrays["desirable_B"] = np.array(labels, bool)
  if not scores:
    return Known(arrays)
  shape = (len(characters), 2, K)
  logp_NCK = np.zeros(shape, np.float32)
  length_NCK = np.ones(shape, np.float32)
  for k, one in scores.items():
    logp_NCK[..., k], length_NCK[..., k] = one.logp_PC, one.token_PC
  arrays |= {"ref_logp_BCK": logp_NCK, "ref_length_BCK": length_NCK}
  if 0 in scores:
    arrays["entropy_BC"] = scores[0].entropy_PC
  token_logps = [
    scores[k].token_logps if k in scores else None for k in range(K)
  ]
  with_tokens = any(one is not None for one in token_logps)
  return Known(arrays, tuple(token_logps) if with_tokens else ())


SHARD = 4096  # pairs in a file of the store
SECONDS = 20.0  # after which a file is written, however few there are


def score(
  store,
  fingerprints,
  encoded,
  figures_of,
  params,
  *,
  packing,
  place,
  part=(0, 1),
  title="scoring",
):
  """Writes what the store does not hold of these pairs.

  A batch is a run of `packing.batch` neighbours, of which those are scored
  that are missing, packed together.  A shard holds whole batches: a run that
  was killed repeats the batches whose shard it had not written, pair for pair,
  and ends with the same bits.

  Args:
    store: `store.Store` of the reference.
    fingerprints: of every pair, in the order of the data.
    encoded: list of Encoded in the reference's tokens, aligned.
    figures_of: see `compile_figures`.
    params: its parameters.
    packing: batches.Packing.
    place: rows per view on the host -> the same on the mesh.
    part: (i, n) scores batches i, i + n, ... only: n processes that share a
      store divide the work.
    title: what to call the work while it goes on.

  Returns:
    How many pairs were scored.
  """
  known = known_to_all(store, fingerprints)
  batches = list(missing_batches(known, fingerprints, packing.batch, part))
  total, tokens, waiting = sum(map(len, batches)), 0, []
  written = time.monotonic()
  with Progress(title, total, "pairs") as progress:
    for missing in batches:
      rows = packing.of([encoded], np.array(missing))
      figures = processes.whole(figures_of(params, place(rows)[0]))
      waiting.append(_scores(missing, fingerprints, encoded, figures))
      tokens += sum(pack.size(encoded[i]) for i in missing)
      speed = f"{progress.per_second(tokens):,.0f} tokens/s"
      progress.update(len(missing), [speed])
      late = time.monotonic() - written > SECONDS
      if late or sum(len(names) for names, _ in waiting) >= SHARD:
        _write(store, waiting)
        waiting, written = [], time.monotonic()
  if waiting:
    _write(store, waiting)
  return total


def missing_batches(known, fingerprints, batch, part):
  """Yields which pairs of each batch the store lacks; one that recurs, once.

  Of the batches, runs of neighbours, those of `part` (i, n): i, i + n, ...
  """
  known = set(known)
  starts = range(0, len(fingerprints), batch)
  for first in starts[part[0] :: part[1]]:
    some = range(first, min(first + batch, len(fingerprints)))
    found = {fingerprints[i]: i for i in some}
    missing = [i for name, i in found.items() if name not in known]
    known.update(found)
    if missing:
      yield missing


def compile_figures(config, pairs, per_token, computation):
  """The jitted scoring step: f(params, parts of a view) -> dict."""
  return jax.jit(
    functools.partial(_figures, config, pairs, per_token, computation)
  )


def known_to_all(store, fingerprints):
  """The pairs that the store holds, as process 0 finds it."""
  known = store.known()
  known_N = np.array([name in known for name in fingerprints])
  known_N = processes.of_first(known_N)
  return {
    n for n, is_known in zip(fingerprints, known_N, strict=True) if is_known
  }


def _figures(config, pairs, per_token, computation, params, parts):
  """Sums per response of one batch; with tokens, what each one got."""
  tokens = [
    packed.all_token_figures(
      config, params, rows, pairs, computation, also=("entropy",)
    )
    for rows in parts
  ]
  figures = {
    name: sum(
      packed.per_response(part[name], rows.slots_RM, pairs)
      for part, rows in zip(tokens, parts, strict=True)
    )
    for name in ("logp", "entropy")
  }
  if per_token:
    figures["token_logp"] = [part["logp"] for part in tokens]
    figures["slots"] = [rows.slots_RM for rows in parts]
  return figures


def _scores(missing, fingerprints, encoded, figures):
  """(fingerprints, Scores) of one batch."""
  P = len(missing)
  token_logps = None
  if "token_logp" in figures:
    slots, logps = (
      np.concatenate([part.reshape(-1) for part in figures[name]])
      for name in ("slots", "token_logp")
    )
    token_logps = [
      tuple(logps[slots == 2 * n + choice] for choice in (0, 1))
      for n in range(P)
    ]
  pairs = [encoded[i] for i in missing]
  return [fingerprints[i] for i in missing], Scores(
    logp_PC=figures["logp"][:P],
    token_PC=np.array(
      [[len(p.chosen_ids), len(p.rejected_ids)] for p in pairs], np.int32
    ),
    character_PC=np.array([p.characters for p in pairs], np.int32),
    entropy_PC=figures["entropy"][:P],
    token_logps=token_logps,
  )


def _write(store, waiting):
  if not processes.is_first():
    return
  names, scores = zip(*waiting, strict=True)
  token_logps = None
  if scores[0].token_logps is not None:
    token_logps = [pair for one in scores for pair in one.token_logps]
  arrays = {
    name: np.concatenate([getattr(one, name) for one in scores])
    for name in ("logp_PC", "token_PC", "character_PC", "entropy_PC")
  }
  store.write(
    [name for some in names for name in some],
    Scores(**arrays, token_logps=token_logps),
  )
