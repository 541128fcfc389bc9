# SPDX-License-Identifier: Apache-2.0
"""Products by group equal jax.lax.ragged_dot, rows of no group give nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mrpo_jax.models import grouped

N, D, F = 41, 6, 7
SIZES = [  # of four groups; what is left belongs to none
  [16, 9, 8, 8],
  [5, 0, 11, 3],
  [0, 41, 0, 0],
  [0, 0, 0, 40],
  [1, 1, 1, 1],
  [0, 0, 0, 0],
]


def arrays(rng, *shapes):
  return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def product(rows_ND, weight_GDF, size_G):
  return grouped.product(rows_ND, weight_GDF, size_G, N)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_it_is_ragged_dot_and_so_are_its_gradients(rng, sizes):
  rows, weight, pull = arrays(rng, (N, D), (4, D, F), (N, F))
  size_G = jnp.asarray(sizes, jnp.int32)

  def both(function):
    out, pullback = jax.vjp(lambda *given: function(*given, size_G), *given)
    return out, *pullback(pull)

  given = rows, weight
  got, want = jax.jit(lambda: (both(product), both(jax.lax.ragged_dot)))()
  for ours, theirs in zip(got, want, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_by_hand():
  rows = jnp.asarray([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
  weight = jnp.asarray([[[1.0], [1.0]], [[1.0], [10.0]]])
  out = grouped.product(rows, weight, jnp.asarray([1, 1]), 2)
  np.testing.assert_array_equal(out, [[3.0], [43.0], [0.0]])


def test_rows_of_no_group_reach_neither_result_nor_gradient(rng):
  rows, weight = arrays(rng, (N, D), (4, D, F))
  rows = rows.at[20:].set(jnp.nan)
  size_G = jnp.asarray([8, 1, 8, 3])

  def total(rows, weight):
    return jnp.sum(jnp.square(product(rows, weight, size_G)))

  value, grads = jax.value_and_grad(total, (0, 1))(rows, weight)
  assert np.isfinite(value)
  assert all(np.isfinite(grad).all() for grad in grads)
  np.testing.assert_array_equal(grads[0][20:], 0)


def test_gradients_are_slopes(rng):
  rows, weight = arrays(rng, (9, 3), (2, 3, 4))
  size_G = jnp.asarray([5, 3])
  check_grads(
    lambda *given: grouped.product(*given, size_G, 8),
    (rows, weight),
    order=1,
    modes=["rev"],
    rtol=1e-2,
  )


def test_a_gradient_of_half_precision_is_summed_in_float32():
  # Four blocks: 1 and three times 2^-9, each of which bfloat16 would lose.
  n = 1024
  assert grouped.block_rows(n, 1) == 256
  rows = jnp.zeros((n, 1), jnp.bfloat16).at[::256].set(2**-9).at[0].set(1)

  def total(weight):
    out = grouped.product(rows, weight, jnp.asarray([n]), n)
    return jnp.sum(out.astype(jnp.float32))

  grad = jax.grad(total)(jnp.zeros((1, 1, 1), jnp.bfloat16))
  assert grad.dtype == jnp.bfloat16
  assert float(grad[0, 0, 0]) == 1 + 2**-7  # of 1 + 3 * 2^-9 the nearest


@pytest.mark.parametrize(
  "rows, groups, want", [(32, 8, 8), (8192, 8, 256), (10**6, 8, 512), (1, 9, 8)]
)
def test_a_group_is_some_blocks(rows, groups, want):
  assert grouped.block_rows(rows, groups) == want
