# SPDX-License-Identifier: Apache-2.0
"""Reference 0 follows the policy: TR-DPO's updates and APO's rounds."""

import functools
import itertools
import math
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mrpo_jax.data.batches import Packing, training_batches
from mrpo_jax.performance.topology import read_shape
from mrpo_jax.runs.config import load
from mrpo_jax.runs.config.method import chosen_method
from mrpo_jax.runs.models import abstract_models
from mrpo_jax.runs.program import Program
from mrpo_jax.runs.setup import abstract_setup, mesh_of
from mrpo_jax.training import checkpoints, optimizer, train_state
from mrpo_jax.training.step import train_step
from tests.material.runs import (
  assert_equal_runs,
  lines_of,
  mrpo,
  train_debug,
)
from tests.training import test_step

PACKING = Packing(batch=test_step.BATCH, length=48, rows=2)


def run(moves, steps, *, lr=1e-2):
  """[(metrics, state)] after each step, from the same start as reference."""
  transformation = optax.adam(lr)
  objective = test_step.objective_of()
  state = train_state.create(
    test_step.params_of(),
    transformation,
    objective.method.init(1),
    moving=moves.names,
  )
  step = jax.jit(
    functools.partial(
      train_step,
      objective=objective,
      transformation=transformation,
      moves=moves,
    )
  )
  pairs = test_step.some_pairs(np.random.default_rng(0))
  found = []
  for _, batch in itertools.islice(
    training_batches([pairs], PACKING, seed=0), steps
  ):
    state, metrics = step(state, None, (None,), *batch)
    found.append((metrics, state))
  return found


def assert_equal_trees(one, two, **tolerance):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
    np.testing.assert_allclose(a, b, **(tolerance or dict(rtol=0, atol=0)))


def test_a_soft_update_moves_the_reference_part_of_the_way():
  found = run(train_state.ReferenceMoves(every=2, rate=0.25), 5)
  want = test_step.params_of()
  for done, (_, state) in enumerate(found, 1):
    # Before step 3 and step 5, from where the policy then stood.
    if done in (3, 5):
      before = found[done - 2][1].params
      want = jax.tree.map(lambda r, p: 0.75 * r + 0.25 * p, want, before)
    assert_equal_trees(state.moving["reference"], want, atol=1e-7)
  losses_ = [float(metrics["loss"]) for metrics, _ in found]
  assert losses_[0] == pytest.approx(math.log(2), abs=1e-6)
  assert min(losses_[1:]) < 0.68


def test_after_a_hard_update_the_loss_starts_at_ln_2_again():
  found = run(train_state.ReferenceMoves(every=2), 5)
  at_start = [
    float(metrics["loss"]) == pytest.approx(math.log(2), abs=1e-6)
    for metrics, _ in found
  ]
  assert at_start == [True, False, True, False, True]


def test_a_round_starts_beyond_the_outcome_of_the_last():
  transformation = optax.adam(1e-2)
  start, outcome = test_step.params_of(), test_step.params_of(1)
  moves = train_state.ReferenceMoves(round=3, alpha=0.5)
  state = train_state.create(start, transformation, {}, moving=moves.names)
  busy = jax.tree.map(lambda x: x + 1, state.opt_state)
  state = state.replace(params=outcome, opt_state=busy)
  for step in (0, 1, 2, 4):  # no round begins
    here = moves(state.replace(step=np.int32(step)), transformation)
    assert_equal_trees(here.params, outcome)
    assert_equal_trees(here.opt_state, busy)
  here = moves(state.replace(step=np.int32(3)), transformation)
  # From 0 to 1, then half of that again.
  want = jax.tree.map(lambda a, b: b + 0.5 * (b - a), start, outcome)
  assert_equal_trees(here.params, want, atol=1e-6)
  assert_equal_trees(here.moving["reference"], here.params)
  assert_equal_trees(here.moving["previous"], outcome)
  assert_equal_trees(here.opt_state, transformation.init(start))


def test_a_round_of_no_acceleration_is_a_new_run_from_the_outcome():
  found = run(train_state.ReferenceMoves(round=2, alpha=0.0), 3)
  assert float(found[2][0]["loss"]) == pytest.approx(math.log(2), abs=1e-6)
  assert_equal_trees(found[2][1].moving["reference"], found[1][1].params)


CONFIG = pathlib.Path(__file__).parents[2] / "configs/moving_reference.py"
# Of a round of three steps, by hand: a step of warm-up from half of the peak
# of 0.01, then half a cosine down to 0, of which the third is the middle.
RATES = [0.005, 0.01, 0.005]


