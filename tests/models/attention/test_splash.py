# SPDX-License-Identifier: Apache-2.0
import jax.numpy as jnp

from mrpo_jax.models.attention.expansion import _expansion


def test_expansion_by_hand():
  made = _expansion(
    16, jnp.array([1, 1, 1, 1, 2, 2, 0]), jnp.array([0, 0, 1, 2, 0, 1, 0])
  )
  #                       p p c p p r | p c p | padding
  assert made.source_RX.tolist() == [0, 1, 2, 0, 1, 3, 4, 5, 4] + [7] * 7
  assert made.first_RX.tolist() == [0, 1, 2, 7, 7, 3, 4, 5] + [7] * 8
  assert made.segments_RX.tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 4] + [0] * 7
  assert made.target_RT.tolist() == [0, 1, 2, 5, 6, 7, 16]
  assert made.second_RT.tolist() == [3, 4, 16, 16, 8, 16, 16]
