# SPDX-License-Identifier: Apache-2.0
"""Operations of a step, by numbers that a person can redo."""

import dataclasses

import numpy as np
import pytest

from mrpo_jax.data import pack
from mrpo_jax.data.encode import Encoded
from mrpo_jax.models.attention.layout import RowLayout, sees
from mrpo_jax.models.config import VALUED, ModelConfig
from mrpo_jax.performance import flops
from mrpo_jax.training.objective import Model, Objective

SMALL = ModelConfig(
  vocab_size=5,
  width=2,
  layers=3,
  heads=2,
  kv_heads=1,
  head_dim=4,
  mlp_width=3,
)
PAIRS = [Encoded([1, 1], [2], [3, 3]), Encoded([1], [2, 2, 2], [3])]
LENGTH_N3 = [[2, 1, 2], [1, 3, 1]]


def test_a_forward_pass_by_hand():
  # Of a layer: query and out 2*2*4 each, key and value 2*1*4 each, and
  # gate, up and down 2*3 each: 16 + 16 + 8 + 8 + 18 = 66.
  assert flops.block_parameters(SMALL) == 3 * 66
  # The first pair: 1 + 2 in the prompt, 3 chosen, 3 + 4 rejected.
  assert flops.visible_keys([[2, 1, 2]]) == 13
  # The second: 1 in the prompt, 2 + 3 + 4 chosen, 2 rejected.
  assert flops.visible_keys([[1, 3, 1]]) == 12
  assert flops.forward(SMALL, LENGTH_N3) == {
    "blocks": 2 * 198 * 10,
    "attention": 3 * 4 * 2 * 4 * (13 + 12),
    "head": 7 * 2 * 2 * 5,
  }


def test_of_experts_a_token_s_own_count():
  config = dataclasses.replace(SMALL, experts=4, experts_per_token=3)
  # 48 of the attention, 2*4 of the router, three experts of 18.
  assert flops.block_parameters(config) == 3 * (48 + 8 + 3 * 18)
  one = dataclasses.replace(SMALL, experts=1, experts_per_token=1)
  assert flops.block_parameters(one) == 3 * (66 + 2)


def test_a_step_by_hand():
  views = [pack.pack_step(PAIRS, length=16, rows=1, batch=4)]
  online, scored = Model(SMALL), Model(SMALL, scored=True)
  parts = {"blocks": 3960, "attention": 2400, "head": 140}
  forward = sum(parts.values())

  def step(*references, **more):
    objective = Objective(4, Model(SMALL), references, (), None)
    return flops.step(objective, views, **more)

  assert step(scored) == 3 * forward
  assert step(online, scored, online) == 5 * forward
  # Ten tokens pass 7 weights of an adapter three times; the frozen ones twice.
  assert step(adapter=7) == 2 * 3960 + 2 * 140 + 3 * 2400 + 3 * 2 * 7 * 10


def test_a_value_head_is_one_number_more_of_each_token():
  config = dataclasses.replace(SMALL, head=VALUED)
  more = flops.forward(config, LENGTH_N3)["head"]
  assert more == flops.forward(SMALL, LENGTH_N3)["head"] + 7 * 2 * 2


@pytest.mark.parametrize("window", [0, 1, 2, 3, 9])
def test_visible_keys_are_those_of_the_mask(window):
  rows = pack.pack(PAIRS, length=12)
  layout = RowLayout(
    rows.positions_RT[0], rows.segments_RT[0], rows.branches_RT[0]
  )
  place_T = np.arange(12)
  mask_RTS = sees(layout, layout, place_T, place_T, window)
  is_real_RT = rows.segments_RT[0] > 0
  seen = int(np.asarray(mask_RTS)[is_real_RT].sum())
  assert flops.visible_keys(LENGTH_N3, window) == seen


def test_lengths_are_read_from_any_rows():
  for length, rows in ((5, 2), (12, 1), (12, 2), (16, 3)):
    view = pack.pack_step(PAIRS, length=length, rows=rows, batch=4)
    found = flops.pair_lengths(view).tolist()
    assert sorted(found) == sorted(LENGTH_N3)
  supervised = [Encoded([1, 1], [2, 2, 2], [])]
  view = pack.pack_step(supervised, length=16, rows=1, batch=2)
  assert flops.pair_lengths(view).tolist() == [[2, 3, 0]]
