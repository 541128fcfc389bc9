# SPDX-License-Identifier: Apache-2.0
import jax.numpy as jnp
import numpy as np

from mrpo_jax.models.attention.layout import capped, sees
from tests.material.attention import layout_of


def test_who_sees_whom_by_hand():
  layout = layout_of([[(2, 1, 1), (1, 1, 0)]], 7)
  place_T = jnp.arange(7)
  mask_RTS = sees(layout, layout, place_T, place_T, None)
  # prompt, chosen, rejected of one pair; prompt, chosen of another; padding.
  want = """
    p......
    pp.....
    ppc....
    pp.r...
    ....p..
    ....pc.
    ......-
  """
  rows = [list(row.strip()) for row in want.strip().split("\n")]
  np.testing.assert_array_equal(mask_RTS[0], np.array(rows) != ".")
  near_RTS = sees(layout, layout, place_T, place_T, jnp.int32(2))
  # Positions 0, 1 | 2 | 2: responses are two away from the first token.
  gone = np.argwhere(np.asarray(mask_RTS[0] & ~near_RTS[0])).tolist()
  assert gone == [[2, 0], [3, 0]]
  no_RTS = sees(layout, layout, place_T, place_T, jnp.int32(0))
  np.testing.assert_array_equal(no_RTS, mask_RTS)


def test_a_cap_by_hand():
  assert float(capped(jnp.float32(7.0), None)) == 7.0
  np.testing.assert_allclose(capped(jnp.float32(4.0), 2.0), 2 * np.tanh(2.0))
