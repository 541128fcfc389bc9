# SPDX-License-Identifier: Apache-2.0
"""Blocks equal the oracle, and only those are computed that matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax.models.attention import blockwise
from mrpo_jax.models.attention.layout import dense, sees
from tests.material.attention import (
  ROWS,
  TREES,
  layout_of,
  value_and_gradients,
)


def test_blocks_in_float64_equal_the_oracle_to_its_last_digits():
  with jax.enable_x64(True):
    given = layout_of(*ROWS["several"]), jnp.int32(17), 5.0, np.float64
    got, got_grads = value_and_gradients(blockwise.blockwise, *given)
    want, want_grads = value_and_gradients(dense, *given)
  np.testing.assert_allclose(got, want, rtol=1e-12)
  for a, b in zip(got_grads, want_grads, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-12)


def test_blocks_in_bfloat16_stay_close():
  given = layout_of(*ROWS["several"]), None, None
  got, got_grads = value_and_gradients(
    blockwise.blockwise, *given, jnp.bfloat16
  )
  want, want_grads = value_and_gradients(dense, *given)
  np.testing.assert_allclose(float(got), float(want), rtol=0.02)
  for a, b in zip(got_grads, want_grads, strict=True):
    apart = np.abs(np.asarray(a, np.float32) - b).max()
    assert apart < 0.03 * np.abs(b).max()


@pytest.mark.parametrize("window", [None, 17, 0])
@pytest.mark.parametrize("rows", [*ROWS, *TREES])
def test_blocks_left_out_hold_nobody_who_sees_another(rows, window):
  layout = layout_of(*(ROWS | TREES)[rows])
  T = layout.segments.shape[1]
  blocks = -(-T // 16)
  padded = jax.tree.map(
    lambda array: jnp.pad(array, ((0, 0), (0, 16 * blocks - T))), layout
  )
  window = None if window is None else jnp.int32(window)
  plan = blockwise._plan(padded, window, blocks)
  place = jnp.arange(16 * blocks)
  mask = sees(padded, padded, place, place, window)
  seen = mask.any(0).reshape(blocks, 16, blocks, 16).any((1, 3))
  for i in range(blocks):
    computed = np.asarray(plan.order_NN[i, : plan.count_N[i]])
    assert computed[0] == i
    assert set(np.flatnonzero(seen[i])) <= set(computed.tolist())


def test_cost_follows_the_lengths():
  """Of 16 blocks, 16 x 17 / 2 pairs are causal; 16 sequences need 16."""
  one = blockwise._plan(layout_of([[(256, 0, 0)]], 256), None, 16)
  many = blockwise._plan(layout_of([[(16, 0, 0)] * 16], 256), None, 16)
  near = blockwise._plan(layout_of([[(256, 0, 0)]], 256), jnp.int32(17), 16)
  # Prompt 1 block, chosen 4, rejected 4: siblings' 16 are left out.
  pair = blockwise._plan(layout_of([[(16, 64, 64)]], 144), None, 9)
  # A trunk of 1 block and 30 branches of half of one: each of 15 blocks sees
  # the trunk and itself.
  tree = blockwise._plan(layout_of([[(16, *[8] * 30)]], 256), None, 16)
  plans = one, many, near, pair, tree
  counts = [int(plan.count_N.sum()) for plan in plans]
  # A window of 17 reaches the block before, and one token of that before it.
  assert counts == [136, 16, 16 + 15, 45 - 16, 1 + 15 * 2]
