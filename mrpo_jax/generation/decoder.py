# SPDX-License-Identifier: Apache-2.0
"""Decoder: the programs of a model that generates, compiled once each."""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mrpo_jax.generation import attention
from mrpo_jax.generation import cache as caches
from mrpo_jax.generation.sampling import draw
from mrpo_jax.models import transformer
from mrpo_jax.models.attention import kernels
from mrpo_jax.models.attention.layout import RowLayout, capped
from mrpo_jax.models.partition import WHOLE
from mrpo_jax.models.weights import apart, dense

BLOCK = 16  # tokens that slots decode between two looks at them
ROW = 2048  # tokens of prompts that are read at once, if there are so many
ROUND = 128  # sizes are multiples of it, so that few programs are compiled


@flax.struct.dataclass
class Slots:
  """What each of B slots goes on from; small arrays, beside the cache."""

  token: jax.Array  # the newest token, whose successor comes next
  position: jax.Array  # of that token
  made: jax.Array  # tokens since the prompt
  active: jax.Array
  request: jax.Array  # B2: numbers of the prompt and of the sample


@flax.struct.dataclass
class Said:
  """What each slot said in a block of tokens: B by block."""

  token: jax.Array
  logp: jax.Array  # of the model
  behaviour_logp: jax.Array  # of what the token was drawn from
  is_greedy: jax.Array  # is it the model's likeliest?


