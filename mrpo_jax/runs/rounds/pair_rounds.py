# SPDX-License-Identifier: Apache-2.0
"""Rounds of pairs: the best and the worst response, by any loss of pairs."""

import logging
import math

import numpy as np

from mrpo_jax import parallel, processes
from mrpo_jax.data.chat.sandbox import sandbox
from mrpo_jax.data.encode import Encoded, encode_all
from mrpo_jax.data.pack import size
from mrpo_jax.online.pairs import Pair, figures
from mrpo_jax.references.score import compile_figures, known_of
from mrpo_jax.training.stacked import member
from mrpo_jax.training.train_state import moved_references

logger = logging.getLogger(__name__)


class PairRounds:
  """What a round is made of where preference pairs are trained on."""

  entry = Pair

  def __init__(self, setup):
    """Args: setup.Setup."""
    self._setup = setup
    self._compare = self._comparison()

  def make(self, program, number, state, answered):
    """(pairs, figures) of a round."""
    kl = self._divergence(program, state, answered)
    # Last: whatever fails before it has paid for no label.
    pairs, about = self._setup.labels(answered, number, state.online)
    if not pairs:
      logger.warning(
        f"warning: in round {number} the rewards of all {len(answered)} pairs "
        "tie: its steps follow what the optimizer remembers alone"
      )
    return pairs, about | figures(answered) | kl

  def learned(self, pairs, number, about, online):
    """(state of the rounds, further figures) after a round's pairs."""
    return self._setup.labels.learned(pairs, number, about, online)

  def data(self, pairs):
    """(views, what is known, how many are left) of a round's pairs."""
    views, kept = self._views(pairs)
    K = len(self._setup.objective.references)
    known = known_of([one.characters for one in views[0]], {}, K)
    return views, known, kept

  # Divergence from reference 0.

  def _comparison(self):
    """The program of reference 0's log-probabilities; None without one."""
    setup = self._setup
    base = next(iter(setup.objective.references), None)
    if base is None:
      return None
    if base.view:
      logger.info(
        f"reference {setup.objective.names[0]!r} has another tokenizer, so the "
        "log has no kl: that is of one vocabulary"
      )
      return None
    packing = setup.packing
    return compile_figures(base.config, packing.batch, False, base.computation)

  def _divergence(self, program, state, answered):
    """{"kl": nats a response} of the policy that sampled from reference 0.

    The mean of log p(response) / r(response) over the policy's own samples, an
    unbiased estimate at temperature 1 with nothing cut; every sample counts,
    whatever pairs are made of them.
    """
    if self._compare is None:
      return {}
    base, references = program.frozen
    params = member(moved_references(state, base, references), 0)
    encoded = [
      Encoded(one.ids, first.ids, second.ids if second else [])
      for one in answered
      for first, second in _by_two(one.responses)
    ]
    packing, total = self._setup.packing, 0.0
    for first in range(0, len(encoded), packing.batch):
      some = np.arange(first, min(first + packing.batch, len(encoded)))
      (view,) = packing.of([encoded], some)
      rows = parallel.global_rows(view, self._setup.mesh)
      found = processes.whole(self._compare(params, rows))
      total += float(np.sum(found["logp"][: len(some)], dtype=np.float64))
    said = [math.fsum(one.logp) for some in answered for one in some.responses]
    return {"kl": (math.fsum(said) - total) / len(said)}

  # Batches.

  def _views(self, pairs):
    """(Encoded of each pair under every tokenizer, how many pairs are left).

    The policy and those of its tokenizer read the very ids that were sampled,
    others the texts.
    """
    setup, data = self._setup, self._setup.config.data
    views = [[one.encoded() for one in pairs]]
    texts, cuts = [one.texts() for one in pairs], [one.cut() for one in pairs]
    # Nothing is truncated: what is too long for a row is left out.
    limits = dict(max_prompt=data.row_length, max_response=data.row_length)
    for index in range(1, setup.objective.views):
      tokenizer = setup.tokenizers.views[index]
      views.append([*encode_all(tokenizer, texts, cuts=cuts, **limits)])
    sandbox.close()
    kept = [
      n
      for n, some in enumerate(zip(*views, strict=True))
      if not any(one.dropped or size(one) > data.row_length for one in some)
    ]
    return [[view[n] for n in kept] for view in views], len(kept)


def _by_two(responses):
  """(first, second) of neighbours; the last second is None of an odd number."""
  pairs = [responses[n : n + 2] for n in range(0, len(responses), 2)]
  return [(*some, None)[:2] for some in pairs]
