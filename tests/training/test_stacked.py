# SPDX-License-Identifier: Apache-2.0
"""References that differ in their numbers alone are one program."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mrpo_jax.data import pack
from mrpo_jax.models import lora
from mrpo_jax.models.packed import Computation
from mrpo_jax.training import train_state
from mrpo_jax.training.objective import Model
from mrpo_jax.training.stacked import Stacked, stack
from mrpo_jax.training.step import train_step
from tests.training import test_objective
from tests.training.test_objective import CONFIG, OTHER, objective_of, params_of


def objective(K, name="mrpo", **hyper):
  hyper = dict(weights="uniform") | hyper
  return objective_of(name, K=K, **hyper)


def other_shape():
  return params_of(5, OTHER)


def test_those_alike_stand_together_and_say_the_same():
  some = dataclasses.replace(
    objective(3), references=(Model(CONFIG), Model(OTHER), Model(CONFIG))
  )
  trees = (params_of(1), other_shape(), params_of(2))
  copies = [jax.tree.map(jnp.copy, tree) for tree in trees]
  stacked = stack(some.references, copies)
  assert isinstance(stacked[0], Stacked) and stacked[0].members == (0, 2)
  assert stacked[1] is copies[1] and stacked[2] is None
  assert all(array.is_deleted() for array in jax.tree.leaves(copies[::2]))
  pairs = test_objective.some_pairs()
  got, got_gradient, _ = test_objective.step(some, stacked, pairs)
  want, want_gradient, _ = test_objective.step(some, trees, pairs)
  for name, value in want.items():
    np.testing.assert_allclose(got[name], value, rtol=2e-5, err_msg=name)
  for a, b in zip(
    jax.tree.leaves(got_gradient), jax.tree.leaves(want_gradient), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def products(K):
  """Matrix products in the program of a step with K references alike."""
  some = objective(K)
  copies = [jax.tree.map(jnp.copy, params_of(k)) for k in range(1, K + 1)]
  references = stack(some.references, copies)
  keep = optax.trace(decay=0.0)
  view = pack.pack_step(
    test_objective.some_pairs(),
    length=48,
    rows=1,
    batch=test_objective.PAIRS,
  )
  state = train_state.create(params_of(0), keep, some.method.init(K))
  function = functools.partial(train_step, objective=some, transformation=keep)
  lowered = jax.jit(function).lower(state, None, references, (view,), {})
  return lowered.as_text().count("dot_general")


def test_four_are_no_larger_a_program_than_two():
  assert products(2) == products(4)


@pytest.mark.parametrize(
  "apart", ["shape", "dtype", "shared", "taken", "model"]
)
def test_what_is_not_alike_stays_as_it_is(apart):
  models, taken = [Model(CONFIG)] * 2, ()
  one, two = params_of(1), params_of(2)
  if apart == "shape":
    two = other_shape()
  elif apart == "dtype":
    two = jax.tree.map(lambda array: array.astype("bfloat16"), two)
  elif apart == "shared":
    two = one
  elif apart == "taken":
    taken = (lora.strip(one),)
  else:
    models[1] = Model(CONFIG, computation=Computation(kernel="xla"))
  got = stack(models, (one, two), taken)
  assert got[0] is one and got[1] is two


def test_nothing_is_lost_where_references_are_scored():
  assert stack([Model(CONFIG, scored=True)] * 2, (None, None)) == (
    None,
    None,
  )
