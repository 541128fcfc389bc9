# SPDX-License-Identifier: Apache-2.0
"""Adapters: made, attached, split off and merged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import parallel
from mrpo_jax.models import lora, transformer, weights
from mrpo_jax.training import optimizer
from tests.material.adapted import (
  ADAPTER,
  CONFIG,
  TABLE,
  TOKENS_BT,
  adapted,
  adapters_of,
  logits,
  params_of,
)


def test_scale_is_alpha_over_the_rank_or_over_its_root():
  assert lora.Adapter(rank=16, alpha=8.0).scale == 0.5
  assert lora.Adapter(rank=16, alpha=8.0, rslora=True).scale == 2.0


def test_a_new_adapter_changes_no_bit():
  want = logits(params_of(), TOKENS_BT)
  np.testing.assert_array_equal(logits(adapted(trained=False), TOKENS_BT), want)
  assert np.abs(logits(adapted(), TOKENS_BT) - want).max() > 1e-2


def test_a_new_adapter_starts_as_peft_starts_it():
  arrays = adapters_of(trained=False)["blocks"]["out"]
  # Uniform within 1 / sqrt(inputs), of 4 heads x 8.
  bound = np.abs(np.asarray(arrays["a"])).max() * np.sqrt(32)
  assert 0.9 < bound <= 1.0
  assert abs(np.mean(arrays["a"])) < 0.2 * bound / np.sqrt(32)
  assert not np.any(arrays["b"])


def test_a_new_adapter_has_the_type_of_a_trained_one():
  # A weak type is another argument: the first step would compile twice.
  new = adapters_of(trained=False)
  assert not any(array.weak_type for array in jax.tree.leaves(new))


def test_a_new_adapter_does_not_depend_on_jax_enable_x64():
  want = adapters_of(trained=False)
  with jax.enable_x64(True):
    for a, b in zip(
      *map(jax.tree.leaves, (adapters_of(trained=False), want)), strict=True
    ):
      assert a.dtype == b.dtype == jnp.float32
      np.testing.assert_array_equal(a, b)


def test_off_is_the_same_arrays():
  params = params_of()
  stripped = lora.strip(adapted(params=params))
  assert jax.tree.structure(stripped) == jax.tree.structure(params)
  for a, b in zip(
    jax.tree.leaves(stripped), jax.tree.leaves(params), strict=True
  ):
    assert a is b


def test_merged_computes_the_same():
  merged = lora.merge(adapted())
  want = logits(adapted(), TOKENS_BT)
  gap = np.abs(logits(merged, TOKENS_BT) - want).max()
  assert gap < 1e-6 * np.abs(want).max()


OWN = dataclasses.replace(ADAPTER, scales=(("out", (0.5, 3.0)),))


def test_scales_of_layers_are_those_of_two_adapters():
  def of(scale):
    arrays = adapters_of()
    factors = jnp.asarray([0.5, 3.0])[:, None, None] / scale
    arrays["blocks"]["out"]["b"] *= factors
    return lora.attach(params_of(), arrays, ADAPTER)

  own = lora.attach(params_of(), adapters_of(), OWN)
  want = logits(of(ADAPTER.scale), TOKENS_BT)
  scale = np.abs(want).max()
  assert np.abs(logits(own, TOKENS_BT) - want).max() < 1e-6 * scale
  assert np.abs(logits(lora.merge(own), TOKENS_BT) - want).max() < 1e-6 * scale
  assert np.abs(logits(adapted(), TOKENS_BT) - want).max() > 1e-2 * scale


def test_scales_of_layers_are_frozen():
  frozen, trained = lora.split(lora.attach(params_of(), adapters_of(), OWN))
  assert set(trained["blocks"]["out"]) == {"a", "b"}
  np.testing.assert_array_equal(frozen["blocks"]["out"].scales, [0.5, 3.0])
  again = lora.join(frozen, trained)
  assert again["blocks"]["out"].scales is frozen["blocks"]["out"].scales


def test_merged_keeps_the_dtype_and_sums_in_float32():
  base = params_of(dtype=jnp.bfloat16)
  arrays = adapters_of()
  merged = lora.merge(lora.attach(base, arrays, ADAPTER))
  assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {
    jnp.dtype("bfloat16")
  }
  pair, old = arrays["blocks"]["down"], base["blocks"]["down"]
  want = np.asarray(old, np.float32) + 2.0 * np.einsum(
    "LFr,LrD->LFD", pair["a"], pair["b"]
  )
  np.testing.assert_array_equal(
    merged["blocks"]["down"], jnp.asarray(want).astype(jnp.bfloat16)
  )


def test_split_and_join_are_inverse():
  params = adapted()
  frozen, trained = lora.split(params)
  assert set(trained["blocks"]) == {"query", "out", "down"}
  assert jax.tree.leaves(frozen) == jax.tree.leaves(lora.strip(params))
  again = lora.join(frozen, trained)
  assert jax.tree.structure(again) == jax.tree.structure(params)
  plain = params_of()
  assert lora.split(plain) == (None, plain)
  assert lora.join(None, plain) is plain


def test_gradients_reach_the_adapters_alone():
  frozen, trained = lora.split(adapted())

  def loss(trained):
    params = lora.join(frozen, trained)
    return jnp.sum(jnp.square(transformer.apply(CONFIG, params, TOKENS_BT)))

  gradient = jax.jit(jax.grad(loss))(trained)
  assert jax.tree.structure(gradient) == jax.tree.structure(trained)
  assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(gradient))
  decays = optimizer.decays(trained)
  assert all(jax.tree.leaves(decays))


def test_dropout_draws_for_each_layer_and_matrix_and_is_off_without_a_key():
  adapter = lora.Adapter(rank=4, alpha=8.0, targets=("gate", "up"), dropout=0.5)
  frozen, trained = lora.split(adapted(adapter=adapter))
  params = lora.join(frozen, trained, jax.random.key(0))
  keys = [params["blocks"][name].key for name in ("gate", "up")]
  assert len(np.unique(jax.random.key_data(jnp.concatenate(keys)), axis=0)) == 4
  x = jnp.ones((1, 512, 32))
  layer = jax.tree.map(lambda array: array[0], params["blocks"]["gate"])
  dropped = weights._dropped(x, layer)
  assert set(np.unique(dropped)) == {0.0, 2.0}
  assert np.mean(np.asarray(dropped) > 0) == pytest.approx(0.5, abs=0.02)
  with jax.enable_x64(True):
    np.testing.assert_array_equal(weights._dropped(x, layer), dropped)
  off = lora.join(frozen, trained)
  np.testing.assert_array_equal(weights._dropped(x, off["blocks"]["gate"]), x)
  assert np.any(logits(params, TOKENS_BT) != logits(off, TOKENS_BT))
  again = lora.join(frozen, trained, jax.random.key(0))
  np.testing.assert_array_equal(
    logits(params, TOKENS_BT), logits(again, TOKENS_BT)
  )


def test_an_adapter_is_split_over_the_mesh_as_its_base():
  mesh = parallel.make_mesh(data=2, fsdp=2, model=2)
  table = lora.adapter_table(TABLE, ADAPTER)["blocks"]
  to = parallel.table_shardings(table, mesh)
  width = ("fsdp", "context")
  assert tuple(to["query"]["a"].spec) == (None, width, None)
  assert tuple(to["query"]["b"].spec) == (None, None, "model", None)
  assert tuple(to["out"]["a"].spec) == (None, "model", None, None)
  assert tuple(to["out"]["b"].spec) == (None, None, width)


@pytest.mark.parametrize(
  "changes,match",
  [
    (
      dict(targets=("q_proj",)),
      "targets: 'q_proj' is no matrix.*known: all, q",
    ),
    (dict(targets=("attention_norm",)), "'attention_norm' is no matrix"),
    (dict(rank=33), "rank=33 is larger than query, of rank 32"),
    (dict(rank=17, targets=("all",)), "rank=17 is larger than key, of rank 16"),
  ],
)
def test_an_adapter_that_does_not_fit_is_refused(changes, match):
  adapter = lora.Adapter(
    **{"rank": 4, "alpha": 8.0, "targets": ("query",), **changes}
  )
  with pytest.raises(ValueError, match=match):
    lora.adapter_table(TABLE, adapter)
