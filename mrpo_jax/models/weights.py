# SPDX-License-Identifier: Apache-2.0
"""A weight as a product sees it: an array, a quantised one, or an adapted one.

A tree of parameters may hold at any matrix of its blocks, instead of an array,

    LoRA(base, a, b, scale)   base + scale * a b, base frozen
    qwix.QArray               integers and their scales, frozen

and at its embedding and head a QArray or

    Summed(array, total)      array, whose gradient is added to a total

`project`, `rows_of`, `dense` and `head.token_figures` are the places that know.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import qwix

from mrpo_jax.models.parameters import ROUTER
from mrpo_jax.shapes import widen

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
  scales: jax.Array | None = None  # [L], in its place where layers differ
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


# Products.


def project(x, leaf, einsum):
  """The product of activations with a weight, in the activations' dtype."""
  if isinstance(leaf, LoRA):
    into, out_of = _through_rank(einsum)
    narrow = _dense_product(_dropped(x, leaf), leaf.a, into)
    change = _dense_product(narrow, leaf.b, out_of)
    # Those of this layer: a scan has sliced them.
    scale = leaf.scale if leaf.scales is None else leaf.scales
    return project(x, leaf.base, einsum) + scaled(change, scale)
  if isinstance(leaf, qwix.QArray):
    # The backward pass keeps the integers: kept as floats, the weights of all
    # layers would stand in memory at once.
    product = jax.checkpoint(
      _dense_product, static_argnums=2, prevent_cse=False
    )
    return product(x, leaf, einsum)
  return _dense_product(x, leaf, einsum)


def scaled(x, factor):
  """x times a number, which the dtype of x does not round before."""
  if isinstance(factor, float) and factor == 1.0:
    return x
  wide = widen(x)
  return (wide * jnp.asarray(factor, wide.dtype)).astype(x.dtype)


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
  kept = jax.random.bernoulli(leaf.key, np.float32(keep), x.shape)
  return jnp.where(kept, scaled(x, 1.0 / keep), jnp.zeros_like(x))


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


def apart(params):
  """The tree with its blocks as a tuple of layers; see `transformer.hidden`.

  A scan cuts the weights of a layer out of those of all.  On a CPU that is a
  copy, with which a pass over few tokens spends most of its time; layers that
  stand apart are read where they are: there, in the same memory as before.
  """
  leaves = jax.tree.leaves(params["blocks"])
  return params | {
    "blocks": tuple(
      jax.tree.map(lambda array, i=i: _layer(array, i), params["blocks"])
      for i in range(leaves[0].shape[0])
    )
  }


def _layer(array, number):
  if [device.platform for device in array.devices()] != ["cpu"]:
    return array[number]
  return jax.device_put(np.asarray(array)[number], may_alias=True)


def matrices(table):
  """{name: ArraySpec} of the blocks' matrices: they may be more than arrays."""
  return {
    name: spec
    for name, spec in table["blocks"].items()
    if spec.inputs and name != ROUTER
  }


# Quantised weights.


def quantize(params, table, kind, *, group=GROUP):
  """The tree with its matrices as integers; norms and biases stay.

  int8: one float32 scale for each output of a matrix.  int4: one bfloat16
  scale for each `group` inputs of an output: 4.5 bits per weight at 32.
  Embedding and head are int8 in both, one scale for each token.

  Args:
    params: tree of arrays in the shape of `table`.
    table: `parameters.table` of the model.
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
    first, _ = spec.cut
    blocks[name] = _quantized(blocks[name], first, spec.inputs, tiles[name])
  params = {**params, "blocks": blocks}
  for name in ("embed", "head"):
    if name in params:
      params[name] = _quantized(params[name], 1, 1, ())
  return params


def _tiles(name, spec, group):
  """(axis, inputs that share a scale) of the innermost inputs, outwards."""
  first, end = spec.cut
  sizes, rest, tiles = spec.shape[first:end], group, []
  for axis in reversed(range(first, end)):
    size = spec.shape[axis]
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
