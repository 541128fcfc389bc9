# SPDX-License-Identifier: Apache-2.0
"""Experts: laws, a dense oracle, torch's gradients, meshes, refusals."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from mrpo_jax import hub, parallel
from mrpo_jax.errors import InputError
from mrpo_jax.hub import inspect, peft
from mrpo_jax.models import experts, lora, parameters, transformer, weights
from mrpo_jax.models.attention.layout import RowLayout
from mrpo_jax.models.config import ModelConfig
from mrpo_jax.models.families.read import config_from_hf, config_to_hf
from mrpo_jax.models.partition import WHOLE
from tests.material.folders import GOLDEN

DENSE = ModelConfig(
  vocab_size=32,
  width=16,
  layers=2,
  heads=4,
  kv_heads=4,
  head_dim=4,
  mlp_width=24,
)
CONFIG = dataclasses.replace(DENSE, experts=8, experts_per_token=2)
TOKENS = np.random.default_rng(1).integers(0, 32, (8, 12))
EXPERTS = ("expert_gate", "expert_up", "expert_down")
SILU = transformer.ACTIVATIONS["silu"]


def random(config, seed=0):
  """Parameters far from their start: routers choose, every expert differs."""
  params = parameters.init(config, jax.random.key(seed))
  blocks = dict(params["blocks"])
  blocks["router"] *= 8.0
  return params | {"blocks": blocks}


def with_experts(params, config):
  """Of a dense model, those of one whose experts are all its MLP."""
  blocks = dict(params["blocks"])
  for name in ("gate", "up", "down"):
    array = blocks.pop(name)
    shape = array.shape[0], config.experts, *array.shape[1:]
    blocks[f"expert_{name}"] = jnp.broadcast_to(array[:, None], shape)
  router = parameters.table(config)["blocks"]["router"]
  blocks["router"] = jax.random.normal(jax.random.key(5), router.shape)
  return params | {"blocks": blocks}


def assert_close(got, want):
  """To 1e-5 of the largest number of each array."""
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


# Laws.


@pytest.mark.parametrize("experts_, of_token", [(1, 1), (4, 2)])
def test_experts_that_are_one_mlp_are_that_mlp(experts_, of_token):
  config = dataclasses.replace(
    DENSE, experts=experts_, experts_per_token=of_token
  )
  params = parameters.init(DENSE, jax.random.key(0))
  want = transformer.apply(DENSE, params, TOKENS)
  got = transformer.apply(config, with_experts(params, config), TOKENS)
  assert_close(got, want)
  # Where shares are of all experts, two of four count less than one.
  config = dataclasses.replace(config, shares_sum_to_one=False)
  other = transformer.apply(config, with_experts(params, config), TOKENS)
  assert (np.abs(other - want).max() > 1e-3) == (experts_ > 1)


def test_the_order_of_experts_changes_nothing():
  params = random(CONFIG)
  order = np.random.default_rng(0).permutation(8)
  blocks = dict(params["blocks"])
  for name in EXPERTS:
    blocks[name] = blocks[name][:, order]
  blocks["router"] = blocks["router"][:, :, order]
  want = transformer.apply(CONFIG, params, TOKENS)
  assert_close(
    transformer.apply(CONFIG, params | {"blocks": blocks}, TOKENS), want
  )
  alone = params["blocks"] | {"router": blocks["router"]}
  other = transformer.apply(CONFIG, params | {"blocks": alone}, TOKENS)
  assert np.abs(other - want).max() > 1e-3


def test_a_token_is_sent_to_the_experts_of_its_largest_shares():
  # Scores of ln 6, ln 3, ln 1: shares of 0.6, 0.3 and 0.1.
  router = jnp.log(jnp.asarray([[3.0, 1.0, 6.0]]))
  config = dataclasses.replace(CONFIG, experts=3)
  for sum_to_one, want in ((True, [2 / 3, 1 / 3]), (False, [0.6, 0.3])):
    config = dataclasses.replace(config, shares_sum_to_one=sum_to_one)
    share, expert = experts.route(config, jnp.ones((1, 1)), router)
    np.testing.assert_array_equal(expert, [[2, 0]])
    np.testing.assert_allclose(share, [want], rtol=1e-6)


def test_the_router_tells_apart_what_bfloat16_does_not():
  router = jnp.asarray([[4.0, 4.0], [1.0, 1.0 + 2**-6]], jnp.bfloat16)
  assert router[0, 0] + router[1, 0] == router[0, 1] + router[1, 1]
  x = jnp.ones((1, 2), jnp.bfloat16)
  config = dataclasses.replace(CONFIG, experts=2, experts_per_token=1)
  _, expert = experts.route(config, x, router)
  assert expert[0, 0] == 1


def oracle(config, x_RTD, layer, is_real_RT):
  """Every expert says of every token; what is not chosen counts nothing."""
  share_RTA, expert_RTA = experts.route(
    config, x_RTD.reshape(-1, config.width), layer["router"]
  )
  chosen_NAX = jax.nn.one_hot(expert_RTA, config.experts)
  share_NX = jnp.einsum("NA,NAX->NX", share_RTA, chosen_NAX)
  share_RTX = share_NX.reshape(*x_RTD.shape[:2], -1) * is_real_RT[:, :, None]
  up, gate = (
    jnp.einsum("RTD,XDF->RTXF", x_RTD, layer[f"expert_{name}"])
    for name in ("up", "gate")
  )
  said_RTXD = jnp.einsum(
    "RTXF,XFD->RTXD", up * jax.nn.silu(gate), layer["expert_down"]
  )
  return jnp.einsum("RTXD,RTX->RTD", said_RTXD, share_RTX)


@pytest.mark.parametrize("sum_to_one", [True, False])
def test_an_oracle_without_sorting_says_the_same(rng, sum_to_one):
  config = dataclasses.replace(CONFIG, shares_sum_to_one=sum_to_one)
  layer = jax.tree.map(lambda array: array[0], random(config)["blocks"])
  x_RTD = jnp.asarray(rng.normal(size=(3, 50, 16)), jnp.float32)
  pull = jnp.asarray(rng.normal(size=x_RTD.shape), jnp.float32)
  is_real_RT = jnp.asarray(rng.random((3, 50)) < 0.8)

  def ours(x_RTD, layer):
    return experts.mlp(config, SILU, x_RTD, layer, is_real_RT, WHOLE)

  def theirs(x_RTD, layer):
    return oracle(config, x_RTD, layer, is_real_RT)

  for got, want in zip(
    *(
      (out, pullback(pull))
      for out, pullback in (jax.vjp(f, x_RTD, layer) for f in (ours, theirs))
    ),
    strict=True,
  ):
    assert_close(got, want)


@pytest.mark.parametrize("name", ["mixtral_window", "qwen3_moe_shares"])
def test_gradients_are_those_of_torch(name):
  config, params = hub.load(GOLDEN / name)
  numbers = np.load(GOLDEN / f"{name}.npz")
  tokens = numbers["tokens"]

  def loss(params):
    logits = transformer.apply(config, params, tokens)[:, :-1]
    logp = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1))

  grads = jax.jit(jax.grad(loss))(params)
  blocks = grads["blocks"]
  ours = {
    # Of the padding token, 0, torch has none.
    "embed": grads["embed"].at[0].set(numbers["gradient_embed"][0]),
    "router": blocks["router"].swapaxes(-1, -2),
    "gate_up": jnp.concatenate(
      [blocks["expert_gate"], blocks["expert_up"]], axis=-1
    ).swapaxes(-1, -2),
    "down": blocks["expert_down"].swapaxes(-1, -2),
  }
  for leaf, grad in ours.items():
    want = numbers[f"gradient_{leaf}"]
    assert np.abs(grad - want).max() <= 1e-5 * np.abs(want).max(), leaf


# How they are computed.


def summed(config, partition, remat, params, segments):
  """A number of all final states, and its gradient."""
  positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1])[None], TOKENS.shape)
  layout = RowLayout(positions, segments, jnp.zeros_like(positions))
  factors = jax.random.normal(jax.random.key(9), (*TOKENS.shape, config.width))
  factors *= (segments > 0)[:, :, None]

  def total(params):
    states = transformer.hidden(
      config, params, TOKENS, layout, partition=partition, remat=remat
    )
    return jnp.sum(factors * states)

  return jax.value_and_grad(total)(params)


SEGMENTS = jnp.asarray(
  np.where(np.arange(12)[None] < np.arange(5, 13)[:, None], 1, 0)
)


@functools.cache
def alone():
  run = jax.jit(functools.partial(summed, CONFIG, WHOLE, "none"))
  return run(random(CONFIG), SEGMENTS)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_what_is_computed_anew_is_the_same(remat):
  run = jax.jit(functools.partial(summed, CONFIG, WHOLE, remat))
  assert_close(run(random(CONFIG), SEGMENTS), alone())


def loops(config, remat, adapter=None):
  """Loops of the gradient's program, whose attention has none."""
  params = parameters.abstract(config)
  table = parameters.table(config)
  zeros = jnp.zeros(TOKENS.shape, jnp.int32)

  def total(trained, frozen):
    if adapter is not None:
      trained = lora.attach(frozen, trained, adapter)
    layout = RowLayout(zeros, zeros + 1, zeros)
    how = dict(kernel="xla", remat=remat)
    return jnp.sum(transformer.hidden(config, trained, TOKENS, layout, **how))

  trained = params
  if adapter is not None:
    specs = lora.adapter_table(table, adapter)
    trained = jax.eval_shape(
      lambda: lora.init_adapters(specs, jax.random.key(0))
    )
  program = jax.jit(jax.grad(total)).lower(trained, params).as_text()
  return program.count("stablehlo.while")


