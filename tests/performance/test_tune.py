# SPDX-License-Identifier: Apache-2.0
"""`mrpo plan --tune`: what it tries, and what it keeps."""

import dataclasses
import json
import pathlib

import pytest

from mrpo_jax import cli
from mrpo_jax.data import pack
from mrpo_jax.data.encode import Encoded
from mrpo_jax.errors import InputError
from mrpo_jax.performance import plan, tune
from mrpo_jax.performance.abstract import assume
from mrpo_jax.performance.topology import find_target, read_shape
from mrpo_jax.rows import token_counts
from mrpo_jax.runs.config import load
from mrpo_jax.runs.setup import abstract_setup, mesh_of
from tests.material.logged import logged

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = f"{ROOT}/configs/quickstart.py:mrpo,debug"
LENGTHS = 32, 32


@pytest.fixture
def target():
  """Eight CPU devices, as fast as TPUs."""
  return dataclasses.replace(find_target("cpu:8"), chip="v5p", memory=100.0)


def config_of(**flags):
  return load(CONFIG).changed(flags)


def judge_by(speed, peak=lambda config: 1.0, score=1.0, scoring_peak=None):
  """A judge of made-up figures; it writes down what it was asked."""
  asked = []

  def judge(config, scoring):
    asked.append((config, scoring))
    if config.policy.kernel == "xla":
      raise InputError("no such kernel here")
    pairs = {"train": speed(config)}
    if scoring:
      for name, one in config.references.items():
        if one.mode == "scored":
          pairs[f"score {name}"] = score
    steps = {}
    for key, bound in pairs.items():
      of = peak if key == "train" else scoring_peak or peak
      steps[key] = {
        "seconds": {"compute": 1.0},
        "pairs_per_second_bound": bound,
        "bytes": {"peak": of(config)},
        "fits": of(config) <= 100.0,
      }
    return {
      "steps": steps,
      "fits": all(figures["fits"] for figures in steps.values()),
    }

  judge.asked = asked
  return judge


def test_the_fastest_that_fits_is_found_one_setting_after_the_other(target):
  def speed(config):
    bound = {"none": 30.0, "dots": 20.0, "full": 10.0}[config.policy.remat]
    return bound + 5 * (config.mesh.fsdp == 4) + 3 * (config.mesh.model == 2)

  def peak(config):  # nothing is kept where weights are on every device
    keeps = config.policy.remat == "none" and config.mesh.fsdp < 4
    return 101.0 if keeps else 1.0

  judge = judge_by(speed, peak)
  config = config_of(**{"policy.remat": "full"})
  found = tune.tune(config, target, LENGTHS, judge)
  assert found["pairs_per_second"] == 38.0
  best = config.changed(found["flags"])
  assert best.policy.remat == "none"  # tried again, where it fits
  assert (best.mesh.data, best.mesh.fsdp, best.mesh.model) == (1, 4, 2)
  assert judge.asked[-1] == (best, True)  # its scoring steps are planned too
  plain = [config for config, scoring in judge.asked if not scoring]
  assert all(plain.count(one) == 1 for one in plain)  # none is made twice
  refused = [one for one in found["tried"] if "why_not" in one]
  assert [one["why_not"] for one in refused] == ["no such kernel here"]
  assert {one["fits"] for one in found["tried"] if "fits" in one} == {
    *(True, False)
  }


@pytest.mark.parametrize("epochs,mode", [(1.0, "online"), (3.0, "scored")])
def test_scoring_pays_where_pairs_are_seen_again(target, epochs, mode):
  def speed(config):
    return 15.0 if config.references.base.mode == "scored" else 10.0

  config = config_of(epochs=epochs, steps=0)
  assert {one.mode for _, one in config.references.items()} == {"online"}
  # Two references: 1 / (1 / 15 + 2 / 50) is less than 10, a third of it not.
  judge = judge_by(speed, score=50.0)
  found = tune.tune(config, target, LENGTHS, judge)
  best = config.changed(found["flags"])
  assert {one.mode for _, one in best.references.items()} == {mode}


