# SPDX-License-Identifier: Apache-2.0
"""A weight as a product sees it: an array, a quantised one, or an adapted one.

A tree of parameters may hold at any matrix of its blocks, instead of an array,

    LoRA(base, a, b, scale)   base + scale * a b, base frozen
    qwix.QArray               integers and their scales, frozen

and at its embedding and head a QArray or

    Summed(array, total)      array, whose gradient is added to a total

`project`, `rows_of`, `dense` and `head.token_figures` are the places that know.
"""

import dataclasses
import math

import flax.struct
import jax
import jax.numpy as jnp
import qwix

from mrpo_jax.models import spec as specs

KINDS = ("int8", "int4")
GROUP = 32  # weights that share a scale in int4


@flax.struct.dataclass
class LoRA:
  """base + scale * a b: a product and its low-rank change.

  Stacked over L like its base, so that a scan over the blocks slices it.
  """

  base: object  # array [L, *inputs, *outputs], or a QArray of that shape
  a: jax.Array | None  # [L, *inputs, rank]; None where `split` took it out
  b: jax.Array | None  # [L, rank, *outputs]
  scale: float = flax.struct.field(pytree_node=False)
  key: jax.Array | None = None  # [L] of the dropout; None drops nothing
  dropout: float = flax.struct.field(pytree_node=False, default=0.0)


@flax.struct.dataclass
class Summed:
  """An embedding or a head; its gradient is added to `total` where it is made.

  So none of its own is made, a second array of that size.  The gradient with
  respect to `array` then counts as zero.
  """

  array: jax.Array
  total: jax.Ref  # of the array's shape, in float32 or better


@dataclasses.dataclass(frozen=True)
class Adapter:
  """Which matrices a LoRA changes, and how much."""

  rank: int
  alpha: float
  targets: tuple[str, ...] = ("all",)  # leaves of the blocks
  rslora: bool = False
  dropout: float = 0.0  # of the adapters' input, in training alone

  @property
  def scale(self):
    """alpha / rank, or alpha / sqrt(rank): rsLoRA, arXiv:2312.03732."""
    return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


# Products.


def project(x, leaf, einsum):
  """The product of activations with a weight, in the activations' dtype."""
  if isinstance(leaf, LoRA):
    into, out_of = _through_rank(einsum)
    narrow = _dense_product(_dropped(x, leaf), leaf.a, into)
    change = _dense_product(narrow, leaf.b, out_of)
    return project(x, leaf.base, einsum) + leaf.scale * change
  if isinstance(leaf, qwix.QArray):
    # The backward pass keeps the integers: kept as floats, the weights of all
    # layers would stand in memory at once.
    product = jax.checkpoint(
      _dense_product, static_argnums=2, prevent_cse=False
    )
    return product(x, leaf, einsum)
  return _dense_product(x, leaf, einsum)


def _dense_product(x, leaf, einsum):
  """The einsum as one product of two matrices.

  With more axes XLA's CPU backend transposes the activations for the gradient
  of the weight, which takes longer than the product.
  """
  weight = dense(leaf, x.dtype)
  inputs, outputs = _sides(einsum)
  n = len(inputs)
  rows, columns = math.prod(weight.shape[:n]), math.prod(weight.shape[n:])
  y = x.reshape(-1, rows) @ weight.reshape(rows, columns)
  return y.reshape(*x.shape[: x.ndim - n], *weight.shape[n:])


def _sides(einsum):
  """ "RTD,DHE->RTHE" -> ("D", "HE"): what of a weight is summed, what stays."""
  given, out = einsum.split("->")
  weight = given.split(",")[1]
  inputs = "".join(axis for axis in weight if axis not in out)
  return inputs, weight.removeprefix(inputs)


def _through_rank(einsum):
  """ "RTD,DHE->RTHE" -> ("RTD,Dr->RTr", "RTr,rHE->RTHE")."""
  given, out = einsum.split("->")
  x = given.split(",")[0]
  inputs, outputs = _sides(einsum)
  narrow = x.removesuffix(inputs) + "r"
  return f"{x},{inputs}r->{narrow}", f"{narrow},r{outputs}->{out}"


def _dropped(x, leaf):
  if leaf.key is None:
    return x
  keep = 1.0 - leaf.dropout
  kept = jax.random.bernoulli(leaf.key, keep, x.shape)
  return jnp.where(kept, x / keep, jnp.zeros_like(x))


def dense(leaf, dtype):
  """An array or a QArray as an array of that dtype; float32 in between."""
  if isinstance(leaf, qwix.QArray):
    leaf = qwix.dequantize(leaf.astype(jnp.float32))
  return leaf.astype(dtype)


