# SPDX-License-Identifier: Apache-2.0
"""The state of training, on a mesh."""

import jax
import optax

from mrpo_jax import losses, parallel
from mrpo_jax.models import parameters
from mrpo_jax.training import optimizer, train_state
from tests.test_parallel import CONFIG


def test_parameters_and_their_moments_are_split_alike():
  mesh = parallel.make_mesh(data=2, fsdp=2, model=2)
  transformation, _ = optimizer.make(peak_lr=1e-3, steps=4)
  memory = losses.build("mrpo", weights="sliding_window").init(2)
  table = parameters.table(CONFIG)
  shardings = train_state.shardings(table, transformation, mesh, memory)
  state = jax.jit(
    lambda key: train_state.create(
      parameters.init(CONFIG, key), transformation, memory
    ),
    out_shardings=shardings,
  )(jax.random.key(0))
  gate = state.params["blocks"]["gate"]
  assert gate.addressable_shards[0].data.shape == (2, 8, 16)
  moments = optax.tree.get(state.opt_state, "mu")["blocks"]["gate"]
  assert moments.sharding == gate.sharding
  assert state.method_state["weights"].sharding.is_fully_replicated
