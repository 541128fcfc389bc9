# SPDX-License-Identifier: Apache-2.0
"""The train step of an adapter: the laws of test_step.py hold for it."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from mrpo_jax.data import pack
from mrpo_jax.models import lora, parameters
from mrpo_jax.training import train_state
from mrpo_jax.training.figures import policy_parts, reference_figures
from mrpo_jax.training.held_out import evaluated
from tests.training import test_step

CONFIG, BATCH = test_step.CONFIG, test_step.BATCH
TABLE = parameters.table(CONFIG)
ADAPTER = lora.Adapter(4, 8.0, ("query", "out", "up"), dropout=0.5)


def policy_of(dropout=0.5):
  """(base, trained); `b` is not zero, so that everything has a gradient."""
  adapter = dataclasses.replace(ADAPTER, dropout=dropout)
  params = test_step.params_of()
  table = lora.adapter_table(TABLE, adapter)
  init = jax.jit(functools.partial(lora.init_adapters, table))
  arrays = init(jax.random.key(0))
  arrays = jax.tree.map(lambda array: array + 0.01, arrays)
  return lora.split(lora.attach(params, arrays, adapter))


def gradient_of(policy, references, view, step=0):
  base, trained = policy
  objective = test_step.objective_of(K=len(references))
  method_state = objective.method.init(len(references))
  state = train_state.create(trained, test_step.KEEP, method_state)
  state = state.replace(step=np.int32(step))
  state, metrics = test_step.compiled_gradient(objective)(
    state, base, references, (view,), {}
  )
  return metrics, state.opt_state.trace


@pytest.mark.slow
def test_micro_batches_equal_one_batch(rng):
  pairs = test_step.some_pairs(rng, BATCH)
  policy = policy_of(dropout=0.0)
  references = (lora.strip(policy[0]),)
  (many, a), (one, b) = (
    gradient_of(policy, references, (pack.pack(pairs, length=48, rows=rows),))
    for rows in (1, BATCH)
  )
  np.testing.assert_allclose(many["loss"], one["loss"], rtol=1e-6)
  assert set(a["blocks"]) == {"query", "out", "up"}
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(y).max())


def test_dropout_is_drawn_for_each_step_and_not_in_evaluation(rng):
  view = (pack.pack(test_step.some_pairs(rng, BATCH), length=48),)
  policy = policy_of()
  references = (lora.strip(policy[0]),)
  first, again, second = (
    gradient_of(policy, references, view, step)[0]["loss"] for step in (0, 0, 1)
  )
  assert first == again != second
  objective = test_step.objective_of()
  fixed = jax.jit(reference_figures, static_argnums=0)(
    objective, references, (view,), {}
  )
  figures_of = jax.jit(evaluated, static_argnums=0)
  with_dropout, without = (
    figures_of(objective, references, *given, 0, (view,), fixed)
    for given in (policy, policy_of(dropout=0.0))
  )
  np.testing.assert_array_equal(with_dropout.logp_BC, without.logp_BC)
  assert len(policy_parts(objective, (view,), fixed)) == len(view)
