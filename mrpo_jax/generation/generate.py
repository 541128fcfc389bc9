# SPDX-License-Identifier: Apache-2.0
"""Text generation: continuous batching with a key-value cache.

A fixed number of slots decodes a block of tokens at a time; between blocks a
slot that has ended takes the next prompt.  Prompts are read in packed rows,
ahead of their slots.
"""

import collections
import dataclasses
import itertools

import jax
import numpy as np

from mrpo_jax.errors import StoppedRun
from mrpo_jax.generation import prompts as packed
from mrpo_jax.generation.cache import Requests
from mrpo_jax.generation.decoder import Decoder, no_slots
from mrpo_jax.generation.sampling import Sampling
from mrpo_jax.models.attention.layout import RowLayout

SLOTS = 64
DEFAULT = Sampling()


@dataclasses.dataclass(frozen=True)
class Sample:
  """What a model said after a prompt."""

  ids: list[int]  # the token that ended it included
  logp: list[float]  # of each token under the model, nats
  behaviour_logp: list[float]  # of each under what it was drawn from
  finish: str  # "stop", or "length" where it had to end
  # Is each token the model's likeliest?
  is_greedy: list[bool] = dataclasses.field(default_factory=list)


def generate(
  config,
  params,
  prompts,
  *,
  sampling=DEFAULT,
  seed=0,
  stop_ids=(),
  slots=None,
  **forward,
):
  """Samples of a model after each prompt.

  Args:
    config: ModelConfig.
    params: its parameters.
    prompts: lists of token ids.
    sampling: Sampling.
    seed: of all samples; with the number of a prompt, of the sample and of
      the token it decides what is drawn.
    stop_ids: tokens that end a sample.
    slots: samples that are decoded side by side; None chooses.
    **forward: see `Decoder`.

  Returns:
    For each prompt a list of `sampling.samples` Samples.

  Raises:
    ValueError: a prompt is empty, or longer than the model allows.
  """
  if not prompts:
    return []
  found = [[None] * sampling.samples for _ in prompts]
  many = len(prompts) * sampling.samples
  slots = max(1, min(many, SLOTS if slots is None else slots))
  longest = max(map(len, prompts))
  decoder = Decoder(
    config,
    params,
    sampling=sampling,
    stop_ids=stop_ids,
    slots=slots,
    longest=longest,
    **forward,
  )
  requests = [
    (prompt, sample)
    for prompt in range(len(prompts))
    for sample in range(sampling.samples)
  ]
  for (prompt, sample), one in samples(decoder, prompts, requests, seed):
    found[prompt][sample] = one
  return found


def samples(decoder, prompts, requests, seed, ended=None):
  """Yields ((prompt, sample), Sample) of each request, as they end.

  Args:
    decoder: Decoder.
    prompts: lists of token ids.
    requests: of (number of a prompt, number of a sample), in the order in which
      they start; those of one prompt side by side.
    seed: see `generate`.
    ended: (request, ids so far) -> how many of them are kept, once the text
      has ended; else None.  None asks for no text.

  Raises:
    ValueError: a prompt is empty, or longer than the decoder's.
    StoppedRun: a log-probability is not finite.
  """
  _check(decoder, prompts)
  decoder.start(seed)
  queue = _Queue(decoder, prompts, requests)
  slots, said = no_slots(decoder.slots), {}
  while True:
    for slot, request in queue.fill(slots):
      said[slot] = request, ([], [], [], [])
    if not said:
      return
    before_B = slots.made
    slots, new = decoder.decode(slots)
    for slot, (request, figures) in list(said.items()):
      count = slots.made[slot] - before_B[slot]
      _refuse_not_finite(request[0], new.logp[slot, :count])
      for all_of_them, more in zip(figures, jax.tree.leaves(new), strict=True):
        all_of_them += more[slot, :count].tolist()
      cut = ended(request, figures[0]) if ended else None
      if cut is not None or not slots.active[slot]:
        slots.active[slot] = False
        del said[slot]
        yield request, _sample(figures, cut, decoder.stop_ids)


