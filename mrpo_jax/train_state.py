# SPDX-License-Identifier: Apache-2.0
"""What a training run carries from step to step, born sharded."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import optax

from mrpo_jax import parallel


@flax.struct.dataclass
class TrainState:
  """The donated argument of the train step: what is trained, nothing else."""

  step: jax.Array  # optimizer steps done
  params: dict
  opt_state: optax.OptState
  method_state: dict  # what the loss remembers; see `Method.init`


def create(params, transformation, method_state):
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=transformation.init(params),
    method_state=method_state,
  )


def shardings(config, transformation, mesh, method_state, rules=None):
  """A TrainState of NamedSharding; moments follow their parameter."""
  param_shardings = parallel.param_shardings(config, mesh, rules)
  everywhere = parallel.replicated(mesh)
  params = parallel.specs.abstract(config)
  state = jax.eval_shape(
    functools.partial(
      create, transformation=transformation, method_state=method_state
    ),
    params,
  )
  opt_state = optax.tree_map_params(
    transformation,
    lambda _, sharding: sharding,
    state.opt_state,
    param_shardings,
    transform_non_params=lambda _: everywhere,
  )
  return TrainState(
    everywhere,
    param_shardings,
    opt_state,
    jax.tree.map(lambda _: everywhere, method_state),
  )
