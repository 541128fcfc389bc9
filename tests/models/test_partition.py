# SPDX-License-Identifier: Apache-2.0
"""What runs on each device by itself equals the whole, on eight devices."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mrpo_jax import parallel
from mrpo_jax.models import head, transformer, weights
from mrpo_jax.models.attention import kernels
from mrpo_jax.models.attention.blockwise import blockwise
from mrpo_jax.models.attention.layout import dense
from mrpo_jax.models.partition import WHOLE
from tests.material.attention import CONFIG, SPLASH, layout_of

THREE = dict(data=2, fsdp=2, model=2)
EXCHANGE = re.compile(r"(all-gather|all-reduce|all-to-all|scatter|permute)\(")


def partition_of(sizes, **rules):
  return parallel.partition_of(parallel.make_mesh(**sizes), rules)


def assert_close(got, want, atol=2e-5):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol)


# Attention.


LAYOUT = layout_of([[(20, 31, 5)], [(7, 1, 1), (9, 8, 7)]] * 4, 60)


def attention_case(rng, H, G):
  """f(kernel): output and gradients of attention, and its arrays."""
  R, T = LAYOUT.segments.shape
  arrays = [
    jnp.asarray(rng.normal(size=(R, T, heads, 8)), jnp.float32)
    for heads in (H, G, G, H)
  ]
  # What padding sees is nobody's business.
  arrays[3] *= (LAYOUT.segments > 0)[:, :, None, None]

  def pulled(kernel, query, key, value, weight):
    def attend(*given):
      return kernel(*given, LAYOUT, jnp.int32(17), scale=0.3, softcap=5.0)

    out, pull = jax.vjp(attend, query, key, value)
    return out * (weight != 0), pull(weight)

  return pulled, arrays


@pytest.mark.parametrize(
  "kernel,heads,sizes,rules",
  [
    ("blockwise", (4, 2), THREE, {}),
    # Four devices share six keys of two queries each: three queries, two keys.
    ("blockwise", (12, 6), dict(data=2, model=4), dict(kv_heads="")),
    # Eight devices and two keys: each takes the one it needs.
    ("splash", (8, 2), dict(data=1, model=8), dict(kv_heads="")),
    ("blockwise", (8, 4), dict(data=4, context=2), {}),
    ("splash", (8, 4), dict(data=2, context=4), {}),
    # Two devices share each key.
    ("blockwise", (8, 2), dict(data=2, context=4), {}),
    ("blockwise", (8, 2), dict(data=2, context=2, model=2), {}),
    # Two keys on every device, each of which sends the other what it needs.
    ("splash", (8, 2), dict(data=1, context=2, model=4), dict(kv_heads="")),
    # As above: three queries of a device, two keys.
    ("blockwise", (12, 6), dict(data=1, context=4, fsdp=2), {}),
  ],
)
def test_kernels_divide_over_rows_and_heads(rng, kernel, heads, sizes, rules):
  kernel = {"blockwise": blockwise, "splash": SPLASH}[kernel]
  partition = partition_of(sizes, **rules)
  pulled, arrays = attention_case(rng, *heads)
  want = jax.jit(functools.partial(pulled, dense))(*arrays)
  many = functools.partial(pulled, kernels.divided(kernel, partition))
  found = jax.jit(many)(*map(partition.joined, arrays))
  shapes = [array.shape for array in jax.tree.leaves(want)]
  assert_close(jax.tree.map(jnp.reshape, jax.tree.leaves(found), shapes), want)


def test_a_divided_kernel_exchanges_nothing(rng):
  partition = partition_of(THREE)
  pulled, arrays = attention_case(rng, 4, 2)
  spec = PartitionSpec(partition.rows, None, partition.heads)
  many = jax.jit(
    functools.partial(pulled, kernels.divided(blockwise, partition)),
    in_shardings=NamedSharding(partition.mesh, spec),
  )
  text = many.lower(*arrays).compile().as_text()
  exchanges = [line for line in text.splitlines() if EXCHANGE.search(line)]
  assert "blockwise_gradient" in text
  # Where no axis is left to sum over, XLA's CPU backend keeps the sum.
  assert all("{{0},{1}" in line for line in exchanges)


def test_which_keys_a_device_takes(monkeypatch):
  def keys(H, G, devices, place):
    monkeypatch.setattr(type(WHOLE), "size", lambda self, axes: devices)
    monkeypatch.setattr(type(WHOLE), "place", lambda self, axes: place)
    return kernels.own_keys(WHOLE, H, G).tolist()

  # Queries 6 to 8 of 12 look at keys 3, 3, 4: three runs of one query.
  assert keys(12, 6, 4, 2) == [3, 3, 4]
  assert keys(8, 2, 8, 5) == [1]  # one query, one key
  assert keys(8, 4, 2, 1) == [2, 3]  # two runs of two


def test_rows_over_context_want_enough_heads():
  partition = partition_of(dict(data=2, context=2, model=2))
  eight = dataclasses.replace(CONFIG, heads=8, kv_heads=1)
  for name in ("auto", "blockwise"):
    kernels.check(name, eight, "float32", "cpu", partition)
    with pytest.raises(
      ValueError, match="some of its 1 heads of queries, and mesh.context=2 "
    ):
      kernels.check(name, CONFIG, "float32", "cpu", partition)
  # The oracle is divided by XLA, whatever there is.
  kernels.check("xla", CONFIG, "float32", "cpu", partition)
  assert kernels.fastest(eight, "float32", partition) == "blockwise"


# Head and embedding.


R, M, D, V = 8, 9, 16, 48
MESHES = [
  (THREE, {}, {}),
  (dict(data=1, model=8), {}, {}),
  (dict(data=2, fsdp=2, context=2), {}, dict(embed="")),
  (dict(data=1, context=4, model=2), dict(vocab="model"), {}),
  (dict(data=2, fsdp=2, model=2), dict(embed=""), dict(embed="fsdp,data")),
]


def head_case(rng):
  """(hidden, head) of a policy and of a reference, targets, weights."""
  arrays = [
    jnp.asarray(rng.normal(size=shape).astype(np.float32))
    for shape in ((R, M, D), (V, D), (R, M, 20), (V, 20), (2, R, M))
  ]
  policy, reference, weight_2RM = arrays[:2], tuple(arrays[2:4]), arrays[4]
  targets_RM = jnp.asarray(rng.integers(0, V, (R, M)))
  return policy, reference, targets_RM, weight_2RM


def figures_and_gradients(case, partitions, vocabulary):
  policy, reference, targets_RM, weight_2RM = case

  def total(hidden_RMD, head_VD):
    figures = head.token_figures(
      hidden_RMD,
      head_VD,
      targets_RM,
      7,  # the others give 0
      also=("entropy", "log_sum_sq"),
      against=reference,
      softcaps=(3.0, None),
      chunk=4,
      vocabulary=vocabulary,
      partitions=partitions,
    )
    found_2RM = jnp.stack([figures["logp"], figures["kl"]])
    return jnp.sum(weight_2RM * found_2RM), figures

  return jax.value_and_grad(total, (0, 1), has_aux=True), policy


@pytest.mark.parametrize("sizes,rules,of_reference", MESHES)
def test_the_head_divides_over_rows_and_vocabulary(
  rng, sizes, rules, of_reference
):
  case = head_case(rng)
  partitions = (
    partition_of(sizes, **rules),
    partition_of(sizes, **{**rules, **of_reference}),
  )
  function, policy = figures_and_gradients(case, partitions, 5)
  whole, _ = figures_and_gradients(case, (WHOLE, WHOLE), V)
  assert_close(jax.jit(function)(*policy), jax.jit(whole)(*policy))


def test_a_quantised_head_divides_too(rng):
  policy, _, targets_RM, _ = head_case(rng)
  integers = weights._quantized(policy[1], 1, 1, ())

  def total(partitions, hidden_RMD, head_VD):
    return jnp.sum(
      head.token_logps(hidden_RMD, head_VD, targets_RM, partitions=partitions)
    )

  one, many = (
    jax.jit(
      jax.value_and_grad(functools.partial(total, (partition, partition)))
    )
    for partition in (WHOLE, partition_of(THREE))
  )
  assert_close(many(policy[0], integers), one(policy[0], integers))


def test_no_device_holds_more_than_a_block_of_the_head(rng):
  partition = partition_of(dict(data=1, fsdp=4, model=2))
  function, policy = figures_and_gradients(
    head_case(rng), (partition, partition), 6
  )
  places = [PartitionSpec(partition.rows), PartitionSpec("model", "fsdp")]
  shardings = [NamedSharding(partition.mesh, place) for place in places]
  text = jax.jit(function, in_shardings=shardings).lower(*policy).compile()
  shapes = set(re.findall(r"f32\[([0-9,]+)\]", text.as_text()))
  assert "6,16" in shapes and "24,4" in shapes  # a block; what a device has
  assert not shapes & {"48,16", "24,16", "48,4", "8,4,6", "2,4,24"}


@pytest.mark.parametrize("sizes,rules,_", MESHES)
def test_an_embedding_is_looked_up_where_it_is(rng, sizes, rules, _):
  (_, leaf_VD), _, _, _ = head_case(rng)
  tokens_RT = jnp.asarray(rng.integers(0, V, (R, 12)))
  weight_RTD = jnp.asarray(rng.normal(size=(R, 12, D)).astype(np.float32))

  def total(partition, leaf_VD):
    x_RTD = transformer.looked_up(
      leaf_VD, tokens_RT, jnp.float32, partition, partition.vocab
    )
    return jnp.sum(weight_RTD * x_RTD)

  one, many = (
    jax.jit(jax.value_and_grad(functools.partial(total, partition)))
    for partition in (WHOLE, partition_of(sizes, **rules))
  )
  assert_close(many(leaf_VD), one(leaf_VD))
