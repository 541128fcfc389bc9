# SPDX-License-Identifier: Apache-2.0
"""State, frozen arguments and reference moves of the compiled train step."""

import functools

import jax

from mrpo_jax.models import lora, parameters
from mrpo_jax.runs.models import rules_of, starts_alike
from mrpo_jax.training import checkpoints, train_state
from mrpo_jax.training.stacked import stack


def reference_moves(config):
  """train_state.ReferenceMoves of reference 0; None where it stays."""
  update, rounds = config["reference_update"], config["rounds"]
  if rounds["count"] == 1 and not update["every"]:
    return None
  length = config["steps"] // rounds["count"] if rounds["count"] > 1 else 0
  return train_state.ReferenceMoves(
    **update, round=length, alpha=rounds["alpha"]
  )


def frozen_arguments(setup, loaded, moves):
  """Per reference its parameters, None where the step finds it elsewhere.

  Those that differ in their numbers alone are `Stacked`; see `stack`.
  """
  names = setup.config["references"]["names"]
  found = [loaded.get(f"references.{name}") for name in names]
  params = [None if one is None else one.params for one in found]
  if moves is not None:
    params[0] = None
  taken = [loaded["policy"].params]
  if setup.objective.needs("kl_BC"):
    taken.append(params[0])  # which runs beside the policy
  return stack(setup.objective.references, params, taken)


def expected_start(setup, adapter):
  """The first loss, where policy and references agree; else None."""
  policy, *references = setup.described.values()
  alike = functools.partial(starts_alike, policy, adapter)
  if references and all(map(alike, references)):
    return setup.method.start_loss
  return None


def abstract_state(setup, policy, transformation, moves):
  """(TrainState of ShapeDtypeStruct, the function that makes a real one).

  `policy` is models.Loaded; of its arrays only the shapes are looked at.
  """
  table = parameters.table(setup.described["policy"].model.config)
  if policy.adapter is not None:
    table = lora.adapter_table(table, policy.adapter)
  method_state = setup.method.init(len(setup.objective.references))
  moving = () if moves is None else moves.names
  shardings = train_state.shardings(
    table,
    transformation,
    setup.mesh,
    method_state,
    rules=rules_of(setup.config, "policy"),
    moving=moving,
  )
  create = functools.partial(
    train_state.create, transformation=transformation, moving=moving
  )
  _, trained = lora.split(policy.params)
  shapes = jax.eval_shape(create, trained, method_state=method_state)
  return checkpoints.abstract(shapes, shardings), create


def start_state(setup, policy, transformation, moves, plan, say):
  """(TrainState, steps done): restored, or else made and measured."""
  method = setup.method
  abstract, create = abstract_state(setup, policy, transformation, moves)
  restored = checkpoints.restore(setup.workdir, abstract, say=say)
  if restored is not None:
    step, state = restored
    return state, step
  method_state = method.init(len(setup.objective.references))
  if method.measures:
    measured = {split: plan.measured(split) for split in method.measures}
    method_state = method.measure(method_state, **measured)
  shardings = jax.tree.map(lambda array: array.sharding, abstract)
  make = jax.jit(create, out_shardings=shardings)
  _, trained = lora.split(policy.params)
  seed = setup.config["seed"]
  return make(trained, method_state=method_state, seed=seed), 0
