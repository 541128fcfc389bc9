# SPDX-License-Identifier: Apache-2.0
"""Log-likelihoods of continuations after contexts, on packed rows of trees."""

import collections
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mrpo_jax.errors import InputError, StoppedRun, blames
from mrpo_jax.evaluation import trees
from mrpo_jax.models import packed
from mrpo_jax.models.attention import kernels
from mrpo_jax.models.partition import WHOLE
from mrpo_jax.progress import Progress

logger = logging.getLogger(__name__)

ROW = 4096  # tokens of a full row
LEAST = 256  # of the shortest
SHORTER = 4  # so many times shorter is the next one, for what is left
AHEAD = 2  # batches of rows that devices have before one is read


class Scorer:
  """The programs that score continuations, compiled once for each row length.

  Parameters are given with the requests: others of the same shapes compile
  nothing anew.

  Attributes:
    longest: tokens that a model looks at, at most.
  """

  def __init__(
    self,
    config,
    *,
    longest=None,
    row=ROW,
    kernel="auto",
    dtype=None,
    partition=WHOLE,
  ):
    """Compiles nothing yet.

    Args:
      config: ModelConfig.
      longest: tokens of a request that are looked at, at most; None is what
        the model allows.
      row: tokens of a full row.
      kernel: of the attention, see `transformer.hidden`.
      dtype: of the activations; None is that of the parameters.
      partition: Partition of the activations over a mesh.

    Raises:
      InputError: the model does not allow so many tokens, or devices that
        share rows cannot share its heads.
    """
    with blames(f"scores of this {config.family}"):
      kernels.check_heads(kernel, config, partition)
    self.config, self.row = config, row
    bound = config.longest or config.max_positions
    if longest is not None and not 0 < longest <= bound:
      raise InputError(
        f"{longest} tokens: this {config.family} takes 1 to {bound}"
      )
    self.longest = longest or bound
    self._rows = partition.size(partition.rows)
    self._shares = partition.size(partition.context)  # of a row's tokens
    self._figures = jax.jit(
      functools.partial(_figures, config, kernel, dtype, partition)
    )

  def scores(self, params, requests, title="scoring"):
    """Log-likelihoods of requests, in their order.

    What requests begin with in common is computed once.

    Args:
      params: of the model.
      requests: (context, continuation), lists of token ids, none empty; where
        a request is too long, the start of its context is cut off.
      title: what to call the work while it goes on.

    Returns:
      list of (logp, is_greedy): the sum over the continuation's tokens in nats,
      each float32; is every one of them the likeliest, of equal ones the first?

    Raises:
      InputError: a continuation longer than the model allows, an empty part,
        or a token that the model does not have.
    """
    numbers = collections.defaultdict(list)
    for number, request in enumerate(self._fitting(requests)):
      numbers[request].append(number)
    found, distinct = [None] * len(requests), list(numbers)
    for number, one in self._scored(params, distinct, title):
      for place in numbers[distinct[number]]:
        found[place] = one
    return found

  def _fitting(self, requests):
    """The requests as tuples, cut to what the model can look at."""
    cut = most = 0
    for context, continuation in requests:
      _check(self.config, self.longest, context, continuation)
      over = len(context) + len(continuation) - 1 - self.longest
      if over > 0:
        cut, most = cut + 1, max(most, over)
      yield tuple(context[max(over, 0) :]), tuple(continuation)
    if cut:
      logger.warning(
        f"warning: of {cut} of {len(requests)} requests the start is cut off, "
        f"up to {most} tokens: the model looks at {self.longest}"
      )

  def _scored(self, params, requests, title):
    """Yields (number of a request, (logp, is_greedy)) of distinct ones."""
    rows = trees.rows_of(requests, self.row)
    waiting, tokens = collections.deque(), 0
    with Progress(title, len(requests), "requests") as progress:

      def read():
        figures, scored = waiting.popleft()
        yield from _read(figures, scored)
        speed = f"{progress.per_second(tokens):,.0f} tokens/s"
        progress.update(sum(map(len, scored)), [speed])

      for batch, scored, more in self._batches(rows):
        waiting.append((self._figures(params, batch), scored))
        tokens += more
        if len(waiting) == AHEAD:
          yield from read()
      while waiting:
        yield from read()
      speed = progress.per_second(tokens)
    logger.info(
      f"{title}: {len(requests)} distinct requests in {tokens:,} tokens, "
      f"{speed:,.0f} a second"
    )

  def _batches(self, rows):
    """Yields (Rows, who is scored in each, tokens) of as many as fit a mesh."""
    by_length = collections.defaultdict(list)
    for row in rows:
      by_length[row_length(trees.size_of(row), self.row)].append(row)
    for length, some in by_length.items():
      for first in range(0, len(some), self._rows):
        batch = some[first : first + self._rows]
        tokens = sum(tree.tokens for row in batch for tree in row)
        batch += [[]] * (self._rows - len(batch))
        whole = -(-length // self._shares) * self._shares
        yield *trees.packed(batch, whole), tokens


def _check(config, longest, context, continuation):
  if not len(context) or not len(continuation):
    raise InputError(
      "a request has an empty context or continuation; give each a token"
    )
  if len(continuation) > longest:
    raise InputError(
      f"a continuation has {len(continuation)} tokens, and the model looks at "
      f"{longest}; shorten it"
    )
  most = max(max(context), max(continuation))
  if most >= config.vocab_size:
    raise InputError(
      f"a request has the token {most}, and the model only "
      f"{config.vocab_size}; give the tokenizer that it was made for"
    )


def row_length(used, row):
  """Tokens of the row that holds as many: few lengths, a program for each."""
  length = row
  while length // SHORTER >= max(used, LEAST):
    length //= SHORTER
  while length < used:  # by one leaf, see `trees.rows_of`
    length *= 2
  return length


def _figures(config, kernel, dtype, partition, params, rows):
  """(logp_RM, is_greedy_RM) of what is scored in Rows, the same everywhere."""
  like = jnp.dtype(dtype or params["norm"].dtype)
  kernel = kernels.of_siblings(kernel, config, like, partition)
  computation = packed.Computation(kernel, dtype=dtype, partition=partition)
  # Whose slot is 0 counts, as one response of one pair.
  found = packed.token_figures(
    config, params, rows, 1, computation, also=("is_greedy",)
  )
  found = found["logp"], found["is_greedy"]
  if partition.mesh is None:
    return found
  everywhere = NamedSharding(partition.mesh, PartitionSpec())
  return jax.lax.with_sharding_constraint(found, everywhere)


def _read(figures, scored):
  logp_RM, is_greedy_RM = map(np.asarray, figures)
  for r, row in enumerate(scored):
    for number, here in row:
      logp = logp_RM[r, here].sum(dtype=np.float64)
      if not np.isfinite(logp):
        # The harness would take the first of choices that are no numbers.
        raise StoppedRun(
          f"the model's log-likelihood of a request is {logp}, no finite "
          "number: its weights or activations overflow; nothing is judged"
        )
      yield number, (float(logp), bool(is_greedy_RM[r, here].all()))