def test_the_learning_rate_of_every_round_is_that_of_a_run():
  values = {"optimizer.peak_lr": 0.01, "optimizer.warmup": 0.4}
  config = load(f"{CONFIG}:rounds,debug").changed(values)
  assert (config.steps, config.rounds.count) == (9, 3)
  setup = abstract_setup(config, mesh_of(config), read_shape)
  program = Program(setup, abstract_models(setup.described, setup.mesh))
  rates = [program.learning_rate(step) for step in range(1, 10)]
  assert rates == pytest.approx(3 * RATES)


def test_a_fixed_and_a_moving_reference_are_one():
  config = load(f"{CONFIG}:dual,debug")
  assert config.references.names == ("base", "start")
  assert config.references["start"].path == "policy"
  method = chosen_method(config)
  ref_BCK = jnp.array([[[-40.0, -44.0], [-46.0, -45.0]]])
  want = 0.9 * ref_BCK[..., 0] + 0.1 * ref_BCK[..., 1]
  np.testing.assert_allclose(method.virtual(ref_BCK), want, rtol=1e-6)
  setup = abstract_setup(config, mesh_of(config), read_shape)
  scored = [one.scored for one in setup.objective.references]
  assert scored == [False, True]  # what stays is scored once


def test_a_run_without_rounds_has_one_schedule():
  values = {"optimizer.peak_lr": 0.01, "optimizer.warmup": 0.4, "steps": 3}
  config = load(f"{CONFIG}:debug").changed(values)
  assert config.rounds.count == 1
  setup = abstract_setup(config, mesh_of(config), read_shape)
  program = Program(setup, abstract_models(setup.described, setup.mesh))
  rates = [program.learning_rate(step) for step in range(1, 4)]
  assert rates == pytest.approx(RATES)


def test_the_optimizer_of_a_round_takes_the_rates_that_are_logged():
  _, schedule = optimizer.make(peak_lr=0.01, steps=3, warmup=0.4)
  found = run(train_state.ReferenceMoves(round=3), 6, lr=schedule)
  steps = [int(state.opt_state[1].count) for _, state in found]
  assert steps == [1, 2, 3, 1, 2, 3]
  for first in (0, 3):  # Adam's first step is the rate, either way
    state = found[first][1]
    moved = jax.tree.map(
      lambda a, b: np.abs(a - b).max(), state.params, state.moving["reference"]
    )
    assert max(jax.tree.leaves(moved)) == pytest.approx(RATES[0], rel=1e-3)


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_the_same(tmp_path):
  """Three rounds of three steps; the second half begins inside the last."""
  argv = (
    "train",
    f"--config={CONFIG}:rounds,debug",
    "--config.checkpoint_every=4",
    "--config.optimizer.peak_lr=0.01",
    "--config.data.eval=",
  )
  assert mrpo(*argv, f"--workdir={tmp_path}/whole") == 0
  shutil.copytree(tmp_path / "whole", tmp_path / "halves")
  shutil.rmtree(tmp_path / "halves" / "checkpoints" / "9")
  assert checkpoints.steps(tmp_path / "halves") == [8]
  assert mrpo(*argv, f"--workdir={tmp_path}/halves") == 0
  assert_equal_runs(tmp_path / "whole", tmp_path / "halves", step=9)
  lines = lines_of(tmp_path / "whole")
  starts = [abs(x["loss"] - math.log(2)) < 1e-5 for x in lines]
  assert starts == [True, False, False] * 3
  rates = [line["learning_rate"] for line in lines]
  assert rates[:3] == rates[3:6] == rates[6:]  # the schedule begins anew


@pytest.mark.parametrize(
  "given,said",
  [
    ("reference_update.rate=0", "more than 0"),
    ("reference_update.rate=1.5", "at most 1"),
    ("rounds.count=3", "does not divide config.steps=8"),
    ("references.base.mode=scored", "must be 'online'"),
    ("references.base.dtype=bfloat16", "must be 'float32'"),
  ],
)
def test_what_cannot_move_is_refused(tmp_path, given, said, capsys):
  moves = "--config.reference_update.every=2"
  argv = (moves, f"--config.{given}")
  assert train_debug(tmp_path / "w", *argv, run="dpo") == 2
  assert said in capsys.readouterr().err
  assert not (tmp_path / "w").exists()
