# SPDX-License-Identifier: Apache-2.0
"""Text generation: continuous batching with a key-value cache.

A fixed number of slots decodes a block of tokens at a time; between blocks a
slot that has ended takes the next prompt.  Prompts are read in packed rows,
ahead of their slots.
"""

import collections
import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mrpo_jax.generation import cache as caches
from mrpo_jax.generation import prompts as rows
from mrpo_jax.generation.sampling import Sampling, draw
from mrpo_jax.models import transformer
from mrpo_jax.models.attention import kernels
from mrpo_jax.models.attention.layout import RowLayout, capped
from mrpo_jax.models.partition import WHOLE
from mrpo_jax.models.weights import dense

BLOCK = 16  # tokens that slots decode between two looks at them
SLOTS = 64
ROW = 1024  # tokens of prompts that are read at once
DEFAULT = Sampling()
ROUND = 128  # sizes are multiples of it, so that few programs are compiled


@dataclasses.dataclass(frozen=True)
class Sample:
  """What a model said after a prompt."""

  ids: list[int]  # the token that ended it included
  logp: list[float]  # of each token under the model, nats
  behaviour_logp: list[float]  # of each under what it was drawn from
  finish: str  # "stop", or "length" where it had to end


@flax.struct.dataclass
class Slots:
  """What each of B slots goes on from; small arrays, beside the cache."""

  token: jax.Array  # the newest token, whose successor comes next
  position: jax.Array  # of that token
  made: jax.Array  # tokens since the prompt
  active: jax.Array
  request: jax.Array  # B2: numbers of the prompt and of the sample


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
  for (prompt, sample), one in decoder.run(prompts, requests, seed):
    found[prompt][sample] = one
  return found


