# SPDX-License-Identifier: Apache-2.0
"""A value head stands beside the language model and leaves it as it is."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax.data import pack
from mrpo_jax.data.encode import Encoded
from mrpo_jax.generation import Sampling, generate
from mrpo_jax.models import lora, packed, parameters, transformer, weights
from mrpo_jax.models.attention.layout import RowLayout
from mrpo_jax.models.config import VALUED
from mrpo_jax.models.packed import Computation
from mrpo_jax.rows import micro_batch
from tests.training.test_objective import CONFIG, params_of

CONFIG_V = dataclasses.replace(CONFIG, head=VALUED)
XLA = Computation(kernel="xla")
PAIRS = [
  Encoded([5, 9, 3], [4, 8, 8, 2], []),
  Encoded([7], [6], []),
  Encoded([3, 3, 4, 9, 5], [11, 5], []),
]


def head_of():
  return jnp.sin(jnp.arange(1.0, CONFIG.width + 1))[None]


def valued(head=None):
  return params_of(0) | {"value_head": head_of() if head is None else head}


def rows_of(rows=2):
  return micro_batch(pack.pack(PAIRS, length=24, rows=rows), 0)


def figures_of(params, config=CONFIG_V, also=("value",)):
  return packed.token_figures(
    config, params, rows_of(), len(PAIRS), XLA, also=also
  )


def test_a_value_is_of_what_was_said_before_the_token():
  params, rows = valued(), rows_of()
  found = figures_of(params)
  for n, pair in enumerate(PAIRS):
    ids = jnp.array([pair.prompt_ids + pair.chosen_ids])
    ones, start = jnp.ones_like(ids), len(pair.prompt_ids) - 1
    places = jnp.arange(ids.shape[1])[None]
    hidden_1TD = transformer.hidden(
      CONFIG, params, ids, RowLayout(places, ones, 0 * ones), kernel="xla"
    )
    want_T = (hidden_1TD[0] @ params["value_head"][0])[start:-1]
    got_T = found["value"][rows.slots_RM == 2 * n]
    np.testing.assert_allclose(got_T, want_T, rtol=1e-5, atol=1e-5)
  assert found["value"].dtype == jnp.float32


def test_the_language_model_is_as_it_is_without_one():
  plain = figures_of(params_of(0), CONFIG, also=("entropy",))
  found = figures_of(valued(), also=("value", "entropy"))
  assert set(found) == {"logp", "entropy", "value"}
  for name in plain:
    np.testing.assert_array_equal(found[name], plain[name])
  ids = jnp.array([[3, 8, 4]])
  np.testing.assert_array_equal(
    transformer.apply(CONFIG_V, valued(), ids),
    transformer.apply(CONFIG, params_of(0), ids),
  )
  config, params = parameters.language_model(CONFIG_V, valued())
  assert config == CONFIG and "value_head" not in params
  assert params["embed"] is params_of(0)["embed"]


def test_all_micro_batches_have_values():
  rows = pack.pack(PAIRS, length=24, rows=1)
  found = packed.all_token_figures(
    CONFIG_V, valued(), rows, len(PAIRS), XLA, also=("value",)
  )
  total_BC = packed.per_response(found["value"], rows.slots_RM, len(PAIRS))
  want_BC = packed.per_response(
    figures_of(valued())["value"], rows_of().slots_RM, len(PAIRS)
  )
  np.testing.assert_allclose(total_BC, want_BC, rtol=1e-5)


def test_its_gradient_reaches_the_decoder_under_it():
  @jax.jit
  @jax.grad
  def grad(params):
    value_RM = figures_of(params)["value"]
    return jnp.sum(jnp.where(rows_of().slots_RM < 6, value_RM, 0.0))

  found = grad(valued())
  assert np.abs(found["value_head"]).max() > 0 and not found["head"].any()
  assert np.abs(found["blocks"]["up"]).max() > 0
  # A head of zeros hands on nothing, so that the first step moves it alone.
  found = grad(valued(head=jnp.zeros((1, CONFIG.width))))
  assert np.abs(found.pop("value_head")).max() > 0
  assert not any(one.any() for one in jax.tree.leaves(found))


def test_it_starts_at_zero_beside_the_same_weights():
  key = jax.random.key(3)
  made = parameters.init(CONFIG_V, key)
  value = made.pop("value_head")
  assert value.shape == (1, CONFIG.width) and not value.any()
  plain = parameters.init(CONFIG, key)
  assert jax.tree.all(jax.tree.map(jnp.array_equal, made, plain))


def test_an_adapter_trains_it_whole():
  adapter = lora.Adapter(2, 4.0, ("query", "down"))
  own = lora.adapter_table(parameters.table(CONFIG_V), adapter)
  assert set(own) == {"blocks", "value_head"}
  arrays = lora.init_adapters(own, jax.random.key(1))
  arrays["value_head"] = head_of()
  whole = lora.attach(
    valued(head=jnp.zeros((1, CONFIG.width))), arrays, adapter
  )
  base, trained = lora.split(whole)
  assert base["value_head"] is None and set(trained) == {"blocks", "value_head"}
  joined = lora.join(base, trained)
  np.testing.assert_array_equal(joined["value_head"], head_of())
  np.testing.assert_array_equal(lora.merge(joined)["value_head"], head_of())
  assert set(parameters.language_model(CONFIG_V, trained)[1]) == {"blocks"}


def test_integers_leave_it_alone():
  table = parameters.table(CONFIG_V)
  small = weights.quantize(valued(), table, "int8")
  np.testing.assert_array_equal(small["value_head"], head_of())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_samples_are_those_of_the_language_model(temperature):
  sample = functools.partial(
    generate,
    prompts=[pair.prompt_ids for pair in PAIRS],
    sampling=Sampling(temperature=temperature, max_new_tokens=5),
    seed=4,
  )
  assert sample(CONFIG_V, valued()) == sample(CONFIG, params_of(0))
