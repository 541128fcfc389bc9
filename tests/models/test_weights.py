# SPDX-License-Identifier: Apache-2.0
"""Leaves that are more than an array: adapters and integers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from mrpo_jax import parallel
from mrpo_jax.models import lora, parameters, transformer, weights
from mrpo_jax.models.config import ModelConfig
from mrpo_jax.training import optimizer

CONFIG = ModelConfig(
  vocab_size=64,
  width=32,
  layers=2,
  heads=4,
  kv_heads=2,
  head_dim=8,
  mlp_width=64,
)
TABLE = parameters.table(CONFIG)
ADAPTER = lora.Adapter(rank=4, alpha=8.0, targets=("query", "out", "down"))


def params_of(seed=0, dtype=jnp.float32):
  return parameters.init(CONFIG, jax.random.key(seed), dtype)


def adapters_of(adapter=ADAPTER, seed=1, trained=True):
  """Arrays of an adapter, `b` away from zero where it is `trained`."""
  table = lora.adapter_table(TABLE, adapter)
  arrays = lora.init_adapters(table, jax.random.key(seed))
  if trained:
    arrays = jax.tree.map(
      lambda array: (
        array + 0.1 * jax.random.normal(jax.random.key(7), array.shape)
      ),
      arrays,
    )
  return arrays


def adapted(trained=True, params=None, adapter=ADAPTER):
  params = params_of() if params is None else params
  return lora.attach(params, adapters_of(adapter, trained=trained), adapter)


TOKENS_BT = jnp.arange(24).reshape(2, 12) * 5 % 64
logits = jax.jit(functools.partial(transformer.apply, CONFIG))


@pytest.mark.parametrize(
  "einsum,shape,inputs,want",
  [
    ("RTD,DHE->RTHE", (3, 2, 2), 1, ("RTD,Dr->RTr", "RTr,rHE->RTHE")),
    ("RTHE,HED->RTD", (2, 2, 3), 2, ("RTHE,HEr->RTr", "RTr,rD->RTD")),
    ("RTD,DF->RTF", (3, 4), 1, ("RTD,Dr->RTr", "RTr,rF->RTF")),
  ],
)
def test_a_product_through_the_rank(rng, einsum, shape, inputs, want):
  assert weights._through_rank(einsum) == want
  x = jnp.asarray(rng.normal(size=(1, 5, *shape[:inputs])))
  base = jnp.asarray(rng.normal(size=shape))
  a = jnp.asarray(rng.normal(size=(*shape[:inputs], 2)))
  b = jnp.asarray(rng.normal(size=(2, *shape[inputs:])))
  leaf = weights.LoRA(base, a, b, 0.5)
  whole = base + 0.5 * jnp.tensordot(a, b, axes=1)
  np.testing.assert_allclose(
    weights.project(x, leaf, einsum),
    jnp.einsum(einsum, x, whole),
    rtol=1e-4,
    atol=1e-5,
  )


def test_hand_value():
  # x = (1, 2); base gives 1*3 + 2*4 = 11; a gives 1*1 + 2*(-1) = -1, b doubles
  # it to -2, and the scale halves that: 11 - 1 = 10.
  leaf = weights.LoRA(
    jnp.array([[3.0], [4.0]]),
    jnp.array([[1.0], [-1.0]]),
    jnp.array([[2.0]]),
    0.5,
  )
  assert weights.project(jnp.array([[1.0, 2.0]]), leaf, "TD,DF->TF") == 10.0


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
  assert tuple(to["query"]["a"].spec) == (None, "fsdp", None)
  assert tuple(to["query"]["b"].spec) == (None, None, "model", None)
  assert tuple(to["out"]["a"].spec) == (None, "model", None, None)
  assert tuple(to["out"]["b"].spec) == (None, None, "fsdp")


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


# Integers.


def test_int8_by_hand():
  # The largest of an output stands at 127.5 steps, and everything is rounded
  # to a whole step: 51 of 127.5 with absmax 1.0 is 0.4.
  weight = jnp.array([[1.0, 10.0], [0.4, -2.0], [0.001, 0.0]])
  leaf = weights._quantized(weight, 0, 1, ())
  np.testing.assert_allclose(leaf.scale, [[1 / 127.5, 10 / 127.5]], rtol=1e-6)
  # 127.5 is clipped to 127; -2 is 25.5 steps: to even, -26; 0.001 is 0.1 steps.
  np.testing.assert_array_equal(leaf.qvalue, [[127, 127], [51, -26], [0, 0]])
  got = weights.project(jnp.eye(3), leaf, "TD,DF->TF")
  want = np.array([[127, 1270], [51, -260], [0, 0]]) / 127.5
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_int4_by_hand():
  # Groups of two inputs, each with its own step: the largest over 7.5.
  weight = jnp.array([[7.5], [3.0], [0.75], [-0.3]])
  leaf = weights._quantized(weight, 0, 1, ((0, 2),))
  assert leaf.qvalue.dtype == jnp.int4
  want = [[1.0], [jnp.bfloat16(0.1)]]
  np.testing.assert_array_equal(leaf.scale.astype(jnp.float32), want)
  # 7.5 is clipped to 7; -0.3 is 3 steps of 0.1.
  np.testing.assert_array_equal(leaf.qvalue.astype(int), [[7], [3], [7], [-3]])


def bytes_of(tree):
  """Of the arrays on the device, where int4 takes half a byte."""
  return sum(
    array.size * (0.5 if array.dtype == jnp.int4 else array.dtype.itemsize)
    for array in jax.tree.leaves(tree)
  )


@pytest.mark.parametrize(
  "kind,error,bits", [("int8", 0.01, 8), ("int4", 0.2, 4.5)]
)
def test_quantised_weights_are_near_and_small(kind, error, bits):
  params = params_of(dtype=jnp.bfloat16)
  small = weights.quantize(params, TABLE, kind, group=8)
  want, got = (
    np.asarray(weights.dense(tree["blocks"]["down"], jnp.float32))
    for tree in (params, small)
  )
  assert np.abs(got - want).max() < error * np.abs(want).max()
  leaf = small["blocks"]["down"]
  assert leaf.shape == want.shape
  scales = leaf.scale.size * leaf.scale.dtype.itemsize
  # int8 halves bfloat16, int4 quarters it; the scales come on top.
  assert bytes_of(leaf) - scales == want.size * (1 if kind == "int8" else 0.5)
  for name in ("attention_norm", "mlp_norm"):
    assert small["blocks"][name] is params["blocks"][name]
  assert small["embed"].qvalue.dtype == jnp.int8
  assert small["embed"].scale.shape == (64, 1)
  got, want = logits(small, TOKENS_BT), logits(params, TOKENS_BT)
  assert np.abs(got - want).max() < 4 * error * np.abs(want).max()


def test_dequantised_first_or_in_the_product_is_the_same():
  small = weights.quantize(params_of(), TABLE, "int4", group=8)
  plain = lora.merge(small)
  assert {leaf.dtype for leaf in jax.tree.leaves(plain)} == {
    jnp.dtype("float32")
  }
  np.testing.assert_array_equal(
    logits(plain, TOKENS_BT), logits(small, TOKENS_BT)
  )


@pytest.mark.parametrize(
  "group,tiles",
  [
    (8, ((2, 8), (1, 1))),
    (4, ((2, 4), (1, 1))),
    (16, ((2, 8), (1, 2))),
    (32, ((2, 8), (1, 4))),
  ],
)
def test_groups_go_over_heads(group, tiles):
  assert weights._tiles("out", TABLE["blocks"]["out"], group) == tiles


def test_a_group_of_one_and_a_half_heads_is_refused():
  with pytest.raises(ValueError, match="of 12 do not divide the 4 x 8 inputs"):
    weights._tiles("out", TABLE["blocks"]["out"], 12)


@pytest.mark.parametrize("group", [3, 12, 24, 64, 128])
def test_groups_that_do_not_divide_are_refused(group):
  with pytest.raises(ValueError, match=f"groups of {group} do not divide"):
    weights.quantize(params_of(), TABLE, "int4", group=group)


def test_gradients_go_through_integers_and_keep_no_floats_of_them():
  small = weights.quantize(params_of(), TABLE, "int8")
  frozen, trained = lora.split(adapted(params=small))

  def loss(frozen, trained):
    params = lora.join(frozen, trained)
    return jnp.sum(jnp.square(transformer.apply(CONFIG, params, TOKENS_BT)))

  plain, _ = lora.split(adapted(params=lora.merge(small)))
  gradient = jax.jit(jax.grad(loss, argnums=1))
  for got, want in zip(
    jax.tree.leaves(gradient(frozen, trained)),
    jax.tree.leaves(gradient(plain, trained)),
    strict=True,
  ):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
  # What the forward pass leaves for the backward one: no [L, D, F] of floats.
  _, pull = jax.vjp(functools.partial(loss, frozen), trained)
  kept = {
    (array.shape, array.dtype)
    for array in jax.tree.leaves(pull)
    if hasattr(array, "shape")
  }
  assert ((2, 64, 32), jnp.dtype("int8")) in kept
  assert not [s for s, d in kept if s == (2, 64, 32) and d != jnp.int8]


def test_quantised_on_a_mesh_stays_split():
  mesh = parallel.make_mesh(data=1, fsdp=4, model=2)
  params = jax.device_put(params_of(), parallel.param_shardings(CONFIG, mesh))
  small = weights.quantize(params, TABLE, "int4", group=8)
  leaf = small["blocks"]["down"]
  assert isinstance(leaf, qwix.QArray)
  shard = leaf.qvalue.addressable_shards[0].data.shape
  assert shard == (2, 32, 8)
  np.testing.assert_array_equal(
    weights.dense(leaf, jnp.float32),
    weights.dense(
      weights.quantize(params_of(), TABLE, "int4", group=8)["blocks"]["down"],
      jnp.float32,
    ),
  )