def test_the_fastest_whose_scoring_fits_too(target):
  def scoring_peak(config):
    return 500.0 if config.mesh.fsdp < 8 else 1.0

  config = config_of(
    **{"references.base.mode": "scored", "mesh.data": 4, "mesh.fsdp": 2}
  )

  def speed(config):
    return 9.0 - config.mesh.fsdp

  judge = judge_by(speed, scoring_peak=scoring_peak)
  found = tune.tune(config, target, LENGTHS, judge)
  assert config.changed(found["flags"]).mesh.fsdp == 8
  assert found["plan"]["fits"] and found["pairs_per_second"] == 1.0


def test_rows_that_another_mesh_does_not_divide_are_no_reason(target):
  def speed(config):
    return 10.0 if config.mesh.model == 4 else 1.0

  config = config_of(**{"data.rows": 8, "mesh.rules.kv_heads": ""})
  found = tune.tune(config, target, LENGTHS, judge_by(speed))
  assert config.changed(found["flags"]).mesh.model == 4


def test_short_pairs_have_rows_too(target):
  config = config_of(**{"data.max_prompt": 8, "data.max_response": 8})
  assert tune._shapes(config, target, (4, 4))[0]["data.row_length"] == 256


def test_where_nothing_fits_there_are_no_flags(target):
  judge = judge_by(lambda config: 1.0, lambda config: 101.0)
  found = tune.tune(config_of(), target, LENGTHS, judge)
  assert found["flags"] is None and found["plan"] is None
  assert len(found["tried"]) > 3


def test_rows_are_those_that_pairs_fill_best(target):
  config = config_of()
  longest = config.data.max_prompt + 2 * config.data.max_response
  shapes = tune._shapes(config, target, LENGTHS)
  assert len(shapes) == tune.COMPILED
  for flags in shapes:
    length, rows = flags["data.row_length"], flags["data.rows"]
    assert longest <= length <= tune.LONGEST * longest and rows % 8 == 0
  # As a run packs them: what the best shape computes, and the config's own.
  own = {"data.row_length": config.data.row_length, "data.rows": 8}
  computed = []
  for flags in (shapes[0], own):
    changed = config.changed(flags)
    mesh = mesh_of(changed, target.devices)
    assumed = assume(abstract_setup(changed, mesh, read_shape), LENGTHS)
    computed.append(assumed.mean(lambda views: token_counts(views[0])[1]))
  assert computed[0] <= computed[1]


@pytest.mark.parametrize("few_pairs", [False, True])
def test_computed_tokens_are_those_of_packed_rows(rng, few_pairs):
  shape = dict(length=64, rows=2, few_pairs=few_pairs)
  for N in (0, 1, 7, 30):
    sizes_N = rng.integers(3, 20, N)
    pairs = [Encoded([0], [0], [0] * (n - 2)) for n in sizes_N]
    view = pack.pack_step(pairs, batch=30, **shape)
    _, slots = token_counts(view)
    assert pack.computed_tokens(sizes_N, **shape) == slots


@pytest.mark.parametrize(
  "flags,match",
  [
    (
      ["--topology=cpu:8", "--tune"],
      "--tune wants a chip whose speed is known",
    ),
    (["--topology=cpu:8", "--tune", "--fit"], "--fit and --tune"),
  ],
)
def test_wrong_input_is_one_line(capsys, monkeypatch, flags, match):
  monkeypatch.setattr(plan, "measured", None)  # it is refused before
  assert cli.main(["plan", f"--config={CONFIG}", *flags]) == 2
  lines = capsys.readouterr().err.strip().split("\n")
  assert len(lines) == 1 and match in lines[0]


@pytest.mark.slow  # compiles some programs
def test_real_programs_are_compared(monkeypatch, tmp_path, target):
  monkeypatch.setattr(tune, "COMPILED", 1)
  monkeypatch.setattr(tune, "MODEL", ())
  monkeypatch.setitem(tune.KERNELS, "cpu", ())
  target = dataclasses.replace(target, memory=2.0**30)
  monkeypatch.setattr(plan, "find_target", lambda *_: target)
  to = tmp_path / "plan.json"
  with logged() as lines:
    plan.run(
      config_of(**{"policy.remat": "full"}), "cpu:8", fastest=True, to=str(to)
    )
  found = json.loads(to.read_text())
  as_it_is = found["steps"]["train"]["pairs_per_second_bound"]
  best = found["tune"]
  assert best["pairs_per_second"] >= as_it_is
  assert (
    best["plan"]["steps"]["train"]["pairs_per_second_bound"]
    == (best["pairs_per_second"])
  )
  assert any(line.startswith("fastest of ") for line in lines)
