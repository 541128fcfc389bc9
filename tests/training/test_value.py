# SPDX-License-Identifier: Apache-2.0
"""The value network: where it reads the policy, and that it alone learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mrpo_jax import losses
from mrpo_jax.data import pack
from mrpo_jax.models import transformer
from mrpo_jax.models.attention.layout import RowLayout
from mrpo_jax.rows import micro_batch
from mrpo_jax.training import optimizer, train_state, value
from mrpo_jax.training.figures import policy_figures
from mrpo_jax.training.objective import Model, Objective
from mrpo_jax.training.step import train_step
from tests.training.test_objective import (
  CONFIG,
  PAIRS,
  XLA,
  params_of,
  some_pairs,
)

REWARD_BC = jnp.linspace(0.0, 1.0, 2 * PAIRS).reshape(PAIRS, 2)
KEY = jax.random.key(0)


def objective_of(**given):
  auxiliary = dict(name="hpo", width=8, **given)
  return Objective(
    pairs=PAIRS,
    policy=Model(CONFIG, computation=XLA),
    references=(Model(CONFIG, computation=XLA),),
    names=("base",),
    method=losses.build("dpo", auxiliary=auxiliary),
  )


def rows_of(pairs, rows=2):
  return pack.pack(pairs, length=48, rows=rows)


@functools.cache
def after(steps, rows=2, **given):
  """(state, metrics) after so many steps of one batch."""
  objective, transformation = objective_of(**given), optax.sgd(0.1)
  step = jax.jit(
    functools.partial(
      train_step, objective=objective, transformation=transformation
    )
  )
  own = value.start(objective, transformation, seed=3)
  state = train_state.create(
    params_of(0), transformation, objective.method.init(1) | own
  )
  metrics = None
  for _ in range(steps):
    state, metrics = step(
      state,
      None,
      (params_of(1),),
      ((rows_of(some_pairs(), rows),),),
      {"aux_reward_BC": REWARD_BC},
    )
  return state, metrics


def test_it_reads_the_last_token_of_each_prompt():
  objective, pairs = objective_of(), some_pairs()
  figures = [
    policy_figures(
      *(objective, (), KEY, params_of(0)),
      (micro_batch(rows_of(pairs), a), None, None),
    )
    for a in range(rows_of(pairs).tokens_RT.shape[0])
  ]
  prompt_BD = sum(one.prompt_BD for one in figures)
  for pair, got_D in zip(pairs, prompt_BD, strict=True):
    tokens_1T = jnp.array([pair.prompt_ids])
    ones = jnp.ones_like(tokens_1T)
    layout = RowLayout(
      jnp.arange(tokens_1T.shape[1])[None], ones, jnp.zeros_like(ones)
    )
    want_1TD = transformer.hidden(
      CONFIG, params_of(0), tokens_1T, layout, kernel="xla"
    )
    np.testing.assert_allclose(got_D, want_1TD[0, -1], rtol=1e-4, atol=1e-5)


def test_three_layers_by_hand():
  params = {
    "layer_0": {"weight": jnp.eye(2), "bias": jnp.array([0.0, 1.0])},
    "layer_1": {"weight": 2 * jnp.eye(2), "bias": jnp.array([-1.0, 0.0])},
    "layer_2": {"weight": jnp.array([[1.0], [0.5]]), "bias": jnp.array([0.25])},
  }
  # (3, -4) has root mean square 3.5355: (.8485, -1.1314); then (.8485, 0);
  # (.6971, 0); .6971 + .25.  Ten times the state has the same value.
  got_B = value.value(params, jnp.array([[3.0, -4.0], [30.0, -40.0]]))
  np.testing.assert_allclose(got_B, [0.947056, 0.947056], rtol=1e-5)


def test_it_starts_at_nothing_and_learns_what_is_usual():
  state, metrics = after(1)
  assert float(metrics["auxiliary/value"]) == 0.0
  assert float(metrics["auxiliary/chosen"]) == pytest.approx(
    float(REWARD_BC[:, 0].mean()), rel=1e-6
  )
  state, metrics = after(12, value_weight=5.0)
  assert 0.2 < float(metrics["auxiliary/value"]) < 0.9
  assert state.method_state["steps"] == 12


def leaves(tree):
  return [*map(np.asarray, jax.tree.leaves(tree))]


def test_what_it_learns_gives_the_policy_no_gradient():
  """As long as the likelihood waits, its weight moves the policy in nothing."""
  one, _ = after(2, value_weight=0.1)
  other, _ = after(2, value_weight=5.0)
  for a, b in zip(leaves(one.params), leaves(other.params), strict=True):
    np.testing.assert_array_equal(a, b)
  pairs = zip(
    leaves(one.method_state["value"]),
    leaves(other.method_state["value"]),
    strict=True,
  )
  assert any(np.abs(a - b).max() > 1e-4 for a, b in pairs)


def test_the_likelihood_moves_the_policy_once_it_starts():
  late, _ = after(1, delay=1)
  early, _ = after(1, delay=0)
  moved = zip(leaves(late.params), leaves(early.params), strict=True)
  assert any(np.abs(a - b).max() > 1e-4 for a, b in moved)
  # And the value network not.
  same = zip(
    leaves(late.method_state["value"]),
    leaves(early.method_state["value"]),
    strict=True,
  )
  for a, b in same:
    np.testing.assert_array_equal(a, b)


def test_micro_batches_are_one_batch():
  whole, metrics = after(2, rows=4, delay=0)
  parts, other = after(2, rows=1, delay=0)
  for name in ("loss", "auxiliary/value", "grad_norm"):
    np.testing.assert_allclose(metrics[name], other[name], rtol=1e-4)
  for a, b in zip(
    leaves(whole.method_state), leaves(parts.method_state), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_its_rate_is_a_share_of_the_policys():
  one, _ = after(1)
  ten, _ = after(1, value_rate=10.0)
  start = value.start(objective_of(), optax.sgd(0.1), 3)["value"]["params"]
  for a, b, c in zip(
    leaves(one.method_state["value"]["params"]),
    leaves(ten.method_state["value"]["params"]),
    leaves(start),
    strict=True,
  ):
    np.testing.assert_allclose(10 * (a - c), b - c, rtol=1e-3, atol=1e-6)


def test_its_rate_begins_again_with_a_round():
  transformation, _ = optimizer.make(peak_lr=0.1, steps=2, warmup=0.0)
  network = value.init(KEY, 4, 8)
  own = {"params": network, "opt_state": transformation.init(network)}
  state = train_state.create(
    {"weight": jnp.ones((2, 2))},
    transformation,
    {value.STATE: own},
    moving=("reference", "previous"),
  )

  def stepped(state):
    method_state = value.updated(
      objective_of(), transformation, state.method_state, squares_of
    )
    return state.replace(step=state.step + 1, method_state=method_state)

  outcome = stepped(stepped(state))  # of a round
  moves = train_state.ReferenceMoves(round=2)
  first = stepped(moves(outcome, transformation))
  before, now = (
    one.method_state[value.STATE]["params"]["layer_0"]["weight"]
    for one in (outcome, first)
  )
  np.testing.assert_allclose(jnp.abs(now - before), 0.1, rtol=1e-3)


def squares_of(state):
  tree = state[value.STATE]["params"]
  return sum(jnp.sum(one**2) for one in jax.tree.leaves(tree))


def test_other_methods_have_none():
  objective = Objective(
    pairs=PAIRS,
    policy=Model(CONFIG),
    references=(Model(CONFIG),),
    names=("base",),
    method=losses.build("dpo"),
  )
  assert value.start(objective, optax.sgd(0.1), 0) == {}