class Decoder:
  """The programs of a model that generates, compiled once for all prompts."""

  def __init__(
    self,
    config,
    params,
    *,
    sampling,
    stop_ids,
    slots,
    longest,
    kernel="auto",
    dtype=None,
    cache_dtype=None,
    partition=WHOLE,
    block=BLOCK,
  ):
    """Compiles nothing yet.

    Args:
      config, params, sampling, stop_ids, slots: see `generate`.
      longest: tokens of the longest prompt that it will be given.
      kernel: of the prompts' attention, see `transformer.hidden`.
      dtype: of the activations; None is that of the parameters.
      cache_dtype: of keys and values; None is that of the activations.
      partition: Partition of the activations over a mesh.
      block: tokens that are decoded at once.
    """
    self.config, self.params = config, params
    self.sampling, self.stop_ids = sampling, tuple(stop_ids)
    self.slots, self.block = slots, block
    self._forward = dict(dtype=dtype, partition=partition)
    dtype = jnp.dtype(dtype or params["norm"].dtype)
    self._dtype = jnp.dtype(cache_dtype or dtype)
    self.length = _rounded(longest + sampling.max_new_tokens)
    if config.longest is not None and self.length > config.longest:
      self.length = longest + sampling.max_new_tokens
      if self.length > config.longest:
        raise ValueError(
          f"a prompt of {longest} tokens and {sampling.max_new_tokens} new "
          f"ones: more than the {config.longest} that this {config.family} "
          "allows"
        )
    self.row = _rounded(max(longest - 1, 1))
    self._kernel = kernels.choose(kernel, config, dtype, partition)
    self._prefill = jax.jit(self._prefill, donate_argnums=1)
    self._insert = jax.jit(self._insert, donate_argnums=0)
    self._decode = jax.jit(self._decode, donate_argnums=(1, 2))

  # Programs.

  def _prefill(self, params, staged, tokens_1T, layout):
    refs = jax.tree.map(jax.new_ref, staged)
    of_layer = caches.keeping(self._kernel, refs)
    transformer.hidden(
      self.config, params, tokens_1T, layout, kernel=of_layer, **self._forward
    )
    return jax.tree.map(jax.freeze, refs)

  def _insert(self, cache, staged, source_T, count, slot):
    return caches.insert(
      self.config, self.length, cache, staged, 0, source_T, count, slot
    )

  def _decode(self, params, cache, seen_BV, slots, seed):
    """(cache, seen_BV, Slots, what each slot said) after a block of tokens."""
    sampling, B = self.sampling, self.slots
    refs = jax.tree.map(jax.new_ref, cache)
    of_layer = caches.decoding(self.config, self.length, refs)
    stops = np.array(self.stop_ids, np.int32)
    key = jax.random.key(seed)

    def step(i, carry):
      slots, seen_BV, said = carry
      layout = RowLayout(
        slots.position[:, None],
        jnp.ones((B, 1), jnp.int32),
        jnp.zeros((B, 1), jnp.int32),
      )
      hidden_B1D = transformer.hidden(
        self.config,
        params,
        slots.token[:, None],
        layout,
        kernel=of_layer,
        **self._forward,
      )
      logits_BV = _logits(self.config, params, hidden_B1D[:, 0])
      uniform_B = jax.vmap(functools.partial(_uniform, key))(
        slots.request, slots.made
      )
      banned_BV = None
      if sampling.min_new_tokens and len(stops):
        is_stop_V = jnp.zeros(logits_BV.shape[1], bool).at[stops].set(True)
        early_B = slots.made < sampling.min_new_tokens
        banned_BV = early_B[:, None] & is_stop_V
      drawn = draw(
        sampling, logits_BV, uniform_B, seen_BV=seen_BV, banned_BV=banned_BV
      )
      token_B = drawn[0]
      if seen_BV is not None:
        seen_BV = seen_BV.at[jnp.arange(B), token_B].set(True)
      said = [
        jax.lax.dynamic_update_index_in_dim(
          one, value.astype(one.dtype), i, axis=1
        )
        for one, value in zip(said, drawn, strict=True)
      ]
      made_B = slots.made + slots.active
      ends_B = made_B >= sampling.max_new_tokens
      if len(stops):
        ends_B |= (token_B[:, None] == stops[None]).any(1)
      return (
        Slots(
          token=jnp.where(slots.active, token_B, slots.token),
          position=slots.position + slots.active,
          made=made_B,
          active=slots.active & ~ends_B,
          request=slots.request,
        ),
        seen_BV,
        said,
      )

    shape = (B, self.block)
    said = [
      jnp.zeros(shape, kind) for kind in ("int32", "float32", "float32", "bool")
    ]
    slots, seen_BV, said = jax.lax.fori_loop(
      0, self.block, step, (slots, seen_BV, said)
    )
    return jax.tree.map(jax.freeze, refs), seen_BV, slots, said

  def compiled(self):
    """The program of a block of tokens, compiled for its arguments."""
    cache, seen_BV, slots = jax.eval_shape(self._empty)
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    return self._decode.lower(
      self.params, cache, seen_BV, slots, seed
    ).compile()

  def _empty(self):
    """(cache, seen_BV, Slots) before the first prompt."""
    B, seen_BV = self.slots, None
    if self.sampling.penalises:
      seen_BV = jnp.zeros((B, self.config.vocab_size), bool)
    cache = caches.empty(self.config, B, self.length, self._dtype)
    zero_B = jnp.zeros(B, jnp.int32)
    slots = Slots(
      zero_B, zero_B, zero_B, zero_B > 0, jnp.zeros((B, 2), jnp.int32)
    )
    return cache, seen_BV, slots

  def _check(self, prompts):
    V = self.config.vocab_size
    for number, prompt in enumerate(prompts):
      if not len(prompt):
        raise ValueError(f"prompt {number} is empty; it needs a token at least")
      if not 0 <= min(prompt) <= max(prompt) < V:
        wrong = next(token for token in prompt if not 0 <= token < V)
        raise ValueError(
          f"prompt {number} has the token {wrong}; the model knows {V} tokens"
        )
      if len(prompt) - 1 > self.row:
        raise ValueError(
          f"prompt {number} has {len(prompt)} tokens, more than the longest "
          f"that was announced, {self.row + 1}"
        )

  # The loop on the host.

  def run(self, prompts, requests, seed, ended=None):
    """Yields ((prompt, sample), Sample) of each request, as they end.

    Args:
      prompts: lists of token ids.
      requests: (number of a prompt, number of a sample), in the order in which
        they start; those of one prompt side by side.
      seed: see `generate`.
      ended: ids -> how many of them are kept, once the text has ended; else
        None.  None asks for no text.
    """
    self._check(prompts)
    B, config = self.slots, self.config
    kept = config.layers, 1, self.row, config.kv_heads, config.head_dim
    staged = caches.KeysValues(*jnp.zeros((2, *kept), self._dtype))
    cache, seen_BV, slots = self._empty()
    slots = jax.tree.map(np.array, slots)
    pending, waiting = collections.deque(requests), collections.deque()
    said, owner = [None] * B, [None] * B
    while True:
      for slot in np.flatnonzero(~slots.active):
        if not waiting and pending:
          staged, found = self._stage(prompts, pending, staged)
          waiting.extend(found)
        if not waiting:
          break
        request, source = waiting.popleft()
        ids = prompts[request[0]]
        source_T = np.zeros(self.row, np.int32)
        source_T[: len(source)] = source
        cache = self._insert(
          cache, staged, source_T, np.int32(len(source)), np.int32(slot)
        )
        if seen_BV is not None:
          mask_V = np.zeros(config.vocab_size, bool)
          mask_V[ids] = True
          seen_BV = seen_BV.at[slot].set(mask_V)
        slots.token[slot], slots.position[slot] = ids[-1], len(ids) - 1
        slots.made[slot], slots.active[slot] = 0, True
        slots.request[slot] = request
        said[slot], owner[slot] = ([], [], []), request
      if not slots.active.any():
        return
      before_B = slots.made.copy()
      cache, seen_BV, slots, new = self._decode(
        self.params, cache, seen_BV, slots, np.uint32(seed)
      )
      slots = jax.tree.map(np.array, slots)
      new = [np.asarray(one) for one in new[:3]]
      for slot in range(B):
        count = slots.made[slot] - before_B[slot]
        if owner[slot] is None or not count:
          continue
        for kept_one, more in zip(said[slot], new, strict=True):
          kept_one += more[slot, :count].tolist()
        cut = ended(said[slot][0]) if ended else None
        if cut is not None or not slots.active[slot]:
          slots.active[slot] = False
          yield owner[slot], self._sample(said[slot], cut)
          owner[slot] = None

  def _stage(self, prompts, pending, staged):
    """(staged, [(request, where its tokens stand)]) of the next prompts."""
    numbers = list(dict.fromkeys(number for number, _ in pending))
    heads = [list(prompts[number][:-1]) for number in numbers[: self.row]]
    row, count = rows.take(heads, self.row)
    layout = RowLayout(row.positions_T, row.segments_T, row.branches_T)
    layout = jax.tree.map(lambda array_T: array_T[None], layout)
    staged = self._prefill(self.params, staged, row.tokens_T[None], layout)
    source_of = dict(zip(numbers[:count], row.sources, strict=True))
    found = []
    while pending and pending[0][0] in source_of:
      request = pending.popleft()
      found.append((request, source_of[request[0]]))
    return staged, found

  def _sample(self, said, cut):
    ids, *logps = said
    if cut is not None:
      return Sample(ids[:cut], *(one[:cut] for one in logps), "stop")
    finish = "stop" if ids[-1] in self.stop_ids else "length"
    return Sample(ids, *logps, finish)


def _logits(config, params, hidden_BD):
  head_VD = dense(transformer.head(params), hidden_BD.dtype)
  wide = jnp.promote_types(hidden_BD.dtype, jnp.float32)
  logits_BV = jnp.einsum(
    "BD,VD->BV", hidden_BD, head_VD, preferred_element_type=wide
  )
  return capped(logits_BV, config.logits_softcap)


def _uniform(key, request_2, made):
  """The random number of one token, whatever stands beside it."""
  for number in (request_2[0], request_2[1], made):
    key = jax.random.fold_in(key, number)
  return jax.random.uniform(key)


def _rounded(size):
  return -(-size // ROUND) * ROUND
