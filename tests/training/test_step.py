# SPDX-License-Identifier: Apache-2.0
"""The train step: laws that hold whatever the rows, devices and references."""

import dataclasses
import functools
import itertools
import math
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mrpo_jax import losses, parallel
from mrpo_jax.data import pack
from mrpo_jax.data.batches import Packing, training_batches
from mrpo_jax.data.encode import Encoded
from mrpo_jax.models import packed, parameters, transformer
from mrpo_jax.models.config import ModelConfig
from mrpo_jax.models.packed import Computation
from mrpo_jax.rows import micro_batch
from mrpo_jax.training import optimizer, train_state
from mrpo_jax.training.figures import (
  FixedFigures,
  PolicyFigures,
  policy_figures,
  policy_parts,
)
from mrpo_jax.training.metrics import pair_metrics
from mrpo_jax.training.objective import Model, Objective
from mrpo_jax.training.step import (
  accumulated_gradient,
  compile_step,
  train_step,
)
from tests.material.pages import python_of

CONFIG = ModelConfig(
  vocab_size=101,
  width=32,
  layers=2,
  heads=8,
  kv_heads=8,
  head_dim=8,
  mlp_width=64,
)
BATCH = 12
XLA = Computation(kernel="xla")  # of all kernels the fastest to compile


@functools.cache
def init_of(config, dtype="float32"):
  return jax.jit(functools.partial(parameters.init, config, dtype=dtype))


@functools.cache
def params_of(seed=0):
  return init_of(CONFIG)(jax.random.key(seed))


def some_pairs(rng, N=40):
  def draw(least):
    return rng.integers(3, 100, rng.integers(least, 14)).tolist()

  return [Encoded(draw(1), draw(1), draw(1)) for _ in range(N)]


@functools.cache
def objective_of(name="dpo", K=1, views=None, **hyper):
  views = views or (0,) * K
  return Objective(
    pairs=BATCH,
    policy=Model(CONFIG, computation=XLA),
    references=tuple(Model(CONFIG, view, XLA) for view in views),
    names=tuple("abc"[:K]),
    method=losses.build(name, **hyper),
  )


MESH = parallel.make_mesh(devices=jax.devices()[:1])
STEPS = 8  # of all curves: of how many is part of a program


@functools.cache
def compiled(objective):
  """(step, function from parameters to the first state)."""
  transformation, _ = optimizer.make(peak_lr=1e-2, steps=STEPS, warmup=0.0)
  method_state = objective.method.init(len(objective.references))
  table = parameters.table(CONFIG)
  shardings = train_state.shardings(table, transformation, MESH, method_state)
  create = functools.partial(
    train_state.create, transformation=transformation, method_state=method_state
  )
  step = compile_step(
    objective, transformation, shardings, parallel.rows_sharding(MESH)
  )
  return step, jax.jit(create, out_shardings=shardings)


def curve(objective, references, pairs):
  """The metrics of the first steps, from params_of()."""
  step, create = compiled(objective)
  state = create(params_of())
  to = parallel.param_shardings(CONFIG, MESH)
  references = tuple(jax.device_put(params, to) for params in references)
  packing = Packing(batch=BATCH, length=48, rows=2)
  views = 1 + max([0, *(m.view for m in objective.references)])
  batches = training_batches([pairs] * views, packing, seed=0)
  found = []
  for _, (views, given) in itertools.islice(batches, STEPS):
    views = tuple(parallel.global_rows(view, MESH) for view in views)
    state, metrics = step(state, None, references, views, given)
    found.append({name: float(value) for name, value in metrics.items()})
  return found


def losses_of(metrics):
  return [one["loss"] for one in metrics]


def test_dpo_starts_at_ln_2_and_falls(rng):
  metrics = curve(objective_of(), (params_of(),), some_pairs(rng))
  assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
  assert metrics[-1]["loss"] < 0.68
  assert metrics[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
  "name", ["mrpo", pytest.param("multi_dpo", marks=pytest.mark.slow)]
)
def test_references_equal_to_the_start_give_the_dpo_curve(rng, name):
  pairs = some_pairs(rng)
  one = curve(objective_of(), (params_of(),), pairs)
  # The second reference reads its own, equal view of the data.
  objective = objective_of(name, K=2, views=(0, 1))
  two = curve(objective, (params_of(), params_of()), pairs)
  np.testing.assert_allclose(losses_of(two), losses_of(one), atol=1e-6)
  assert one[0]["loss"] != one[-1]["loss"]


