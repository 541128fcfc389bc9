# SPDX-License-Identifier: Apache-2.0
"""Every loss by its name takes five steps; whole runs are in tests/whole."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import pytest

from mrpo_jax import losses
from mrpo_jax.data import pack
from mrpo_jax.losses.methods.catalogue import OF_TOKENS
from mrpo_jax.models import parameters
from mrpo_jax.models.packed import Computation
from mrpo_jax.runs.config import read
from mrpo_jax.runs.config.method import chosen_method
from mrpo_jax.training import optimizer, train_state, value
from mrpo_jax.training.objective import Model, Objective
from mrpo_jax.training.step import train_step
from tests.material.config import get_config
from tests.training.test_objective import CONFIG, PAIRS, params_of, some_pairs


def model_of(head):
  config = dataclasses.replace(CONFIG, head=head)
  return Model(config, computation=Computation(kernel="xla"))


MODEL = model_of("tokens")


# Functions of a pair's log-probabilities alone.  To the step they are `dpo`;
# tests/losses has the values and gradients of each.
LIKE_DPO = (
  *("apo_down", "apo_zero", "bco", "bdpo", "bpo", "cal_dpo", "chi_po"),
  *("combine", "discopop", "dpop", "squared_po"),
  *("exo", "f_dpo", "focal_dpo", "forward_kl_dpo", "hinge", "hypo", "ipo"),
  *("kto", "mallows_phi", "minor_dpo", "nca", "robust_dpo", "sppo"),
  "sppo_hard",
)
NAMES = [
  pytest.param(name, marks=[pytest.mark.slow] if name in LIKE_DPO else [])
  for name in losses.names()
  if name not in OF_TOKENS  # of rollouts: see test_token_steps.py
]


@pytest.mark.parametrize("name", NAMES)
def test_five_steps_of_every_method(name):
  config = read(get_config(name).to_dict())
  names = config.references.names
  policy = model_of(config.policy.head)
  objective = Objective(
    pairs=PAIRS,
    policy=policy,
    references=(MODEL,) * len(names),
    names=names,
    method=chosen_method(config),
  )
  objective.check()
  transformation, _ = optimizer.make(**dict(config.optimizer), steps=5)
  # One part: long and short rows would be two loops to compile.
  rows = pack.pack(
    some_pairs(),
    length=48,
    rows=2,
    mark_differences=objective.method.reads_differences,
  )
  step = functools.partial(
    train_step, objective=objective, transformation=transformation
  )
  step = jax.jit(step)
  references = tuple(params_of(1 + k) for k in range(len(names)))
  params = params_of(0)
  if config.policy.head == "scalar":
    params = parameters.init(policy.config, jax.random.key(0))
  rewarded = objective.needs("aux_reward_BC")
  given = {"aux_reward_BC": jnp.ones((PAIRS, 2))} if rewarded else {}
  if objective.method.unpaired:
    given["desirable_B"] = jnp.arange(PAIRS) % 2 == 0
  own = value.start(objective, transformation, 0)
  state = train_state.create(
    params, transformation, objective.method.init(len(names)) | own
  )
  for done in range(1, 6):
    state, metrics = step(state, None, references, ((rows,),), given)
    metrics = {key: float(value) for key, value in metrics.items()}
    assert state.step == done
    assert all(map(math.isfinite, metrics.values())), metrics
    assert metrics["grad_norm"] > 0
    assert name == "nll" or "rewards/accuracies" in metrics
