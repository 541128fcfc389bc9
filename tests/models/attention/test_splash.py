# SPDX-License-Identifier: Apache-2.0
import jax.numpy as jnp

from mrpo_jax.models.attention.expansion import _expansion


def test_expansion_by_hand():
  source, target, segments = _expansion(
    16, jnp.array([1, 1, 1, 1, 2, 2, 0]), jnp.array([0, 0, 1, 2, 0, 1, 0])
  )
  #                       p p c p p r | p c p | padding
  assert source.tolist() == [0, 1, 2, 0, 1, 3, 4, 5, 4, 6] + [0] * 6
  assert segments.tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 4] + [0] * 7
  assert target.tolist() == [0, 1, 2, 5, 6, 7, 9]