def rows_of(leaf, places, dtype):
  """The rows of an embedding at `places`, an axis more than those."""
  if isinstance(leaf, Summed):
    return _summed_rows(leaf, places).astype(dtype)
  rows = jax.tree.map(lambda array: jnp.take(array, places, axis=0), leaf)
  return dense(rows, dtype)


@jax.custom_vjp
def _summed_rows(leaf, places):
  return jnp.take(leaf.array, places, axis=0)


def _summed_rows_forward(leaf, places):
  return _summed_rows(leaf, places), (leaf.total, places)


def _summed_rows_backward(kept, grad):
  total, places = kept
  jax.ref.addupdate(total, places, grad.astype(total.dtype))
  return None, None


_summed_rows.defvjp(_summed_rows_forward, _summed_rows_backward)


def summed(params, totals):
  """The tree with Summed leaves at embeddings and head, where it has them."""
  return params | {
    name: Summed(params[name], totals[name])
    for name in ("embed", "positions", "head")
    if name in params
  }


# Adapters.


def is_lora(node):
  return isinstance(node, LoRA)


def _map(function, params):
  """`function` of every LoRA, the other leaves as they are."""
  return jax.tree.map(
    lambda leaf: function(leaf) if is_lora(leaf) else leaf,
    params,
    is_leaf=is_lora,
  )


def matrices(table):
  """{name: ArraySpec} of the blocks' matrices, one for each layer.

  They alone may be more than an array; what a layer has several of (experts)
  may not.
  """
  return {
    name: spec
    for name, spec in table["blocks"].items()
    if spec.inputs and spec.stacked == 1
  }


def adapter_table(table, adapter):
  """The tree of ArraySpec that an adapter adds to a model: what is trained.

  Args:
    table: `spec.table` of the model.
    adapter: Adapter.

  Returns:
    {"blocks": {target: {"a": ArraySpec, "b": ArraySpec}}}.

  Raises:
    ValueError: a target that is no matrix of the blocks, or a rank that is
      larger than a matrix.
  """
  known = matrices(table)
  targets = tuple(known) if "all" in adapter.targets else adapter.targets
  for target in targets:
    if target not in known:
      raise ValueError(
        f"targets: {target!r} is no matrix of this model; known: all, "
        f"{', '.join(known)}"
      )
  pairs = {name: _pair(known[name], name, adapter.rank) for name in targets}
  return {"blocks": pairs}


def _pair(spec, name, rank):
  cut = 1 + spec.inputs
  inputs, outputs = spec.shape[1:cut], spec.shape[cut:]
  smaller = min(math.prod(inputs), math.prod(outputs))
  if rank > smaller:
    raise ValueError(f"rank={rank} is larger than {name}, of rank {smaller}")
  L = spec.shape[:1]
  return {
    "a": specs.ArraySpec(
      (*L, *inputs, rank),
      (*spec.axes[:cut], None),
      spec.name,
      inputs=spec.inputs,
      scale=math.prod(inputs) ** -0.5,
    ),
    "b": specs.ArraySpec(
      (*L, rank, *outputs),
      ("layers", None, *spec.axes[cut:]),
      spec.name,
      inputs=1,
      start=0.0,
    ),
  }


def init_adapters(table, key):
  """Arrays in the shape of `adapter_table`, float32 whatever the base is.

  As PEFT starts them: `a` is uniform within 1 / sqrt(inputs), its Kaiming
  initialisation with slope sqrt(5); `b` is zero, so nothing changes yet.
  """
  table, treedef = jax.tree.flatten(table, is_leaf=specs.is_spec)
  keys = jax.random.split(key, len(table))
  arrays = [
    # Without its dtype it would be weakly typed, and the step compile twice.
    jnp.full(spec.shape, spec.start, jnp.float32)
    if spec.scale is None
    else jax.random.uniform(key, spec.shape, minval=-1.0) * spec.scale
    for spec, key in zip(table, keys, strict=True)
  ]
  return jax.tree.unflatten(treedef, arrays)


def attach(params, arrays, adapter):
  """The same tree with LoRA leaves: `arrays` beside the matrices they change.

  Args:
    params: tree of a model; its leaves are shared, not copied.
    arrays: tree of arrays in the shape of `adapter_table`.
    adapter: Adapter.
  """
  blocks = dict(params["blocks"])
  for name, pair in arrays["blocks"].items():
    blocks[name] = LoRA(
      blocks[name],
      pair["a"],
      pair["b"],
      scale=adapter.scale,
      dropout=adapter.dropout,
    )
  return {**params, "blocks": blocks}