def test_what_is_kept_is_not_computed_again():
  # Two scans over the layers, three products of each and their two gradients.
  assert loops(CONFIG, "none") == loops(CONFIG, "dots") == 2 + 9
  assert loops(CONFIG, "full") == 2 + 12


@pytest.mark.parametrize(
  "remat, times", [("none", 1), ("dots", 1), ("full", 2)]
)
def test_experts_are_chosen_once_where_their_products_are_kept(remat, times):
  run = functools.partial(summed, CONFIG, WHOLE, remat)
  program = str(jax.make_jaxpr(run)(parameters.abstract(CONFIG), SEGMENTS))
  assert program.count("top_k[") == times


def test_frozen_experts_have_no_gradient():
  assert loops(CONFIG, "dots", lora.Adapter(2, 4.0)) == 2 + 6


@pytest.mark.parametrize(
  "sizes, rules",
  [
    (dict(model=4), {}),
    (dict(data=2, fsdp=2, model=2), {}),
    (dict(fsdp=4, context=2), {}),
    (dict(model=4), dict(experts="", expert_mlp="model")),
    (dict(data=8), dict(experts="data")),
    (dict(data=4, context=2), dict(experts="context")),
    (dict(data=4, context=2), dict(experts="", expert_mlp="context")),
  ],
  ids=str,
)
def test_every_mesh_says_the_same(sizes, rules):
  mesh = parallel.make_mesh(**sizes)
  to = parallel.param_shardings(CONFIG, mesh, rules)
  partition = parallel.partition_of(mesh, rules)
  run = jax.jit(functools.partial(summed, CONFIG, partition, "dots"))
  assert_close(run(jax.device_put(random(CONFIG), to), SEGMENTS), alone())


