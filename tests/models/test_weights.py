# SPDX-License-Identifier: Apache-2.0
"""Leaves that are more than an array: products with adapters and integers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from mrpo_jax import parallel
from mrpo_jax.models import lora, transformer, weights
from mrpo_jax.models.partition import WHOLE
from tests.material.adapted import (
  CONFIG,
  TABLE,
  TOKENS_BT,
  adapted,
  logits,
  params_of,
)

# What a product with the rounded number gives half a unit away in places.
HALF = jnp.arange(128.0, 256.0, dtype=jnp.bfloat16)


def times(x, factor):
  """The product in float32, rounded once, as torch multiplies by a number."""
  return (np.asarray(x, np.float32) * np.float32(factor)).astype(jnp.bfloat16)


@pytest.mark.parametrize("own", [None, jnp.float32(4 / 3)])
def test_half_precision_does_not_round_the_scale_of_an_adapter(own):
  one, zero = jnp.ones((1, 1)), jnp.zeros((1, 1))
  leaf = weights.LoRA(zero, one, one, scale=4 / 3, scales=own)
  found = weights.project(HALF[None, :, None], leaf, "RTD,DF->RTF")
  np.testing.assert_array_equal(found[0, :, 0], times(HALF, 4 / 3))


def test_half_precision_does_not_round_what_dropout_keeps():
  key = jax.random.key(0)
  leaf = weights.LoRA(None, None, None, scale=1.0, key=key, dropout=0.1)
  found = weights._dropped(HALF, leaf)
  kept = np.asarray(found) != 0
  assert 0.8 < kept.mean() < 1
  want = times(HALF, 1 / 0.9)
  np.testing.assert_array_equal(np.asarray(found)[kept], want[kept])


def test_half_precision_does_not_round_the_scale_of_a_branch():
  config = dataclasses.replace(CONFIG, residual_scale=0.22)
  params = params_of(dtype=jnp.bfloat16)
  layer = jax.tree.map(lambda array: array[0], params["blocks"])
  layer["down"] *= 64
  x = jax.random.normal(jax.random.key(1), (1, 32, 32), jnp.bfloat16)

  def unseen(query, *_, **__):
    return jnp.zeros_like(query)

  still = jnp.ones((1, 32, 1, 4)), jnp.zeros((1, 32, 1, 4))
  given = config, unseen, WHOLE, x, layer, *still, None, None
  branch = transformer.norm(config, x, layer, "mlp_norm")
  branch = transformer.mlp(config, branch, layer, None, WHOLE)
  want = x + times(branch, 0.22)
  np.testing.assert_array_equal(transformer.block(*given), want)


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