def test_a_second_reference_changes_the_curve(rng):
  pairs = some_pairs(rng)
  one = curve(objective_of(), (params_of(),), pairs)
  objective = objective_of("mrpo", K=2, views=(0, 1))
  two = curve(objective, (params_of(), params_of(1)), pairs)
  assert abs(two[0]["loss"] - one[0]["loss"]) > 1e-3


KEEP = optax.trace(decay=0.0)  # a transformation that keeps the gradient


@functools.cache
def compiled_gradient(objective):
  step = functools.partial(train_step, objective=objective, transformation=KEEP)
  return jax.jit(step)


def gradient_of(objective, references, view):
  """(metrics, gradient) of one step."""
  method_state = objective.method.init(len(references))
  state = train_state.create(params_of(), KEEP, method_state)
  step = compiled_gradient(objective)
  state, metrics = step(state, None, references, (view,), {})
  return metrics, state.opt_state.trace


def test_micro_batches_equal_one_batch(rng):
  pairs = some_pairs(rng, BATCH)
  objective = objective_of("mrpo", K=2)
  references = (params_of(), params_of(1))
  (many, a), (one, b) = (
    gradient_of(
      objective, references, (pack.pack(pairs, length=48, rows=rows),)
    )
    for rows in (1, BATCH)
  )
  np.testing.assert_allclose(many["loss"], one["loss"], rtol=1e-6)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(y).max())


GPT2 = dict(
  family="gpt2",
  norm="layer",
  qkv_bias=True,
  out_bias=True,
  mlp_bias=True,
  gated=False,
  ropes=(None,),
  learned_positions=True,
  max_positions=48,
)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
  "changes,dtype",
  [
    pytest.param({}, "float32", id="untied-float32"),
    pytest.param({"tied": True}, "float32", id="tied-float32"),
    pytest.param(GPT2, "float32", id="positions-float32"),
    pytest.param({}, "bfloat16", id="untied-bfloat16"),
    pytest.param({"tied": True}, "bfloat16", id="tied-bfloat16", marks=SLOW),
    pytest.param(GPT2, "bfloat16", id="positions-bfloat16", marks=SLOW),
  ],
)
def test_the_gradient_is_that_of_the_sum(rng, changes, dtype):
  # The head's last block of the vocabulary reaches back over the one before.
  config = dataclasses.replace(CONFIG, vocab_size=2100, **changes)
  objective = dataclasses.replace(
    objective_of("simpo", K=0), policy=Model(config, computation=XLA)
  )
  params = init_of(config, dtype)(jax.random.key(0))
  view = (pack.pack(some_pairs(rng, BATCH), length=48, rows=3),)
  parts = policy_parts(objective, (view,), FixedFigures(None, None))
  weight_BC = jnp.asarray(rng.normal(size=(BATCH, 2)).astype("float32"))
  key = jax.random.key(1)
  figures_of = functools.partial(policy_figures, objective, ())

  def share(figures):
    return jnp.vdot(weight_BC, figures.logp_BC)

  def whole(params):
    # One after the other without a loop, so that JAX's own sums are compared.
    return sum(
      share(figures_of(key, params, micro_batch(part, a)))
      for part in parts
      for a in range(len(part[0].segments_RT))
    )

  got, _ = jax.jit(functools.partial(accumulated_gradient, share, figures_of))(
    params, parts, key
  )
  want = jax.jit(jax.grad(whole))(params)
  assert jax.tree.structure(got) == jax.tree.structure(want)
  tolerance = 1e-5 if dtype == "float32" else 2e-2
  for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
    assert a.dtype == jnp.float32
    largest = max(np.abs(b).max(), 1.0)  # biases of keys have none
    np.testing.assert_allclose(a, b.astype("float32"), atol=tolerance * largest)
  assert np.abs(want["embed"]).max() > 1.0


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_what_the_backward_pass_keeps_changes_nothing(rng, remat):
  view = (pack.pack(some_pairs(rng, BATCH), length=48),)
  plain = objective_of()
  kept = Model(CONFIG, computation=Computation(remat=remat))
  sparing = dataclasses.replace(plain, policy=kept)
  (_, a), (_, b) = (
    gradient_of(one, (params_of(1),), view) for one in (plain, sparing)
  )
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(y).max())


