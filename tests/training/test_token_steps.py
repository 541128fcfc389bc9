# SPDX-License-Identifier: Apache-2.0
"""Steps on rollouts: per-token losses and values, against each one alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mrpo_jax import losses, parallel
from mrpo_jax.data.batches import Known, Packing
from mrpo_jax.data.encode import Encoded
from mrpo_jax.errors import InputError
from mrpo_jax.losses.methods.token_loss import GIVEN
from mrpo_jax.models import lora, parameters, transformer
from mrpo_jax.models.attention.layout import RowLayout
from mrpo_jax.models.config import VALUED
from mrpo_jax.models.packed import Computation
from mrpo_jax.runs.config import read
from mrpo_jax.runs.config.method import chosen_method
from mrpo_jax.training import optimizer, train_state
from mrpo_jax.training.objective import Model, Objective
from mrpo_jax.training.step import train_step
from tests.material.config import get_config
from tests.training import test_objective

CONFIG = dataclasses.replace(test_objective.CONFIG, head=VALUED)
BATCH = 6
LENGTH = 16  # more than any rollout has
XLA = Computation(kernel="xla")  # of all kernels the fastest to compile
KEEP = optax.trace(decay=0.0)  # a transformation that keeps the gradient
NAMES = ("apa", "awr", "ppo")


@functools.cache
def params_of(head=0.3):
  value = head * jnp.sin(jnp.arange(1.0, CONFIG.width + 1))[None]
  return test_objective.params_of(0) | {"value_head": value}


def some_rollouts(seed=0, N=BATCH):
  """(Encoded without a rejected response, {name: N of (values, none)})."""
  rng = np.random.default_rng(seed)
  rollouts = [
    Encoded(
      rng.integers(3, 12, rng.integers(1, 7)).tolist(),
      rng.integers(3, 12, rng.integers(1, 9)).tolist(),
      [],
    )
    for _ in range(N)
  ]
  draw = {
    "ref_logp": lambda n: -rng.uniform(0.5, 4.0, n),
    "behaviour_logp": lambda n: -rng.uniform(0.5, 4.0, n),
    "advantage": rng.normal,
    "returns": rng.normal,
  }
  draw["advantage"] = draw["returns"] = lambda n: rng.normal(size=n)
  values = {
    name: [(draw[name](len(one.chosen_ids)), np.zeros(0)) for one in rollouts]
    for name in GIVEN
  }
  return rollouts, values


@functools.cache
def objective_of(name, references=0, **hyper):
  return Objective(
    pairs=BATCH,
    policy=Model(CONFIG, computation=XLA),
    references=(Model(test_objective.CONFIG, computation=XLA),) * references,
    names=tuple("abc"[:references]),
    method=losses.build(name, **hyper),
  )


def batch_of(rollouts, values, rows=2):
  """(views, given) as a run has them."""
  packing = Packing(batch=BATCH, length=32, rows=rows)
  indices = np.arange(len(rollouts))
  views = packing.of([rollouts], indices)
  return views, Known({}, tokens=values).of(packing, indices, views)


@functools.cache
def compiled(objective):
  step = functools.partial(train_step, objective=objective, transformation=KEEP)
  return jax.jit(step)


def step(objective, batch, params=None, base=None, references=()):
  """(metrics, gradient) of one train step."""
  state = train_state.create(params or params_of(), KEEP, {})
  state, metrics = compiled(objective)(state, base, references, *batch)
  return metrics, state.opt_state.trace


@jax.jit
def whole(params, ids_1T):
  """(log-probabilities of the next token, value) at every place of a text."""
  logits_1TV = transformer.apply(CONFIG, params, ids_1T)
  ones, places_1T = jnp.ones_like(ids_1T), jnp.arange(LENGTH)[None]
  layout = RowLayout(places_1T, ones, 0 * ones)
  hidden_1TD = transformer.hidden(CONFIG, params, ids_1T, layout, kernel="xla")
  value_T = hidden_1TD[0] @ params["value_head"][0]
  return jax.nn.log_softmax(logits_1TV[0]), value_T


def alone(params, rollout):
  """(logp_T, value_T) of one rollout by itself, from all its logits."""
  ids = rollout.prompt_ids + rollout.chosen_ids
  # Causal: what stands to the right of a text changes nothing in it.
  ids_1T = jnp.array([ids + [0] * (LENGTH - len(ids))])
  logp_TV, value_T = whole(params, ids_1T)
  places = np.arange(len(rollout.prompt_ids) - 1, len(ids) - 1)
  return logp_TV[places, np.array(rollout.chosen_ids)], value_T[places]


LOSSES = {  # by their papers' formulas
  "apa": lambda logp, one: (
    (logp - one["advantage"] / 0.1 - one["ref_logp"]) ** 2
  ),
  "awr": lambda logp, one: -jnp.exp(0.5 * one["advantage"]) * logp,
  "ppo": lambda logp, one: jnp.maximum(
    -jnp.exp(logp - one["behaviour_logp"]) * one["advantage"],
    -jnp.clip(jnp.exp(logp - one["behaviour_logp"]), 0.8, 1.2)
    * one["advantage"],
  ),
}


def by_hand(name, rollouts, values, params, value_weight=1.0):
  """The loss of a batch: the mean over all its tokens."""
  found = []
  for n, rollout in enumerate(rollouts):
    one = {key: jnp.asarray(values[key][n][0], jnp.float32) for key in GIVEN}
    logp_T, value_T = alone(params, rollout)
    squared_T = 0.5 * (value_T - one["returns"]) ** 2
    found.append(LOSSES[name](logp_T, one) + value_weight * squared_T)
  return jnp.mean(jnp.concatenate(found))


def assert_trees_close(got, want, tolerance=2e-5):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
    np.testing.assert_allclose(
      a, b, atol=tolerance * max(np.abs(b).max(), 1e-6)
    )


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradient_are_those_of_each_rollout_alone(name):
  rollouts, values = some_rollouts()
  want, grad = jax.jit(
    jax.value_and_grad(functools.partial(by_hand, name, rollouts, values))
  )(params_of())
  metrics, found = step(objective_of(name), batch_of(rollouts, values))
  np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)
  assert_trees_close(found, grad)


def test_micro_batches_equal_one_batch():
  rollouts, values = some_rollouts(1)
  (one, a), (many, b) = (
    step(objective_of("apa"), batch_of(rollouts, values, rows))
    for rows in (BATCH, 1)
  )
  assert one.keys() == many.keys()
  for name in one.keys() - {"tokens/slots"}:
    np.testing.assert_allclose(many[name], one[name], rtol=1e-5, err_msg=name)
  assert_trees_close(b, a)


def test_a_batch_that_is_not_full_is_the_mean_over_what_is_there():
  rollouts, values = some_rollouts(2, N=4)
  want = by_hand("ppo", rollouts, values, params_of())
  metrics, _ = step(objective_of("ppo"), batch_of(rollouts, values))
  np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)


def test_every_token_counts_alike_whatever_its_response():
  # Two responses, of 1 and 9 tokens, advantage 1 and 0: APA's target is off
  # by 10 at one token of ten.
  ids = [[4], [5, 6, 7, 8, 9, 10, 11, 3, 4]]
  rollouts = [Encoded([3], one, []) for one in ids]
  logps = [np.asarray(alone(params_of(0.0), one)[0]) for one in rollouts]
  zeros = [np.zeros(len(one)) for one in ids]
  values = {
    "ref_logp": logps,
    "behaviour_logp": logps,
    "advantage": [zeros[0] + 1.0, zeros[1]],
    "returns": zeros,
  }
  values = {k: [(x, x[:0]) for x in some] for k, some in values.items()}
  metrics, _ = step(
    objective_of("apa"), batch_of(rollouts, values), params_of(0.0)
  )
  np.testing.assert_allclose(metrics["loss"], 100.0 / 10, rtol=1e-5)
  np.testing.assert_allclose(metrics["kl/token"], 0.0, atol=1e-5)
  np.testing.assert_allclose(metrics["ratio"], 1.0, rtol=1e-5)


def test_metrics_are_means_over_tokens():
  rollouts, values = some_rollouts(3)
  metrics, _ = step(objective_of("ppo"), batch_of(rollouts, values))
  pairs = [alone(params_of(), one) for one in rollouts]
  logp, value = (np.concatenate(one) for one in zip(*pairs, strict=True))
  one = {
    key: np.concatenate([chosen for chosen, _ in values[key]]) for key in GIVEN
  }
  ratio = np.exp(logp - one["behaviour_logp"])
  up, down = one["advantage"] > 0, one["advantage"] < 0
  clipped = (up & (ratio > 1.2)) | (down & (ratio < 0.8))
  left = one["returns"] - value
  want = {
    "loss/policy": LOSSES["ppo"](logp, one).mean(),
    "loss/value": 0.5 * (left**2).mean(),
    "kl/token": (logp - one["ref_logp"]).mean(),
    "ratio": ratio.mean(),
    "ratio/clipped": clipped.mean(),
    "returns": one["returns"].mean(),
    "value/explained_variance": 1 - left.var() / one["returns"].var(),
  }
  want["loss"] = want["loss/policy"] + want["loss/value"]
  tokens = {"grad_norm", "tokens/real", "tokens/slots"}
  assert metrics.keys() == want.keys() | tokens
  for name, value in want.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
  assert 0 < clipped.mean() < 1


def test_returns_that_are_one_are_not_explained():
  rollouts, values = some_rollouts(4)
  same = [(0 * one + 2.0, none) for one, none in values["returns"]]
  metrics, _ = step(
    objective_of("apa"), batch_of(rollouts, values | {"returns": same})
  )
  assert metrics["value/explained_variance"] == 0


def test_the_value_is_learnt_by_the_trunk_of_the_policy():
  rollouts, values = some_rollouts(5)
  batch = batch_of(rollouts, values)
  _, both = step(objective_of("apa"), batch)
  _, policy = step(objective_of("apa", value_weight=0.0), batch)
  assert not policy["value_head"].any() and both["value_head"].any()
  apart = np.abs(both["blocks"]["up"] - policy["blocks"]["up"])
  assert apart.max() > 1e-3
  # But not from a head of zeros: the first step moves it alone.
  _, both = step(objective_of("apa"), batch, params_of(0.0))
  _, policy = step(objective_of("apa", value_weight=0.0), batch, params_of(0.0))
  assert both.pop("value_head").any() and not policy.pop("value_head").any()
  assert_trees_close(both, policy)


def test_an_adapter_learns_the_same():
  rollouts, values = some_rollouts(6)
  batch, table = batch_of(rollouts, values), parameters.table(CONFIG)
  adapter = lora.Adapter(2, 4.0, ("query", "down"))
  arrays = lora.init_adapters(
    lora.adapter_table(table, adapter), jax.random.key(1)
  )
  arrays["value_head"] = params_of()["value_head"]
  base, trained = lora.split(lora.attach(params_of(0.0), arrays, adapter))
  metrics, found = step(objective_of("apa"), batch, trained, base)
  # `b` is zero, so that all is as without the adapter.
  want, whole = step(objective_of("apa"), batch)
  np.testing.assert_allclose(metrics["loss"], want["loss"], rtol=1e-5)
  np.testing.assert_allclose(
    found["value_head"], whole["value_head"], rtol=1e-4
  )
  assert np.abs(found["blocks"]["query"]["b"]).max() > 0


def test_no_mesh_changes_the_step():
  rollouts, values = some_rollouts(7)
  batch = batch_of(rollouts, values, rows=4)
  want, grad = step(objective_of("ppo"), batch)
  rules = {"vocab": ()}  # of 61 tokens
  mesh = parallel.make_mesh(data=2, fsdp=2, devices=jax.devices()[:4])
  computation = Computation(
    kernel="xla", partition=parallel.partition_of(mesh, rules)
  )
  plain = objective_of("ppo")
  objective = dataclasses.replace(plain, policy=Model(CONFIG, 0, computation))
  split = jax.device_put(
    params_of(), parallel.param_shardings(CONFIG, mesh, rules)
  )
  metrics, found = step(objective, parallel.global_batch(*batch, mesh), split)
  for name in want:
    np.testing.assert_allclose(metrics[name], want[name], rtol=2e-5)
  assert_trees_close(found, grad)


def test_no_reference_is_run():
  rollouts, values = some_rollouts()
  batch = batch_of(rollouts, values)
  want, _ = step(objective_of("apa"), batch)
  # They have no parameters that could be.
  objective = objective_of("apa", references=2)
  objective.check()
  metrics, _ = step(objective, batch, references=(None, None))
  assert metrics["loss"] == want["loss"]


@pytest.mark.parametrize("name", NAMES)
def test_losses_fall(name):
  rollouts, values = some_rollouts(8)
  logps = [(np.asarray(alone(params_of(), x)[0]), ()) for x in rollouts]
  values |= {"behaviour_logp": logps}
  transformation, _ = optimizer.make(peak_lr=3e-3, steps=8, warmup=0.0)
  objective = objective_of(name)
  learn = jax.jit(
    functools.partial(
      train_step, objective=objective, transformation=transformation
    )
  )
  state, batch = (
    train_state.create(params_of(), transformation, {}),
    batch_of(rollouts, values),
  )
  found = []
  for _ in range(8):
    state, metrics = learn(state, None, (), *batch)
    found.append(metrics)
  assert found[-1]["loss"] < found[0]["loss"]
  assert found[-1]["loss/value"] < found[0]["loss/value"]
  assert all(np.isfinite(value) for one in found for value in one.values())


def test_what_a_method_of_tokens_lacks_is_named():
  rollouts, values = some_rollouts()
  views, given = batch_of(rollouts, values)
  with pytest.raises(ValueError, match="'apa' learns from rollouts: .*returns"):
    step(objective_of("apa"), (views, {}))
  less = {k: one for k, one in values.items() if k != "returns"}
  with pytest.raises(ValueError, match="needs returns of each"):
    step(objective_of("apa"), batch_of(rollouts, less))


@pytest.mark.parametrize(
  "head,name", [("tokens", "apa"), (VALUED, "dpo"), ("scalar", "ppo")]
)
def test_a_head_that_the_loss_does_not_train_is_refused(head, name):
  config = dataclasses.replace(CONFIG, head=head)
  objective = dataclasses.replace(
    objective_of("apa"),
    policy=Model(config),
    method=losses.build(name),
  )
  with pytest.raises(ValueError, match="set policy.head"):
    objective.check()


@pytest.mark.parametrize("name", NAMES)
def test_a_run_on_pairs_is_refused(name):
  config = read(get_config(name).to_dict())
  with pytest.raises(InputError, match=f"{name}' learns from what the policy"):
    chosen_method(config)
