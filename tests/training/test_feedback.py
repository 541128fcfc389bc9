# SPDX-License-Identifier: Apache-2.0
"""Steps on single responses with labels: TRL's numbers, laws, metrics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import hub, losses
from mrpo_jax.data import pack
from mrpo_jax.data.encode import Encoded
from mrpo_jax.models.packed import Computation
from mrpo_jax.training import optimizer, train_state
from mrpo_jax.training.metrics import ranking, summary
from mrpo_jax.training.objective import Model, Objective
from mrpo_jax.training.step import train_step
from tests.golden.make_feedback import EOS, HERE, POLICY, REFERENCE, ROWS

WEIGHTS = dict(beta=0.05, desirable_weight=1.2, undesirable_weight=1.5)
XLA = Computation(kernel="xla")


def encoded(mismatched):
  """ROWS as pairs, each with the response of the row before it, or alone."""
  responses = [[*said, EOS] for _, said, _ in ROWS]
  others = responses[-1:] + responses[:-1]
  return [
    Encoded(prompt, own, other if mismatched else [])
    for (prompt, *_), own, other in zip(ROWS, responses, others, strict=True)
  ]


LABELS = jnp.array([good for *_, good in ROWS])


@functools.cache
def models():
  """((config, params) of the policy, and of the reference)."""
  return tuple(hub.load(HERE / name) for name in (POLICY, REFERENCE))


@functools.cache
def objective_of(name, K=1, pairs=5, **hyper):
  (policy, _), (reference, _) = models()
  return Objective(
    pairs=pairs,
    policy=Model(policy, computation=XLA),
    references=(Model(reference, computation=XLA),) * K,
    names=tuple("abc"[:K]),
    method=losses.build(name, **hyper),
  )


@functools.cache
def step_of(objective):
  transformation, _ = optimizer.make(
    peak_lr=1e-3, steps=3, warmup=0.0, end_lr_share=1.0, clip_norm=1e9
  )
  objective.check()
  step = functools.partial(
    train_step, objective=objective, transformation=transformation
  )
  return jax.jit(step), transformation


def steps(objective, count=3, *, rows=None, labels=LABELS):
  """The metrics of the first steps on all ROWS, and the state after them."""
  step, transformation = step_of(objective)
  if rows is None:
    rows = pack.pack(encoded(objective.method.mismatched), length=16, rows=1)
  (_, params), (_, reference) = models()
  K = len(objective.references)
  state = train_state.create(params, transformation, objective.method.init(K))
  found = []
  for _ in range(count):
    state, metrics = step(
      state, None, (reference,) * K, ((rows,),), {"desirable_B": labels}
    )
    found.append({name: float(value) for name, value in metrics.items()})
  return found, state


# What TRL 1.16 logged of three steps: python tests/golden/make_feedback.py
# with torch 2.13 on a CPU.
OF_TRL = {
  "kto_unpaired": {
    "loss": [0.7263368368148804, 0.7159565687179565, 0.7057051062583923],
    "kl": [56.77672576904297, 56.698402404785156, 56.60881805419922],
    "rewards/chosen": [2.425090630849203, 2.468880494435628, 2.511530717213949],
    "rewards/rejected": [2.8756442070007, 2.820107936859131, 2.765734672546387],
  },
  "apo_zero_unpaired": {
    "loss": [0.6467522382736206, 0.6404614448547363, 0.6346433758735657],
    "rewards/chosen": [2.425090630849203, 2.464840412139893, 2.501957734425863],
    "rewards/rejected": [2.8756442070007, 2.84113645553589, 2.807322502136231],
  },
}


@pytest.mark.parametrize("name", OF_TRL)
def test_the_first_steps_are_those_of_trl(name):
  found, _ = steps(objective_of(name, **WEIGHTS))
  for figure, want in OF_TRL[name].items():
    got = [metrics[figure] for metrics in found]
    np.testing.assert_allclose(got, want, rtol=2e-5, err_msg=figure)


@pytest.mark.parametrize("name", ["kto_unpaired", "bco_unpaired"])
def test_micro_batches_make_no_difference(name):
  objective = objective_of(name, beta=0.05)
  one, _ = steps(objective, 2)
  rows = pack.pack(
    encoded(objective.method.mismatched), length=96, rows=1, batches=1
  )
  whole, _ = steps(objective, 2, rows=rows)
  for before, after in zip(one, whole, strict=True):
    for figure in ("loss", "grad_norm", "rewards/margins"):
      np.testing.assert_allclose(before[figure], after[figure], rtol=1e-5)


def test_a_batch_that_is_not_full_is_the_same():
  full, _ = steps(objective_of("kto_unpaired", **WEIGHTS), 1)
  labels = jnp.concatenate([LABELS, jnp.zeros(2, bool)])
  objective = objective_of("kto_unpaired", pairs=len(ROWS) + 2, **WEIGHTS)
  some, _ = steps(objective, 1, labels=labels)
  for figure in ("loss", "kl", "desirable", "rewards/rejected", "grad_norm"):
    np.testing.assert_allclose(some[0][figure], full[0][figure], rtol=1e-5)


@pytest.mark.parametrize("mixture", ["harmonic", "multi"])
def test_equal_references_are_one(mixture):
  one, _ = steps(objective_of("kto_unpaired", **WEIGHTS), 1)
  objective = objective_of("kto_unpaired", K=2, mixture=mixture, **WEIGHTS)
  two, _ = steps(objective, 1)
  for figure in ("loss", "kl", "virtual/rewards/chosen", "grad_norm"):
    np.testing.assert_allclose(two[0][figure], one[0][figure], rtol=1e-5)


def test_labels_say_which_way():
  objective = objective_of("apo_zero_unpaired", **WEIGHTS)
  (first, *_, last), _ = steps(objective)
  assert last["rewards/chosen"] > first["rewards/chosen"]
  assert last["rewards/rejected"] < first["rewards/rejected"]
  (first, *_, last), _ = steps(objective, labels=~LABELS)
  assert last["rewards/chosen"] > first["rewards/chosen"]
  assert last["rewards/rejected"] < first["rewards/rejected"]


def test_bco_remembers_the_mean_of_all_rewards():
  found, state = steps(objective_of("bco_unpaired", beta=0.05), 2)
  means = [
    0.6 * one["rewards/chosen"] + 0.4 * one["rewards/rejected"] for one in found
  ]  # three of five are good
  np.testing.assert_allclose(
    state.method_state["reward"], [np.mean(means), 10.0], rtol=1e-5
  )


def test_the_shift_of_bco_is_that_of_the_batch_too():
  # One good and one bad response alike, r = 3: the shift is beta r, so that
  # both rewards are 0, and the loss is ln 2 for each.
  method = losses.build("bco_unpaired", beta=0.5)
  logp_BC, ref_BCK = jnp.full((2, 2), 3.0), jnp.zeros((2, 2, 1))
  labels = dict(desirable_B=jnp.array([True, False]))
  state = method.init(1)
  np.testing.assert_allclose(
    method(logp_BC, ref_BCK, state=state, **labels), np.log(2.0), rtol=1e-6
  )
  state = method.update(state, logp_BC, ref_BCK, **labels)
  # Of rewards 1.5 and 1.5, then 0.5 and 0.5: the mean of four is 1.
  got_B = method(logp_BC - 2.0, ref_BCK, state=state, **labels)
  np.testing.assert_allclose(got_B, np.log1p(np.exp([0.5, -0.5])), rtol=1e-6)
  # Of which a response that is none is no part.
  labels = dict(desirable_B=jnp.array([True, False]), valid_B=jnp.array([1, 0]))
  state = method.update(method.init(1), logp_BC, ref_BCK, **labels)
  np.testing.assert_allclose(state["reward"], [1.5, 1.0])


def test_there_is_no_figure_of_pairs():
  (metrics,), _ = steps(objective_of("kto_unpaired", **WEIGHTS), 1)
  for name in metrics:
    assert "gradient_scale" not in name and "policy" not in name
    assert not name.endswith(("/margin", "/accuracy"))


def test_means_by_label_by_hand():
  # Good ones have rewards 1 and 2, the bad one 6; three of four are right.
  values = {
    "desirable": np.array([1.0, 1.0, 0.0, 0.0]),
    "rewards/chosen": np.array([1.0, 2.0, 0.0, 0.0]),
    "rewards/rejected": np.array([0.0, 0.0, 6.0, -1.0]),
    "rewards/accuracies": np.array([1.0, 1.0, 0.0, 1.0]),
  }
  assert summary(values, np.mean) == {
    "desirable": 0.5,
    "rewards/chosen": 1.5,
    "rewards/rejected": 2.5,
    "rewards/accuracies": 0.75,
    "rewards/margins": -1.0,
  }
  # 1 and 2 are above -1, and below 6.
  assert ranking(values) == {"rewards/auc": 0.5}


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_label_alone_has_no_margin(label):
  reward = np.array([1.0, 3.0])
  values = {
    "desirable": np.full(2, label),
    "rewards/chosen": label * reward,
    "rewards/rejected": (1 - label) * reward,
  }
  means = summary(values, np.mean)
  assert means["rewards/margins"] == 0.0
  assert means["rewards/chosen"] == 2.0 * label
  assert means["rewards/rejected"] == 2.0 * (1 - label)
  assert ranking(values) == {}


def test_ties_of_a_ranking_count_half():
  values = {
    "desirable": np.array([1.0, 0.0, 0.0]),
    "rewards/chosen": np.array([2.0, 0.0, 0.0]),
    "rewards/rejected": np.array([0.0, 2.0, 1.0]),
  }
  assert ranking(values) == {"rewards/auc": 0.75}
  assert ranking({"loss": np.ones(2)}) == {}