def split(params):
  """(frozen, trained): the tree without its adapters, and those.

  `trained` is {"blocks": {target: {"a": ..., "b": ...}}}.  Of a tree without
  adapters all is trained: (None, params).
  """
  pairs = {
    name: {"a": leaf.a, "b": leaf.b}
    for name, leaf in params["blocks"].items()
    if is_lora(leaf)
  }
  if not pairs:
    return None, params
  frozen = _map(lambda leaf: leaf.replace(a=None, b=None), params)
  return frozen, {"blocks": pairs}


def join(frozen, trained, key=None):
  """What `split` took apart.

  Args:
    frozen: tree with holes, or None.
    trained: what fills them, or the whole tree.
    key: of the dropout; None drops nothing.
  """
  if frozen is None:
    return trained
  blocks = dict(frozen["blocks"])
  for i, (name, pair) in enumerate(sorted(trained["blocks"].items())):
    leaf = blocks[name].replace(**pair)
    if key is not None and leaf.dropout:
      layers = pair["a"].shape[0]
      leaf = leaf.replace(
        key=jax.random.split(jax.random.fold_in(key, i), layers)
      )
    blocks[name] = leaf
  return {**frozen, "blocks": blocks}


def strip(params):
  """The tree with its adapters off: the same arrays, nothing is copied."""
  return _map(lambda leaf: leaf.base, params)


def merge(params):
  """The tree as plain arrays, the adapters added to their bases.

  Sums in float32.  An array keeps its dtype; what was quantised gets that of
  the norms, and is the weight that was computed with, not the one before it
  was quantised.
  """
  dtype = params["norm"].dtype

  def merged(leaf):
    base = leaf.base if is_lora(leaf) else leaf
    kind = dtype if isinstance(base, qwix.QArray) else base.dtype
    if not is_lora(leaf):
      return dense(leaf, kind)
    L, rank = base.shape[0], leaf.a.shape[-1]
    change = jnp.matmul(
      leaf.a.astype(jnp.float32).reshape(L, -1, rank),
      leaf.b.astype(jnp.float32).reshape(L, rank, -1),
      precision="highest",
    )
    whole = dense(base, jnp.float32) + leaf.scale * change.reshape(base.shape)
    return whole.astype(kind)

  return jax.tree.map(
    merged,
    params,
    is_leaf=lambda node: isinstance(node, LoRA | qwix.QArray),
  )


# Quantised weights.


def quantize(params, table, kind, *, group=GROUP):
  """The tree with its matrices as integers; norms and biases stay.

  int8: one float32 scale for each output of a matrix.  int4: one bfloat16
  scale for each `group` inputs of an output: 4.5 bits per weight at 32.
  Embedding and head are int8 in both, one scale for each token.

  Args:
    params: tree of arrays in the shape of `table`.
    table: `spec.table` of the model.
    kind: one of KINDS.
    group: inputs that share a scale in int4.

  Returns:
    The same tree, its matrices qwix.QArray.

  Raises:
    ValueError: `group` does not divide the inputs of a matrix; names it.
  """
  if kind not in KINDS:
    raise ValueError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
  names = matrices(table)
  tiles = {
    name: _tiles(name, spec, group) if kind == "int4" else ()
    for name, spec in names.items()
  }
  blocks = dict(params["blocks"])
  for name, spec in names.items():
    blocks[name] = _quantized(blocks[name], 1, spec.inputs, tiles[name])
  params = {**params, "blocks": blocks}
  for name in ("embed", "head"):
    if name in params:
      params[name] = _quantized(params[name], 1, 1, ())
  return params


def _tiles(name, spec, group):
  """(axis, inputs that share a scale) of the innermost inputs, outwards."""
  sizes, rest, tiles = spec.shape[1 : 1 + spec.inputs], group, []
  for axis in range(len(sizes), 0, -1):
    size = sizes[axis - 1]
    tile = min(rest, size)
    if size % tile or rest % tile:
      break
    tiles.append((axis, tile))
    rest //= tile
  if rest > 1 or len(tiles) < len(sizes):
    inputs = " x ".join(map(str, sizes))
    raise ValueError(
      f"groups of {group} do not divide the {inputs} inputs of {name}"
    )
  return tuple(tiles)


def _quantize(array, first, inputs, tiles):
  """`inputs` axes from axis `first` on share a scale, or each tile of them."""
  summed = range(first, first + inputs)
  return qwix.quantize(
    array.astype(jnp.float32),
    jnp.int4 if tiles else jnp.int8,
    channelwise_axes=[i for i in range(array.ndim) if i not in summed],
    tiled_axes=dict(tiles),
    # 8 bits of a scale are far below the step of int4, not below int8's.
    scale_dtype=jnp.bfloat16 if tiles else jnp.float32,
  )


_quantized = jax.jit(_quantize, static_argnums=(1, 2, 3))