def _check(decoder, prompts):
  V = decoder.config.vocab_size
  for number, prompt in enumerate(prompts):
    if not len(prompt):
      raise ValueError(f"prompt {number} is empty")
    if not all(0 <= token < V for token in prompt):
      wrong = next(token for token in prompt if not 0 <= token < V)
      raise ValueError(
        f"prompt {number} has the token {wrong}; the model knows {V} tokens"
      )
    if len(prompt) > decoder.longest:
      raise ValueError(
        f"prompt {number} has {len(prompt)} tokens, more than the longest "
        f"that was announced, {decoder.longest}"
      )


def _refuse_not_finite(prompt, logp_T):
  if not np.isfinite(logp_T).all():
    raise StoppedRun(
      f"after prompt {prompt} (from 0) a log-probability is not finite; in "
      "float16 a model may need --dtype=bfloat16 or float32"
    )


def _sample(figures, cut, stop_ids):
  is_stop = cut is not None or figures[0][-1] in stop_ids
  ids, logp, behaviour_logp, is_greedy = (one[:cut] for one in figures)
  finish = "stop" if is_stop else "length"
  return Sample(ids, logp, behaviour_logp, finish, is_greedy)


class _Queue:
  """Requests that wait for a slot, their prompts read ahead."""

  def __init__(self, decoder, prompts, requests):
    self._decoder, self._prompts = decoder, prompts
    self._coming = iter(requests)
    self._pending = collections.deque()
    self._read = collections.deque()  # (request, row, places in it)

  def fill(self, slots):
    """[(slot, request)]: what went into the slots that were free."""
    free = collections.deque(np.flatnonzero(~slots.active))
    filled = []
    while free:
      if not self._read and not self._read_more():
        break
      taken = []
      while free and self._read:
        taken.append((free.popleft(), *self._read.popleft()))
      self._take(slots, taken)
      filled += [(slot, request) for slot, request, *_ in taken]
    return filled

  def _take(self, slots, taken):
    """Moves prompts that were read into slots: (slot, request, row, places)."""
    decoder, N = self._decoder, self._decoder.slots
    row_N, slot_N, length_N = np.zeros((3, N), np.int32)
    source_NT = np.zeros((N, decoder.row), np.int32)
    seen_NV = None
    if decoder.sampling.penalises:
      seen_NV = np.zeros((N, decoder.config.vocab_size), bool)
    for i, (slot, request, row, source) in enumerate(taken):
      ids = self._prompts[request[0]]
      row_N[i], slot_N[i], length_N[i] = row, slot, len(source)
      source_NT[i, : len(source)] = source
      if seen_NV is not None:
        seen_NV[i, ids] = True
      slots.token[slot], slots.position[slot] = ids[-1], len(ids) - 1
      slots.made[slot], slots.active[slot] = 0, True
      slots.request[slot] = request
    count = np.int32(len(taken))
    decoder.take(Requests(count, slot_N, row_N, source_NT, length_N), seen_NV)

  def _read_more(self):
    """Reads the next prompts, as many as the rows hold; were there any?"""
    decoder, places = self._decoder, {}
    # Each has a token at least; of one that is sampled often a part.
    most = decoder.rows * decoder.row + decoder.slots
    more = itertools.islice(self._coming, most - len(self._pending))
    self._pending.extend(more)
    numbers = list(dict.fromkeys(number for number, _ in self._pending))
    if not numbers:
      return False
    rows = []
    for r in range(decoder.rows):
      heads = (list(self._prompts[n][:-1]) for n in numbers)
      row, count = packed.take(heads, decoder.row)
      for number, source in zip(numbers[:count], row.sources, strict=True):
        places[number] = r, source
      rows.append(row)
      numbers = numbers[count:]
    used = max(int(np.count_nonzero(row.segments_T)) for row in rows)
    size = decoder.row_of(used)
    layout = [
      np.stack([getattr(row, name)[:size] for row in rows])
      for name in ("tokens_T", "positions_T", "segments_T", "branches_T")
    ]
    decoder.read(layout[0], RowLayout(*layout[1:]))
    while self._pending and self._pending[0][0] in places:
      request = self._pending.popleft()
      self._read.append((request, *places[request[0]]))
    return True
