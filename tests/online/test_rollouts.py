# SPDX-License-Identifier: Apache-2.0
"""A round of rollouts: hand numbers, what is stored, two passes over it."""

import functools
import itertools
import shutil

import jax
import numpy as np
import pytest

from mrpo_jax.data.batches import Packing, training_batches
from mrpo_jax.generation import Sampling, generate
from mrpo_jax.losses.methods.token_loss import GIVEN
from mrpo_jax.models.config import VALUED
from mrpo_jax.models.packed import Computation
from mrpo_jax.online.advantages import RunningScale
from mrpo_jax.online.rollouts import Rollout, TokenReader, make_round
from mrpo_jax.training import optimizer, train_state
from mrpo_jax.training.objective import Model
from mrpo_jax.training.step import train_step
from tests.material.pages import python_of
from tests.training.test_objective import CONFIG, params_of
from tests.training.test_token_steps import (
  BATCH,
  alone,
  objective_of,
  some_rollouts,
)
from tests.training.test_token_steps import CONFIG as VALUED_CONFIG
from tests.training.test_token_steps import params_of as valued_of

ROLLOUTS = [
  Rollout([3], [4, 5], [-1.0, -2.0], 2.0),
  Rollout([3, 3], [6], [-3.0], 4.0),
]
POLICY = {
  "logp": [np.array([-1.0, -2.5]), np.array([-3.0])],
  "value": [np.array([0.5, 1.0]), np.array([0.0])],
}
REF = [np.array([-1.5, -1.5]), np.array([-3.5])]


def made(rollouts=ROLLOUTS, policy=POLICY, ref=REF, scale=None, **keywords):
  return make_round(
    rollouts,
    policy,
    ref,
    scale or RunningScale(),
    **keywords,
  )


def stored(name, found):
  return [one.tolist() for one, _ in found.tokens[name]]


def close(got, want):
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_round_by_hand():
  # Rewards 2 and 4 over their deviation, the root of 2.  Of the first:
  # delta = 0 + 1 - 0.5 and 1.4142 - 1; A = 0.5 + 0.5 * 0.4142 and 0.4142.
  found, scale = made(lam=0.5)
  root = np.sqrt(2)
  assert scale == (2, 3.0, 2.0)
  close(stored("advantage", found), [[root / 2, root - 1], [2 * root]])
  close(stored("returns", found), [[root / 2 + 0.5, root], [2 * root]])
  close(stored("ref_logp", found), REF)
  close(stored("behaviour_logp", found), [[-1.0, -2.0], [-3.0]])
  assert found.tokens.keys() == {*GIVEN}
  assert [one.chosen_ids for one in found.pairs] == [[4, 5], [6]]
  assert [one.prompt_ids for one in found.pairs] == [[3], [3, 3]]
  assert not any(one.rejected_ids for one in found.pairs)
  want = {
    "reward/mean": 3.0,
    "reward/scale": root,
    "kl": (0.5 - 1.0 + 0.5) / 2,
    "length/mean": 1.5,
    "value/mean": 0.5,
    "behaviour/apart": 0.5 / 3,
  }
  assert found.figures == pytest.approx(want)


def test_rewards_are_scaled_by_all_so_far():
  before = RunningScale().updated([0.0, 0.0, 10.0])
  found, scale = made(scale=before, lam=1.0)
  want = np.std([0, 0, 10, 2, 4], ddof=1)
  assert scale.deviation == pytest.approx(want)
  close(stored("returns", found), [[2 / want] * 2, [4 / want]])


def test_a_kl_penalty_is_taken_from_each_token():
  # log p - log r is 0.5, -1 and 0.5; what is to come counts.
  plain, _ = made(lam=1.0)
  found, _ = made(lam=1.0, kl_penalty=0.1)
  less = [[0.05 - 0.1, -0.1], [0.05]]
  close(
    stored("returns", found),
    [
      np.array(a) - b
      for a, b in zip(stored("returns", plain), less, strict=True)
    ],
  )


def test_advantages_are_whitened_over_the_tokens_that_train_together():
  found, _ = made(lam=0.5)
  plain, _ = made(lam=0.5, whiten_minibatch=False)
  packing = Packing(batch=2, length=16, rows=2)
  for indices in ([0, 1], [1, 0], [0]):
    indices = np.array(indices)
    views = packing.of([found.pairs], indices)
    tokens = [
      {
        name: np.concatenate(
          [
            part[name][rows.slots_RM < 2 * len(indices)]
            for part, rows in zip(given, views[0], strict=True)
          ]
        )
        for name in GIVEN
      }
      for given in (
        one.of(packing, indices, views)["tokens_ARM"] for one in (found, plain)
      )
    ]
    raw = tokens[1]["advantage"]
    want = (raw - raw.mean()) / np.sqrt(raw.var() + 1e-8)
    np.testing.assert_allclose(tokens[0]["advantage"], want, rtol=1e-5)
    for name in {*GIVEN} - {"advantage"}:
      np.testing.assert_array_equal(tokens[0][name], tokens[1][name])
  # What is stored stays as it was.
  close(stored("advantage", found), stored("advantage", plain))