def test_devices_have_their_own_experts():
  mesh = parallel.make_mesh(data=2, model=4)
  to = parallel.param_shardings(CONFIG, mesh)["blocks"]
  assert to["expert_up"].shard_shape((2, 8, 16, 24)) == (2, 2, 16, 24)
  with pytest.raises(
    InputError, match="expert_.*: 6 does not divide .*rules.experts"
  ):
    three = dataclasses.replace(CONFIG, experts=6)
    parallel.param_shardings(three, mesh)


@pytest.mark.parametrize("kind", weights.KINDS)
def test_integers_are_near_and_the_router_is_none(kind):
  params = random(CONFIG)
  small = weights.quantize(params, parameters.table(CONFIG), kind, group=8)
  assert isinstance(small["blocks"]["router"], jax.Array)
  for name in EXPERTS:
    near = weights.dense(small["blocks"][name], jnp.float32)
    array = params["blocks"][name]
    assert near.shape == array.shape
    step = {"int8": 1 / 127, "int4": 1 / 7}[kind] * np.abs(array).max()
    assert np.abs(near - array).max() <= step
  got = transformer.apply(CONFIG, small, TOKENS)
  want = transformer.apply(CONFIG, lora.merge(small), TOKENS)
  assert_close(got, want)


# Adapters, and what is refused.


def test_an_adapter_is_of_the_attention():
  table = parameters.table(CONFIG)
  every = lora.adapter_table(table, lora.Adapter(2, 4.0))
  assert set(every["blocks"]) == {"query", "key", "value", "out"}
  for target in ("router", "expert_up"):
    with pytest.raises(ValueError, match=f"no adapter of '{target}'.*: query"):
      lora.adapter_table(table, lora.Adapter(2, 4.0, (target,)))
  with pytest.raises(ValueError, match="'up' is no matrix of this model"):
    lora.adapter_table(table, lora.Adapter(2, 4.0, ("up",)))