class Decoder:
  """The programs of a model that generates, compiled once for all prompts.

  Attributes:
    slots: sequences that are decoded side by side.
    rows: rows of prompts that are read side by side.
    row: tokens of a row.
  """

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
      config: ModelConfig.
      params: its parameters, on the devices that decode; of `apart` layers
        too.
      sampling: Sampling.
      stop_ids: tokens that end a sample.
      slots: samples that are decoded side by side; rounded up to what divides
        over the rows of the partition.
      longest: tokens of the longest prompt that it will be given.
      kernel: of the prompts' attention, see `transformer.hidden`.
      dtype: of the activations; None is that of the parameters.
      cache_dtype: of keys and values; None is that of the activations.
      partition: Partition of the activations over a mesh.
      block: tokens that are decoded at once.

    Raises:
      ValueError: prompt and sample may be longer than the model allows.
    """
    self.config, self.sampling = config, sampling
    self.stop_ids, self.block = tuple(stop_ids), block
    self.longest = longest
    self._collected = partition.rows, partition.context
    partition = dataclasses.replace(partition, context=(), embed=())
    self._partition = partition
    self.rows = partition.size(partition.rows)
    self.slots = -(-slots // self.rows) * self.rows
    self.length = _length(config, longest, sampling.max_new_tokens)
    self.row = _rounded(max(longest - 1, 1))
    self.row = max(self.row, min(ROW, self.row * -(-self.slots // self.rows)))
    dtype = jnp.dtype(dtype or params["norm"].dtype)
    self._forward = dict(dtype=dtype, partition=partition)
    self._dtype = jnp.dtype(cache_dtype or dtype)
    # Prompts with a common start are siblings, as many as a row holds.
    kernel = kernels.of_siblings(kernel, config, dtype, partition)
    self._kernel = kernels.choose(kernel, config, dtype, partition)
    self.use(params)
    self._shape = caches.Shape(
      *(config, self.slots, self.length, block, self._dtype, partition),
      apart=self._layers is not self.params,
    )
    self._prefill = jax.jit(self._prefill, donate_argnums=1)
    self._insert = jax.jit(self._insert, donate_argnums=(0, 1))
    self._decode = jax.jit(self._decode, donate_argnums=(1, 2))
    self._empty = jax.jit(self._empty)
    self._staged = jax.jit(self._staged)

  @property
  def bytes(self):
    """What cache and read prompts take on each device, beside the weights."""
    partition = self._partition

    def size(make):
      arrays = jax.tree.leaves(jax.eval_shape(make))
      return sum(array.size * array.dtype.itemsize for array in arrays)

    heads = partition.size(partition.kv_heads)
    return (size(self._empty) // self.rows + size(self._staged)) // heads

  # What the host calls, in this order.

  def use(self, params):
    """Takes other parameters of the same shapes; nothing compiles anew."""
    self.params = self._layers = _together(params, *self._collected)
    if _on_one_cpu(params):
      self._layers = apart(self.params)

  def start(self, seed):
    """Forgets all; what is drawn follows from the seed, a number below 2^32."""
    self._seed = np.uint32(seed)
    self._cache, self._seen_BV = self._empty()
    self._kept = self._staged()

  def read(self, tokens_RT, layout):
    """Reads prompts: packed rows and their RowLayout; see `prompts.take`."""
    self._kept = self._prefill(self.params, self._kept, tokens_RT, layout)

  def row_of(self, used):
    """Tokens of a row that holds as many: few lengths, a program for each."""
    size = ROUND
    while size < used:
      size *= 2
    return min(size, self.row)

  def take(self, requests, seen_NV):
    """Moves prompts that were read into slots.

    Args:
      requests: cache.Requests.
      seen_NV: which tokens stand in each; None where nothing asks.
    """
    self._cache, self._seen_BV = self._insert(
      self._cache, self._seen_BV, self._kept, requests, seen_NV
    )

  def decode(self, slots):
    """(Slots, Said) after the next block of tokens, as numpy arrays."""
    self._cache, self._seen_BV, *found = self._decode(
      self._layers, self._cache, self._seen_BV, slots, self._seed
    )
    return jax.tree.map(np.array, found)

  def release(self):
    """Lets go of parameters and cache, until `use` and `start` are called."""
    self.params = self._layers = None
    self._cache = self._seen_BV = self._kept = None

  def lowered(self):
    """The program of a block of tokens as jax.stages.Lowered.

    Of parameters that may be jax.ShapeDtypeStruct, for devices that need not be
    here.
    """
    mesh = self._partition.mesh

    def abstract(arrays, spec):
      def one(array):
        to = mesh and NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=to)

      return jax.tree.map(one, arrays)

    cache, seen_BV = jax.eval_shape(self._empty)
    everywhere = PartitionSpec()
    return self._decode.lower(
      self._layers,
      abstract(cache, self._shape.spec),
      abstract(seen_BV, PartitionSpec(self._partition.rows)),
      abstract(no_slots(self.slots), everywhere),
      abstract(jnp.uint32(0), everywhere),
    )

  # Programs.

  def _empty(self):
    """(cache, seen_BV) before the first prompt."""
    seen_BV = None
    if self.sampling.penalises:
      seen_BV = jnp.zeros((self.slots, self.config.vocab_size), bool)
    return self._split(self._shape.empty(), seen_BV)

  def _split(self, cache, seen_BV):
    rows = PartitionSpec(self._partition.rows)
    return self._shape.kept(cache), self._on(seen_BV, rows)

  def _on(self, arrays, spec):
    mesh = self._partition.mesh
    if mesh is None:
      return arrays
    return jax.lax.with_sharding_constraint(arrays, NamedSharding(mesh, spec))

  def _staged(self):
    """Room for the keys and values of the rows that are read."""
    config = self.config
    shape = (self.rows, self.row, config.kv_heads, config.head_dim)
    zeros = jnp.zeros((2, config.layers, *shape), self._dtype)
    return self._on_all_rows(caches.KeysValues(*zeros))

  def _on_all_rows(self, staged):
    """Each device may have to take a prompt from any row."""
    heads = PartitionSpec(None, None, None, self._partition.kv_heads)
    return self._on(staged, heads)

  def _prefill(self, params, staged, tokens_RT, layout):
    refs = jax.tree.map(jax.new_ref, staged)
    transformer.hidden(
      self.config,
      params,
      tokens_RT,
      layout,
      kernel=attention.keeping(self._kernel, refs),
      **self._forward,
    )
    return self._on_all_rows(jax.tree.map(jax.freeze, refs))

  def _insert(self, cache, seen_BV, staged, requests, seen_NV):
    cache = self._shape.insert(cache, staged, requests)
    if seen_BV is not None:
      is_one_N = jnp.arange(requests.slot_N.size) < requests.count
      slot_N = jnp.where(is_one_N, requests.slot_N, self.slots)  # past the last
      seen_BV = seen_BV.at[slot_N].set(seen_NV, mode="drop")
    return self._split(cache, seen_BV)

  def _decode(self, params, cache, seen_BV, slots, seed):
    refs = jax.tree.map(jax.new_ref, self._shape.recent())
    key, start_B = jax.random.key(seed), jnp.asarray(slots.position)

    def step(i, carry):
      kernel = self._shape.decoding(cache, refs, i, start_B)
      return self._step(params, kernel, key, i, carry)

    shape = (self.slots, self.block)
    kinds = "int32", "float32", "float32", "bool"
    said = Said(*(jnp.zeros(shape, kind) for kind in kinds))
    slots, seen_BV, said = jax.lax.fori_loop(
      0, self.block, step, (slots, seen_BV, said)
    )
    recent = jax.tree.map(jax.freeze, refs)
    cache = self._shape.merged(cache, recent, start_B)
    return *self._split(cache, seen_BV), *self._on(
      (slots, said), PartitionSpec()
    )

  def _step(self, params, kernel, key, i, carry):
    """The i-th token of every slot."""
    slots, seen_BV, said = carry
    logits_BV = self._logits(params, kernel, slots)
    uniform_B = jax.vmap(functools.partial(_uniform, key))(
      slots.request, slots.made
    )
    stops, banned_BV = np.array(self.stop_ids, np.int32), None
    if self.sampling.min_new_tokens and len(stops):
      is_stop_V = jnp.zeros(logits_BV.shape[1], bool).at[stops].set(True)
      early_B = slots.made < self.sampling.min_new_tokens
      banned_BV = early_B[:, None] & is_stop_V[None]
    drawn = Said(
      *draw(
        self.sampling,
        logits_BV,
        uniform_B,
        seen_BV=seen_BV,
        banned_BV=banned_BV,
      )
    )
    token_B = drawn.token
    if seen_BV is not None:
      seen_BV = seen_BV.at[jnp.arange(self.slots), token_B].set(True)
    said = jax.tree.map(
      lambda one, new_B: jax.lax.dynamic_update_index_in_dim(
        one, new_B.astype(one.dtype), i, axis=1
      ),
      *(said, drawn),
    )
    made_B = slots.made + slots.active
    ends_B = made_B >= self.sampling.max_new_tokens
    if len(stops):
      ends_B |= (token_B[:, None] == stops[None]).any(1)
    slots = Slots(
      token=jnp.where(slots.active, token_B, slots.token),
      position=slots.position + slots.active,
      made=made_B,
      active=slots.active & ~ends_B,
      request=slots.request,
    )
    return slots, seen_BV, said

  def _logits(self, params, kernel, slots):
    layout = RowLayout(
      slots.position[:, None],
      jnp.ones((self.slots, 1), jnp.int32),
      jnp.zeros((self.slots, 1), jnp.int32),
    )
    hidden_B1D = transformer.hidden(
      self.config,
      params,
      slots.token[:, None],
      layout,
      kernel=kernel,
      **self._forward,
    )
    partition, head_VD = self._partition, transformer.head(params)

    def here(hidden_BD, head_VD):
      logits_BV = jnp.einsum(
        "BD,VD->BV",
        hidden_BD,
        dense(head_VD, hidden_BD.dtype),
        preferred_element_type=jnp.promote_types(hidden_BD.dtype, jnp.float32),
      )
      if not partition.vocab:
        return logits_BV
      # All of it for a device's slots, since sampling sums over it.
      return jax.lax.all_gather(logits_BV, partition.vocab, axis=1, tiled=True)

    rows = PartitionSpec(partition.rows)
    specs = rows, partition.of_weights(head_VD, partition.vocab)
    logits_BV = partition.run(here, specs, rows)(hidden_B1D[:, 0], head_VD)
    return capped(logits_BV, self.config.logits_softcap)


def no_slots(slots):
  """Slots without a sequence."""
  zero_B = np.zeros(slots, np.int32)
  return Slots(
    *(zero_B, zero_B.copy(), zero_B.copy()),
    active=np.zeros(slots, bool),
    request=np.zeros((slots, 2), np.int32),
  )


def _uniform(key, request_2, made):
  """The random number of one token, whatever stands beside it."""
  for number in (request_2[0], request_2[1], made):
    key = jax.random.fold_in(key, number)
  return jax.random.uniform(key, dtype=jnp.float32)


def _length(config, longest, new):
  """Positions of a slot: rounded up, where the model has so many."""
  length = _rounded(longest + new)
  if config.longest is None or length <= config.longest:
    return length
  if longest + new <= config.longest:
    return longest + new
  raise ValueError(
    f"a prompt of {longest} tokens and {new} new ones: more than the "
    f"{config.longest} that this {config.family} allows"
  )


def _rounded(size):
  return -(-size // ROUND) * ROUND


def _on_one_cpu(params):
  array = jax.tree.leaves(params)[0]
  devices = array.devices() if isinstance(array, jax.Array) else ()
  return [device.platform for device in devices] == ["cpu"]


def _together(params, rows, context):
  """The tree without its split over the rows of the mesh, and over context.

  Once, where each token would else collect the weights of every layer anew.
  The vocabulary stays split, as the logits are.
  """

  def one(path, array):
    to = getattr(array, "sharding", None)
    if not isinstance(to, NamedSharding):
      return array
    taken = [(*rows, *context)] * array.ndim
    if path[0].key in ("embed", "head"):
      taken[0] = rows
    spec = PartitionSpec(*map(_without, to.spec, taken))
    to = NamedSharding(to.mesh, spec)
    if isinstance(array, jax.ShapeDtypeStruct):
      return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=to)
    return jax.device_put(array, to)

  return jax.tree.map_with_path(one, params)


def _without(names, rows):
  """The axes of one dimension but those; None where none is left."""
  names = (names,) if isinstance(names, str) else names or ()
  return tuple(name for name in names if name not in rows) or None
