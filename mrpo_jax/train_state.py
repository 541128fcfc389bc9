# SPDX-License-Identifier: Apache-2.0
"""What a training run carries from step to step, born sharded."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import optax

from mrpo_jax import parallel
from mrpo_jax.models import spec as specs


@flax.struct.dataclass
class TrainState:
  """The donated argument of the train step: what is trained, nothing else."""

  step: jax.Array  # optimizer steps done
  seed: jax.Array  # of what the steps draw; no constant of their program
  params: dict
  opt_state: optax.OptState
  method_state: dict  # what the loss remembers; see `Method.init`
  # Trees like params: "reference" where reference 0 moves, and "previous",
  # the outcome of the round before; empty where nothing moves.
  moving: dict = flax.struct.field(default_factory=dict)


def create(params, transformation, method_state, moving=(), seed=0):
  """The state before the first step; `moving` names what starts as a copy."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    seed=jnp.asarray(seed, jnp.int32),
    params=params,
    opt_state=transformation.init(params),
    method_state=method_state,
    moving={name: jax.tree.map(jnp.copy, params) for name in moving},
  )


def shardings(table, transformation, mesh, method_state, rules=None, moving=()):
  """A TrainState of NamedSharding; moments follow their parameter.

  Args:
    table: tree of ArraySpec of what is trained: `spec.table` of a model, or
      `leaves.adapter_table`.
    transformation: optax transformation.
    mesh: jax.sharding.Mesh.
    method_state: see `Method.init`.
    rules: changes to `parallel.RULES`; see `parallel.rules_of`.
    moving: see `create`.
  """
  param_shardings = parallel.table_shardings(table, mesh, rules)
  everywhere = parallel.replicated(mesh)
  params = specs.map_specs(
    lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.float32), table
  )
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
    everywhere,
    param_shardings,
    opt_state,
    jax.tree.map(lambda _: everywhere, method_state),
    dict.fromkeys(moving, param_shardings),
  )