def test_an_adapter_goes_through_a_folder_of_peft(tmp_path):
  config, params = hub.load(GOLDEN / "mixtral_window")
  adapter = lora.Adapter(2, 4.0, ("query", "key", "value", "out"))
  table = lora.adapter_table(parameters.table(config), adapter)
  arrays = jax.tree.map(
    lambda array: array + 0.5, lora.init_adapters(table, jax.random.key(2))
  )
  folder = tmp_path / "a"
  peft.save(folder, config, adapter, arrays)
  values = json.loads((folder / peft.CONFIG).read_text())
  assert values["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
  again, read = peft.load(folder, config)
  assert_close(read, arrays)
  # What stands on an expert, as PEFT wrote it before transformers 5.
  tensors = safetensors.numpy.load_file(folder / peft.WEIGHTS)
  name = "model.layers.0.block_sparse_moe.experts.0.w1.lora_A.weight"
  tensors[peft.PREFIX + name] = np.zeros((2, config.width), np.float32)
  safetensors.numpy.save_file(tensors, folder / peft.WEIGHTS)
  with pytest.raises(InputError, match="unexpected tensors: .*experts.0.w1"):
    peft.load(folder, config)
  values["target_parameters"] = ["mlp.experts.down_proj"]
  (folder / peft.CONFIG).write_text(json.dumps(values))
  with pytest.raises(InputError, match="target_parameters=.* not computed"):
    peft.load(folder, config)


def test_fused_experts_are_refused_by_name(tmp_path):
  source = GOLDEN / "mixtral_window"
  tensors = safetensors.numpy.load_file(source / "model.safetensors")
  fused = {k: one for k, one in tensors.items() if ".experts." not in k}
  fused["model.layers.0.mlp.experts.down_proj"] = np.zeros((4, 24, 36), "f4")
  safetensors.numpy.save_file(fused, tmp_path / "model.safetensors")
  shutil.copy(source / "config.json", tmp_path)
  with pytest.raises(InputError, match=r"missing tensors: .*experts\.0\.w"):
    hub.load(tmp_path)


def test_a_config_made_by_hand_is_written_as_a_mixtral():
  config = dataclasses.replace(CONFIG, family="mixtral")
  written = config_to_hf(config, "float32")
  assert written["architectures"] == ["MixtralForCausalLM"]
  assert config_from_hf(written) == config
  other = dataclasses.replace(config, shares_sum_to_one=False)
  with pytest.raises(hub.UnsupportedModel, match="Llama or a Mixtral only"):
    config_to_hf(other, "float32")


def test_an_inspection_says_what_a_token_meets():
  _, line, *_ = inspect.lines(GOLDEN / "mixtral_window", dict(data=1))
  # Of 2 layers each: 2 of 4 experts of 3 * 24 * 36 less.
  config = hub.read_config(GOLDEN / "mixtral_window")
  count = parameters.count_parameters(config) - 2 * 2 * 3 * 24 * 36
  assert line.startswith("4 experts, 2 for each token")
  assert f"{count:,}" in line


@pytest.mark.parametrize(
  "changes, words",
  [
    (dict(experts_per_token=9), "experts_per_token=9; want 1 to experts=8"),
    (dict(experts_per_token=0), "experts_per_token=0"),
    (dict(experts=2**31), "experts=2147483648 is more than 2147483647"),
    (dict(gated=False), "without a gate"),
    (dict(mlp_bias=True), "with biases"),
  ],
)
def test_what_is_not_computed_is_refused(changes, words):
  with pytest.raises(ValueError, match=words):
    dataclasses.replace(CONFIG, **changes)


@pytest.mark.parametrize(
  "width,group,devices,fits",
  [(96, 32, 2, False), (96, None, 2, True), (128, 32, 2, True)]
  + [(32, 32, 2, True), (64, 32, 4, False), (96, 16, 2, True)]
  + [(48, 16, 2, False), (96, 48, 2, True), (96, 96, 2, True)],
)
def test_groups_that_devices_would_share_are_refused(
  width, group, devices, fits
):
  mesh = parallel.make_mesh(data=-1, model=devices)
  rules = dict(experts="", expert_mlp="model")
  partition = parallel.partition_of(mesh, rules)
  config = dataclasses.replace(CONFIG, mlp_width=width)
  if fits:
    return experts.check_groups(config, group, partition)
  with pytest.raises(ValueError, match=f"groups of {group} do not divide over"):
    experts.check_groups(config, group, partition)