@functools.partial(jax.jit, static_argnums=2)
def logps_of(params, rows, pairs):
  """logp_BC of rows [A, R, T]."""
  figures = packed.all_token_figures(CONFIG, params, rows, pairs)
  return packed.per_response(figures["logp"], rows.slots_RM, pairs)


def test_the_loss_is_the_mean_over_the_pairs_that_are_there(rng):
  pairs = some_pairs(rng, 5)
  view = (pack.pack(pairs, length=48, batches=BATCH),)
  metrics, _ = gradient_of(objective_of(), (params_of(1),), view)
  policy_BC, ref_BC = (
    logps_of(params, view[0], 5) for params in (params_of(), params_of(1))
  )
  want = jnp.mean(losses.dpo(policy_BC - ref_BC))
  np.testing.assert_allclose(metrics["loss"], want, rtol=1e-6)


def test_supervised_loss_is_the_mean_token_loss_of_the_chosen(rng):
  pairs = [
    Encoded(p.prompt_ids, p.chosen_ids, []) for p in some_pairs(rng, BATCH)
  ]
  view = (pack.pack(pairs, length=48),)
  metrics, _ = gradient_of(objective_of("nll", K=0), (), view)
  length = max(map(pack.size, pairs))
  tokens_BT = np.zeros((BATCH, length), int)
  for n, pair in enumerate(pairs):
    tokens_BT[n, : pack.size(pair)] = pair.prompt_ids + pair.chosen_ids
  # Causal: what stands to the right of a sequence changes nothing in it.
  logits = functools.partial(transformer.apply, CONFIG)
  logits_BTV = jax.jit(logits)(params_of(), jnp.asarray(tokens_BT))
  logp_BTV = np.asarray(jax.nn.log_softmax(logits_BTV))
  want = []
  for n, pair in enumerate(pairs):
    start = len(pair.prompt_ids) - 1
    places = np.arange(start, start + len(pair.chosen_ids))
    want.append(-np.mean(logp_BTV[n, places, pair.chosen_ids]))
  np.testing.assert_allclose(metrics["loss"], np.mean(want), rtol=1e-5)


def test_a_step_leaves_the_kinds_of_narrow_parameters_as_they_were(rng):
  params = jax.tree.map(lambda array: array.astype("bfloat16"), params_of())
  transformation, _ = optimizer.make(peak_lr=1e-3, steps=2)
  objective = objective_of()
  state = train_state.create(params, transformation, objective.method.init(1))
  packing = Packing(batch=BATCH, length=48, rows=2)
  views = packing.of([some_pairs(rng)], np.arange(BATCH))
  step = compile_step(objective, transformation, None, None)
  after, metrics = jax.eval_shape(step, state, None, (params,), views, {})
  kinds = functools.partial(jax.tree.map, lambda array: str(array.dtype))
  assert kinds(after) == kinds(state)
  assert set(jax.tree.leaves(kinds(state.opt_state[1][0].nu))) == {"float32"}
  assert metrics["grad_norm"].dtype == jnp.float32


@pytest.mark.skipif(
  jax.__version_info__ < (0, 10, 2),
  reason="the compiler of jax 0.10.0 keeps the clipped gradient, too",
)
@pytest.mark.parametrize(
  "sizes",
  [
    {"layers": 8, "width": 128, "mlp_width": 512},
    {"vocab_size": 16384, "width": 64},
    {"vocab_size": 16384, "width": 64, "tied": True},
  ],
  ids=["layers", "vocabulary", "tied"],
)
def test_one_gradient_is_in_memory_however_many_micro_batches(rng, sizes):
  config = dataclasses.replace(CONFIG, **sizes)
  objective = dataclasses.replace(
    objective_of("simpo", K=0),
    policy=Model(config, computation=Computation(remat="full")),
  )
  transformation, _ = optimizer.make(peak_lr=1e-3, steps=2)
  make = functools.partial(
    train_state.create, transformation=transformation, method_state={}
  )
  params = jax.eval_shape(
    lambda key: parameters.init(config, key), jax.random.key(0)
  )
  state = jax.eval_shape(make, params)
  packing = Packing(batch=BATCH, length=48, rows=1)
  views = packing.of([some_pairs(rng)], np.arange(BATCH))
  step = compile_step(objective, transformation, None, None)
  compiled = step.lower(state, None, (), views, {}).compile()
  gradient = sum(4 * array.size for array in jax.tree.leaves(params))
  # The sum, and less than as much again of activations.
  assert compiled.memory_analysis().temp_size_in_bytes < 1.7 * gradient


