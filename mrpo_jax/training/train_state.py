# SPDX-License-Identifier: Apache-2.0
"""State of training from step to step, and the reference that moves with it."""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
import optax

from mrpo_jax import losses, parallel
from mrpo_jax.models import lora, parameters
from mrpo_jax.training import value


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
  # What the rounds of an online run keep, which no step changes: arrays, or
  # the TrainState of what labels.
  online: dict = flax.struct.field(default_factory=dict)


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
    table: tree of ArraySpec of what is trained: `parameters.table`, or
      `lora.adapter_table`.
    transformation: optax transformation.
    mesh: jax.sharding.Mesh.
    method_state: see `Method.init`.
    rules: changes to `parallel.RULES`; see `parallel.rules_of`.
    moving: see `create`.
  """
  param_shardings = parallel.table_shardings(table, mesh, rules)
  everywhere = parallel.replicated(mesh)
  params = parameters.map_specs(
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


@dataclasses.dataclass(frozen=True)
class ReferenceMoves:
  """Rule by which reference 0 follows the policy; with 0 steps it stays."""

  every: int = 0  # TR-DPO: steps between updates
  rate: float = 1.0  # how far it moves then; 1: the policy itself
  round: int = 0  # APO: steps of a round
  alpha: float = 0.0  # how far the next round starts beyond the outcome

  @property
  def names(self):
    """The entries of `TrainState.moving` that it needs."""
    if self.round:
      return ("reference", "previous")
    return ("reference",) if self.every else ()

  def __call__(self, state, transformation):
    """The state from which the next step starts.

    Source: TR-DPO, arXiv:2404.09656; APO, arXiv:2410.06293, equation 3.7: the
    next round's policy and reference are the extrapolated outcome, and its
    optimizer starts anew, with that of a value network, whose weights stay.
    """
    is_first = state.step == 0

    def updated(state):
      reference = losses.ema(
        state.moving["reference"], state.params, rate=self.rate
      )
      return state.replace(moving={**state.moving, "reference": reference})

    def next_round(state):
      params = losses.accelerate(
        state.params, state.moving["previous"], alpha=self.alpha
      )
      return state.replace(
        params=params,
        opt_state=transformation.init(params),
        method_state=value.restarted(transformation, state.method_state),
        moving={"reference": params, "previous": state.params},
      )

    for steps, moved in ((self.every, updated), (self.round, next_round)):
      if steps:
        is_due = ~is_first & (state.step % steps == 0)
        state = jax.lax.cond(is_due, moved, lambda state: state, state)
    return state


def moved_references(state, base, references):
  """References with the one that moves in its present place."""
  if "reference" not in state.moving:
    return references
  first = lora.join(base, state.moving["reference"])
  return (first, *references[1:])
