# SPDX-License-Identifier: Apache-2.0
"""Steps of a reward model: the laws of test_step.py hold for its head."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mrpo_jax import losses, parallel
from mrpo_jax.data import pack
from mrpo_jax.models import lora, parameters
from mrpo_jax.models.packed import Computation
from mrpo_jax.training import train_state
from mrpo_jax.training.figures import FixedFigures, PolicyFigures
from mrpo_jax.training.metrics import pair_metrics
from mrpo_jax.training.objective import Model, Objective
from tests.training import test_step

CONFIG = dataclasses.replace(test_step.CONFIG, head="scalar")
BATCH = test_step.BATCH
CENTER = 0.1
ROWS = ("data", "fsdp")
WHOLE_VOCABULARY = {"vocab": ()}  # of 101 tokens
OBJECTIVE = Objective(
  pairs=BATCH,
  policy=Model(CONFIG, computation=Computation(kernel="xla")),
  references=(),
  names=(),
  method=losses.build("bradley_terry", center=CENTER),
)


def params_of(head=0.3):
  params = parameters.init(CONFIG, jax.random.key(0))
  score = head * jnp.sin(jnp.arange(1.0, CONFIG.width + 1))[None]
  return params | {"score": score}


def gradient_of(trained, pairs, rows, base=None):
  view = (pack.pack(pairs, length=48, rows=rows),)
  state = train_state.create(trained, test_step.KEEP, {})
  state, metrics = test_step.compiled_gradient(OBJECTIVE)(
    state, base, (), (view,), {}
  )
  return metrics, state.opt_state.trace


def by_hand(params, pairs):
  """The mean loss, each response by itself through the whole decoder."""
  one_by_one = []
  for pair in pairs:
    row = []
    for response in (pair.chosen_ids, pair.rejected_ids):
      alone = dataclasses.replace(pair, chosen_ids=response, rejected_ids=[])
      rows = pack.pack([alone], length=48)
      rows = jax.tree.map(lambda array: array[0], rows)
      row.append(OBJECTIVE.policy.rewards(params, rows, 1)[0, 0])
    one_by_one.append(jnp.stack(row))
  reward_BC = jnp.stack(one_by_one)
  margin_B = reward_BC[:, 0] - reward_BC[:, 1]
  loss_B = jnp.log1p(jnp.exp(-margin_B)) + CENTER * reward_BC.sum(axis=1) ** 2
  return loss_B.mean()


def test_loss_and_gradient_are_those_of_each_response_alone(rng):
  pairs = test_step.some_pairs(rng, BATCH)
  params = params_of()
  want, grad = jax.value_and_grad(by_hand)(params, pairs)
  metrics, found = gradient_of(params, pairs, rows=2)
  np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)
  assert jax.tree.structure(found) == jax.tree.structure(grad)
  for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(grad), strict=True):
    np.testing.assert_allclose(x, y, atol=2e-5 * np.abs(y).max())


def test_an_adapter_trains_the_head_whole(rng):
  pairs = test_step.some_pairs(rng, BATCH)
  table = parameters.table(CONFIG)
  adapter = lora.Adapter(2, 4.0, ("query", "down"))
  own = lora.adapter_table(table, adapter)
  assert set(own) == {"blocks", "score"}
  arrays = lora.init_adapters(own, jax.random.key(1))
  arrays["score"] = params_of()["score"]
  whole = lora.attach(params_of(head=0.0), arrays, adapter)
  base, trained = lora.split(whole)
  assert base["score"] is None and set(trained) == {"blocks", "score"}
  joined = lora.join(base, trained)
  np.testing.assert_array_equal(joined["score"], arrays["score"])
  _, found = gradient_of(trained, pairs, rows=2, base=base)
  # `b` is zero, so that the decoder is the base and the head's gradient its.
  _, want = gradient_of(params_of(), pairs, rows=2)
  np.testing.assert_allclose(found["score"], want["score"], rtol=1e-4)
  assert np.abs(found["blocks"]["query"]["b"]).max() > 0
  merged = lora.merge(joined)
  np.testing.assert_array_equal(merged["score"], arrays["score"])


def test_metrics_are_rewards_alone():
  reward_BC = jnp.array([[2.0, 0.5], [-1.0, 1.0]])
  figures = PolicyFigures(reward_BC=reward_BC)
  fixed = FixedFigures(jnp.ones((2, 2)), jnp.ones(2, bool))
  objective = dataclasses.replace(OBJECTIVE, pairs=2)
  values = pair_metrics(objective, {}, figures, fixed)
  assert set(values) == {
    *("loss", "rewards/chosen", "rewards/rejected"),
    *("rewards/margins", "rewards/accuracies"),
  }
  assert values["rewards/accuracies"].tolist() == [1.0, 0.0]
  assert values["rewards/margins"].tolist() == [1.5, -2.0]
  want = [np.log1p(np.exp(-1.5)) + 0.1 * 2.5**2, np.log1p(np.exp(2.0))]
  np.testing.assert_allclose(values["loss"], want, rtol=1e-6)


@pytest.mark.parametrize(
  "head,loss", [("tokens", "bradley_terry"), ("scalar", "nll")]
)
def test_a_loss_that_the_head_cannot_give_is_refused(head, loss):
  config = dataclasses.replace(CONFIG, head=head)
  objective = dataclasses.replace(
    OBJECTIVE, policy=Model(config), method=losses.build(loss)
  )
  with pytest.raises(ValueError, match="set policy.head"):
    objective.check()


def test_no_mesh_changes_a_reward(rng):
  pairs, params = test_step.some_pairs(rng, BATCH), params_of()
  rows = jax.tree.map(
    lambda array: array[0], pack.pack(pairs, length=48, rows=8)
  )
  one_BC = OBJECTIVE.policy.rewards(params, rows, BATCH)
  mesh = parallel.make_mesh(data=2, fsdp=2, model=2, devices=jax.devices()[:8])
  partition = parallel.partition_of(mesh, WHOLE_VOCABULARY)
  computation = Computation(kernel="xla", partition=partition)
  model = Model(CONFIG, computation=computation)
  split = jax.device_put(
    params, parallel.param_shardings(CONFIG, mesh, WHOLE_VOCABULARY)
  )
  rewards = jax.jit(functools.partial(model.rewards, pairs=BATCH))
  rows = jax.device_put(rows, jax.sharding.NamedSharding(mesh, P(ROWS)))
  # A reward near zero is what is left of terms as large as the largest reward.
  near = 1e-5 * float(jnp.abs(one_BC).max())
  np.testing.assert_allclose(rewards(split, rows), one_BC, rtol=0, atol=near)