def test_the_references_are_left_as_they_are(rng):
  reference = params_of(1)
  before = jax.tree.map(np.array, reference)
  curve(objective_of(), (reference,), some_pairs(rng))
  for a, b in zip(
    jax.tree.leaves(before), jax.tree.leaves(reference), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_no_logits_tensor_in_the_compiled_step(rng):
  rows, length = 2, 48
  objective = objective_of("mrpo", K=2)
  transformation, _ = optimizer.make(peak_lr=1e-2, steps=5)
  method_state = objective.method.init(2)
  state = train_state.create(params_of(), transformation, method_state)
  view = pack.pack_step(
    some_pairs(rng, BATCH), length=length, rows=rows, batch=BATCH
  )
  text = (
    jax.jit(
      functools.partial(
        train_step, objective=objective, transformation=transformation
      ),
      donate_argnums=0,
    )
    .lower(state, None, (params_of(), params_of(1)), (view,), {})
    .compile()
    .as_text()
  )
  V = CONFIG.vocab_size
  shapes = {
    tuple(map(int, dims.split(",")))
    for dims in re.findall(r"(?:f32|bf16)\[([0-9,]+)\]", text)
  }
  with_vocab = [shape for shape in shapes if V in shape]
  assert with_vocab  # the chunk is there: the pattern finds what it looks for
  largest = max(math.prod(shape) for shape in with_vocab)
  assert largest < rows * length * V / 2


@pytest.mark.slow
def test_the_page_about_a_loop_of_ones_own_runs(inputs, tmp_path, monkeypatch):
  for name, there in (("base", "START"), ("second", "SECOND")):
    shutil.copytree(inputs / name, tmp_path / there)
  shutil.copy(inputs / "pairs.jsonl", tmp_path)
  monkeypatch.chdir(tmp_path)
  step, adapted = python_of("docs/learn/own_loop.md")
  names = {}
  exec(step, names)
  assert int(names["state"].step) == 4
  assert (tmp_path / "TRAINED" / "tokenizer.json").is_file()
  exec(adapted, names)  # from the start: so far it says what the base does
  assert float(names["metrics"]["rewards/margins"]) == pytest.approx(
    0, abs=1e-5
  )
  assert names["params"]["blocks"].keys() == names["start"]["blocks"].keys()


@pytest.mark.parametrize("mixture", ["harmonic", "multi"])
def test_rewards_against_the_mixture_have_the_betas_of_its_references(mixture):
  betas, weights = (0.5, 0.2), (0.75, 0.25)
  objective = objective_of(
    K=2, mixture=mixture, betas=betas, weights=weights, beta=0.1
  )
  logp_BC = jnp.array([[-10.0, -14.0], [-9.0, -8.0]])
  ref_logp_BCK = jnp.array(
    [[[-11.0, -13.0], [-12.0, -11.0]], [[-9.0, -9.5], [-7.0, -8.0]]]
  )
  method = objective.method
  values = pair_metrics(
    objective,
    method.init(2),
    PolicyFigures(logp_BC=logp_BC),
    FixedFigures(
      jnp.ones((2, 2)),
      jnp.ones(2, bool),
      ref_length_BCK=jnp.ones((2, 2, 2)),
      ref_logp_BCK=ref_logp_BCK,
    ),
  )
  margin_B = values["virtual/rewards/margins"]
  np.testing.assert_allclose(
    values["gradient_scale"], jax.nn.sigmoid(-margin_B), rtol=1e-6
  )
  if mixture == "harmonic":  # the loss is that of this margin
    want_B = -np.log(np.expm1(method(logp_BC, ref_logp_BCK)))
  else:  # the weighted mean of the rewards against each
    rewards_BCK = np.array(betas) * np.array(logp_BC[..., None] - ref_logp_BCK)
    want_B = (rewards_BCK[:, 0] - rewards_BCK[:, 1]) @ np.array(weights)
  np.testing.assert_allclose(margin_B, want_B, rtol=1e-5)
