# SPDX-License-Identifier: Apache-2.0
"""Grouped products: rows that stand by group, each with its group's matrix.

`jax.lax.ragged_dot` on a TPU, where it is a kernel that reads each row once.
XLA's CPU and GPU backends make of it a product of all rows with every matrix:
there rows are cut into blocks, as many as the groups need, under a loop whose
length is known at run time.
"""

import functools

import jax
import jax.numpy as jnp

BLOCKS = 8, 512  # rows of the smallest and the largest block
SHARE = 4  # blocks of an even group, about; its last is half empty


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def product(rows_ND, weight_GDF, size_G, expected):
  """The rows of group g times weight g: out_NF.

  Args:
    rows_ND: rows, group after group.
    weight_GDF: a matrix for each group.
    size_G: rows of each group; those beyond their sum belong to none, and
      give 0.
    expected: rows that belong to some group, as a count of the program's work
      may assume; it changes no number.
  """
  return jax.lax.platform_dependent(
    rows_ND,
    weight_GDF,
    size_G,
    tpu=functools.partial(_ragged, expected),
    default=functools.partial(_by_blocks, expected),
  )


def _forward(rows_ND, weight_GDF, size_G, expected):
  out_NF = product(rows_ND, weight_GDF, size_G, expected)
  return out_NF, (rows_ND, weight_GDF, size_G)


def _backward(expected, kept, grad_NF):
  rows_ND, weight_GDF, size_G = kept
  # One by one: of a frozen weight the gradient is dead code.
  grad_rows_ND = jax.lax.platform_dependent(
    grad_NF,
    weight_GDF,
    size_G,
    tpu=functools.partial(_ragged, expected, transposed=True),
    default=functools.partial(_by_blocks, expected, transposed=True),
  )
  grad_GDF = jax.lax.platform_dependent(
    rows_ND,
    grad_NF,
    size_G,
    tpu=functools.partial(_ragged_gradient, expected),
    default=functools.partial(_gradient_by_blocks, expected),
  )
  return grad_rows_ND, grad_GDF.astype(weight_GDF.dtype), None


product.defvjp(_forward, _backward)


# A TPU's kernel.


def _ragged(expected, rows, weight_GDF, size_G, transposed=False):
  """The product by ragged_dot, or that with the transposed matrices."""
  sides = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(([1], [2 if transposed else 1]), ([], [])),
    lhs_ragged_dimensions=[0],
    rhs_group_dimensions=[0],
  )
  with jax.named_scope(f"rows_of_experts_{expected}"):
    out = jax.lax.ragged_dot_general(rows, weight_GDF, size_G, sides)
  place_N1 = jnp.arange(rows.shape[0])[:, None]
  return jnp.where(place_N1 < jnp.sum(size_G), out, 0)  # it may leave them be


def _ragged_gradient(expected, rows_ND, grad_NF, size_G):
  """grad_GDF: of each matrix, the sum over the rows of its group."""
  sides = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(([0], [0]), ([], [])),
    lhs_ragged_dimensions=[0],
    rhs_group_dimensions=[],
  )
  with jax.named_scope(f"rows_of_experts_{expected}"):
    return jax.lax.ragged_dot_general(
      *(rows_ND, grad_NF, size_G, sides), preferred_element_type=_wide(rows_ND)
    )


def _wide(array):
  return jnp.promote_types(array.dtype, jnp.float32)


# Blocks.


def block_rows(rows, groups):
  """Rows of a block: a power of 2, an even group being some blocks."""
  least, most = BLOCKS
  block = least
  while 2 * block * SHARE * groups <= rows and block < most:
    block *= 2
  return block


def _walk(expected, size_G, block, body, start):
  """`body(group, first row, rows, carry)` for every block of every group."""
  blocks_G = -(-size_G // block)
  ends_G = jnp.cumsum(blocks_G)
  first_G = jnp.cumsum(size_G) - size_G

  def one(n, carry):
    group = jnp.sum(ends_G <= n)
    skipped = block * (n - (ends_G[group] - blocks_G[group]))
    count = jnp.minimum(block, size_G[group] - skipped)
    return body(group, first_G[group] + skipped, count, carry)

  with jax.named_scope(_named(expected, size_G.size, block)):
    return jax.lax.fori_loop(0, ends_G[-1], one, start)


def _named(expected, groups, block):
  """The scope of a loop, which says how often it is expected to run.

  Groups end anywhere in their last block: in its middle on average.
  """
  count = min(expected, round(expected / block + groups / 2))
  return f"blocks_of_experts_{count}"


def _rows(array, first, count, block):
  """A block of rows; of those beyond `count`, zeros."""
  rows = jax.lax.dynamic_slice_in_dim(array, first, block)
  return jnp.where(jnp.arange(block)[:, None] < count, rows, 0)


def _padded(array, block):
  """With room for a block that begins at the last row."""
  return jnp.pad(array, ((0, block), (0, 0)))


def _by_blocks(expected, rows, weight_GDF, size_G, transposed=False):
  """`_ragged` of the same arguments."""
  block = block_rows(rows.shape[0], size_G.size)
  given = _padded(rows, block)
  width = weight_GDF.shape[1 if transposed else 2]

  def body(group, first, count, out):
    here = _rows(given, first, count, block)
    einsum = "bF,DF->bD" if transposed else "bD,DF->bF"
    own = jax.lax.dynamic_index_in_dim(weight_GDF, group, keepdims=False)
    new = jnp.einsum(einsum, here, own)
    # Where a group ends within the block, the next one writes what follows.
    return jax.lax.dynamic_update_slice_in_dim(out, new, first, 0)

  out = jnp.zeros((given.shape[0], width), rows.dtype)
  return _walk(expected, size_G, block, body, out)[: rows.shape[0]]


def _gradient_by_blocks(expected, rows_ND, grad_NF, size_G):
  """`_ragged_gradient` of the same arguments."""
  block = block_rows(rows_ND.shape[0], size_G.size)
  rows_ND, grad_NF = _padded(rows_ND, block), _padded(grad_NF, block)
  wide = _wide(rows_ND)

  def body(group, first, count, total_GDF):
    new_DF = jnp.einsum(
      "bD,bF->DF",
      _rows(rows_ND, first, count, block),
      jax.lax.dynamic_slice_in_dim(grad_NF, first, block),
      preferred_element_type=wide,
    )
    return total_GDF.at[group].add(new_DF)

  shape = size_G.size, rows_ND.shape[1], grad_NF.shape[1]
  return _walk(expected, size_G, block, body, jnp.zeros(shape, wide))