@pytest.mark.parametrize(
  "changes,message",
  [
    (dict(rollouts=[]), "no rollout"),
    (
      dict(rollouts=[ROLLOUTS[0], ROLLOUTS[1]._replace(ids=[])]),
      "rollout 1 has no token",
    ),
    (dict(ref=REF[:1]), "ref_logp of 1 rollouts, not 2"),
    (dict(ref=[REF[0], REF[0]]), "ref_logp of rollout 1 has shape"),
    (
      dict(policy=POLICY | {"value": [np.array([0, np.nan]), np.zeros(1)]}),
      "value of rollout 0 is not finite",
    ),
    (
      dict(rollouts=[ROLLOUTS[0]._replace(behaviour_logp=[-1.0]), ROLLOUTS[1]]),
      "behaviour_logp of rollout 0 has shape",
    ),
    (
      dict(rollouts=[ROLLOUTS[0]._replace(reward=np.nan), ROLLOUTS[1]]),
      "not finite",
    ),
    (dict(kl_penalty=-1.0), "kl_penalty must be from 0 up"),
  ],
)
def test_what_does_not_fit_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    made(**changes)


def reader(config, batch=BATCH, also=()):
  packing = Packing(batch=batch, length=32, rows=2)
  model = Model(config, computation=Computation(kernel="xla"))
  return TokenReader(model, packing, also=also)


def test_one_pass_reads_log_probability_and_value():
  pairs, _ = some_rollouts(N=8)  # more than a batch, which the last is not
  found = reader(VALUED_CONFIG, batch=3, also=("value",))(valued_of(), pairs)
  assert found.keys() == {"logp", "value"}
  for n, pair in enumerate(pairs):
    logp_T, value_T = alone(valued_of(), pair)
    np.testing.assert_allclose(found["logp"][n], logp_T, atol=1e-5)
    np.testing.assert_allclose(found["value"][n], value_T, atol=1e-5)


@pytest.mark.parametrize("name", ["apa", "ppo"])
def test_two_passes_over_a_round_of_the_policys_own_responses(name):
  prompts = [[n, 4, 5] for n in range(3, 3 + 2 * BATCH)]
  sampling = Sampling(max_new_tokens=6)
  said = generate(VALUED_CONFIG, valued_of(0.0), prompts, sampling=sampling)
  rollouts = [
    # More of one token is better.
    Rollout(p, s.ids, s.behaviour_logp, float(s.ids.count(7) + s.ids.count(9)))
    for p, (s,) in zip(prompts, said, strict=True)
  ]
  policy, base = reader(VALUED_CONFIG, also=("value",)), reader(CONFIG)
  pairs = [one.pair() for one in rollouts]
  found, _ = make_round(
    rollouts,
    policy(valued_of(0.0), pairs),
    base(params_of(0), pairs)["logp"],
    RunningScale(),
  )
  assert found.figures["behaviour/apart"] < 1e-4
  assert found.figures["kl"] == pytest.approx(0.0, abs=1e-4)
  assert found.figures["value/mean"] == 0
  transformation, _ = optimizer.make(peak_lr=3e-3, steps=4, warmup=0.0)
  step = jax.jit(
    functools.partial(
      train_step, objective=objective_of(name), transformation=transformation
    )
  )
  state = train_state.create(valued_of(0.0), transformation, {})
  packing = Packing(batch=BATCH, length=32, rows=2)
  batches = training_batches([found.pairs], packing, seed=0, known=found)
  lines = []
  for _, batch in itertools.islice(batches, 4):
    state, metrics = step(state, None, (), *batch)
    lines.append({key: float(one) for key, one in metrics.items()})
  # The policy has not moved yet: the advantages are whitened, of mean 0.
  assert lines[0]["kl/token"] == pytest.approx(0.0, abs=1e-4)
  assert lines[0]["ratio"] == pytest.approx(1.0, abs=1e-4)
  want = {"apa": 100.0, "ppo": 0.0}[name]  # (A / 0.1)^2, -A
  assert lines[0]["loss/policy"] == pytest.approx(want, abs=1e-2)
  assert lines[0]["value/explained_variance"] == pytest.approx(0.0, abs=1e-5)
  assert lines[-1]["loss/value"] < lines[0]["loss/value"]
  assert all(np.isfinite(one) for line in lines for one in line.values())


def test_a_reader_is_of_the_policys_own_tokens():
  with pytest.raises(ValueError, match="view 0"):
    TokenReader(Model(CONFIG, view=1), Packing(batch=2, length=16, rows=2))
  assert VALUED_CONFIG.head == VALUED


@pytest.mark.slow
def test_the_page_of_a_round_in_python_runs(
  inputs, tmp_path, monkeypatch, capsys
):
  shutil.copytree(inputs / "base", tmp_path / "FOLDER")
  monkeypatch.chdir(tmp_path)
  (block,) = python_of("docs/guide/rollouts.md")
  names = {}
  exec(block, names)
  assert int(names["state"].step) == 8
  assert capsys.readouterr().out.count("'reward/mean'") == 2
