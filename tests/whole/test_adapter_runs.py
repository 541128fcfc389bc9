# SPDX-License-Identifier: Apache-2.0
"""Runs that train an adapter, on a frozen base that references share."""

import dataclasses
import functools
import json
import math
import os
import signal

import jax
import numpy as np
import pytest
import qwix

from mrpo_jax import hub
from mrpo_jax.hub import peft
from mrpo_jax.models import lora, parameters, transformer
from mrpo_jax.models.config import VALUED
from mrpo_jax.runs.config import read
from mrpo_jax.runs.data import load_pairs, load_tokenizers
from mrpo_jax.runs.models import (
  Described,
  Loaded,
  base_params,
  describe_models,
  load_models,
  starts_alike,
)
from mrpo_jax.runs.setup import mesh_of
from mrpo_jax.runs.workdir import recorded_config
from mrpo_jax.training import checkpoints
from mrpo_jax.training.log import Log
from tests.material.config import CONFIG, get_config
from tests.material.runs import (
  assert_equal_runs,
  mrpo,
  on_one_device,
  state_of,
  untimed,
)

LORA = (
  "--config.policy.adapter.rank=4",
  "--config.policy.adapter.alpha=8",
  "--config.optimizer.peak_lr=3e-2",
  "--config.checkpoint_every=2",
)
pytestmark = pytest.mark.usefixtures("one_device")


def train(inputs, workdir, *overrides):
  config = f"--config={CONFIG}:dpo,inputs={inputs}"
  data = f"--config.data.train={inputs}/few.jsonl"  # one batch
  return mrpo("train", config, data, f"--workdir={workdir}", *overrides)


@pytest.fixture(scope="module")
def finished(inputs, shared):
  """Five steps of an adapter with dropout on an int4 base."""

  def run(folder):
    with on_one_device():
      assert train(inputs, folder / "dpo", *LORA, *QLORA) == 0

  return shared("quantised_adapter", run) / "dpo"


QLORA = (
  "--config.policy.quantize=int4",
  "--config.policy.quantize_group=16",
  "--config.policy.adapter.dropout=0.25",
)


@pytest.fixture(scope="module")
def plain(inputs, shared):
  """Five steps of an adapter without dropout on a float32 base."""
  more = (f"--config.data.eval={inputs}/few.jsonl", "--config.eval_every=5")

  def run(folder):
    with on_one_device():
      assert train(inputs, folder / "dpo", *LORA, *more) == 0

  return shared("adapter", run) / "dpo"


@pytest.mark.quick
@pytest.mark.parametrize("run", ["plain", "finished"])
def test_dpo_starts_at_ln_2_and_falls(request, run):
  lines = untimed(request.getfixturevalue(run))
  assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
  assert lines[-1]["loss"] < 0.68
  if run == "plain":  # judged on the pairs of every step, after the last one
    assert lines[-1]["eval/loss"] < lines[-1]["loss"]


def test_a_checkpoint_holds_the_adapter_alone(inputs, plain):
  state = state_of(plain, 5)
  config = hub.read_config(inputs / "base")
  table = lora.adapter_table(parameters.table(config), lora.Adapter(4, 8.0))
  sizes = jax.tree.map(lambda array: array.shape, state["params"])
  assert sizes == parameters.map_specs(lambda one: one.shape, table)
  held = sum(array.nbytes for array in jax.tree.leaves(state))
  weights = 4 * sum(math.prod(s.shape) for s in table_leaves(table))
  assert held < 3 * weights + 100  # two moments beside each, and counters


def table_leaves(table):
  return jax.tree.leaves(table, is_leaf=parameters.is_spec)


def test_stopped_and_resumed_ends_bit_equal(inputs, finished, tmp_path):
  workdir = tmp_path / "stopped"
  recorded = Log._record

  def record(self, step, *rest):
    if step == 2:  # step 3 is already on its way
      os.kill(os.getpid(), signal.SIGTERM)
    return recorded(self, step, *rest)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Log, "_record", record)
    assert train(inputs, workdir, *LORA, *QLORA) == 0
  assert checkpoints.steps(workdir)[0] in (2, 3)
  assert train(inputs, workdir, *LORA, *QLORA) == 0
  assert_equal_runs(finished, workdir, step=5)


def test_another_adapter_in_the_same_workdir_is_refused(
  inputs, finished, capsys
):
  other = "--config.policy.adapter.alpha=4"
  assert train(inputs, finished, *LORA, *QLORA, other) == 2
  assert "adapter.alpha: 8.0 -> 4.0" in capsys.readouterr().err


# What is loaded.


def config_of(inputs, **changes):
  values = get_config(f"dpo,inputs={inputs}").to_dict()
  for key, value in changes.items():
    section, name = key.split("_", 1)
    if section == "policy":
      values["policy"][name] = value
    else:
      values["references"][section] = value
      values["references"]["names"] = (*values["references"]["names"], section)
  values["references"]["names"] = tuple(
    dict.fromkeys(values["references"]["names"])
  )
  return read(values)


def load(config):
  pairs = load_pairs(config)
  tokenizers = load_tokenizers(config, "", pairs["train"])
  mesh = mesh_of(config)
  described = describe_models(config, tokenizers, mesh)
  loaded = load_models(described, mesh)
  return [Both(described[key], loaded[key]) for key in loaded]


@dataclasses.dataclass
class Both:
  """A model of a run, described and loaded."""

  described: Described
  loaded: Loaded

  @property
  def params(self):
    return self.loaded.params


def alike(policy, reference):
  return starts_alike(
    policy.described, policy.loaded.adapter, reference.described
  )


def buffers(tree):
  return {
    shard.data.unsafe_buffer_pointer()
    for array in jax.tree.leaves(tree)
    for shard in array.addressable_shards
  }


ADAPTER = dict(rank=4, alpha=8.0)


@pytest.mark.parametrize("adapter", [None, dict(rank=2, alpha=4.0), "peft"])
def test_a_value_head_is_the_policys_alone_beside_the_same_arrays(
  inputs, tmp_path, adapter
):
  if adapter == "peft":  # a folder, which holds none
    model = hub.read_config(inputs / "base")
    kind = lora.Adapter(2, 4.0, ("query",))
    own = lora.adapter_table(parameters.table(model), kind)
    arrays = lora.init_adapters(own, jax.random.key(0))
    peft.save(tmp_path / "a", model, kind, arrays)
    adapter = dict(path=str(tmp_path / "a"))
  config = config_of(inputs, policy_head=VALUED, policy_adapter=adapter)
  policy, base = load(config)
  assert policy.described.model.config.head == VALUED
  assert base.described.model.config.head == "tokens"
  value = policy.params["value_head"]
  assert value.shape == (1, 32) and not value.any()
  assert "value_head" not in base.params
  assert alike(policy, base)  # it adds nothing to what the policy says
  shared = buffers(policy.params) & buffers(base.params)
  if adapter is None:  # the policy's own are trained
    assert not shared
  else:
    assert buffers(lora.strip(base.params)) <= shared


@pytest.mark.parametrize("quantize", ["", "int8"])
def test_the_reference_is_the_base_of_the_policy(inputs, quantize):
  config = config_of(
    inputs,
    policy_adapter=ADAPTER,
    policy_quantize=quantize,
    policy_dtype="bfloat16",
    same_=dict(path=f"{inputs}/base", dtype="bfloat16", quantize=quantize),
  )
  policy, *references = load(config)
  base, trained = lora.split(policy.params)
  assert len(references) == 2
  for reference in references:
    assert buffers(reference.params) == buffers(base)
    assert alike(policy, reference)
  assert not buffers(base) & buffers(trained)
  assert all(x.dtype == np.float32 for x in jax.tree.leaves(trained))
  quantised = isinstance(base["blocks"]["up"].base, qwix.QArray)
  assert quantised == bool(quantize)


def test_a_policy_that_is_trained_whole_shares_with_none(inputs):
  other = dict(path=f"{inputs}/base", quantize="int8")
  policy, base, small = load(config_of(inputs, small_=other))
  assert not buffers(policy.params) & buffers(base.params)
  assert alike(policy, base)
  assert not alike(policy, small)
  assert small.params["blocks"]["up"].qvalue.dtype == np.int8


def test_adapter_references_share_one_base(inputs, plain, tmp_path):
  to = tmp_path / "adapter"
  assert mrpo("export", f"--workdir={plain}", f"--to={to}") == 0
  other = dict(path=f"{inputs}/base", adapter=str(to))
  config = config_of(inputs, one_=other, two_=other)
  policy, base, one, two = load(config)
  shared = lora.strip(one.params)
  assert buffers(shared) == buffers(lora.strip(two.params))
  assert buffers(shared) == buffers(base.params)
  assert not buffers(shared) & buffers(policy.params)
  assert not alike(policy, one)
  # An imported adapter: the reference with the same one is its start.
  off = dict(path="policy-base")
  config = config_of(
    inputs, policy_adapter=dict(path=str(to)), one_=other, off_=off
  )
  policy, base, one, off = load(config)
  assert alike(policy, one) and alike(policy, base)
  assert not alike(policy, off)
  assert buffers(lora.strip(base.params)) == buffers(off.params)
  assert not buffers(base.params) & buffers(lora.split(policy.params)[1])
  for a, b in zip(
    *(jax.tree.leaves(x.params) for x in (one, base)), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  for a, b in zip(
    jax.tree.leaves(policy.params), jax.tree.leaves(one.params), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_an_imported_adapter_trains_on(inputs, plain, tmp_path, capsys):
  to, workdir = tmp_path / "adapter", tmp_path / "w"
  assert mrpo("export", f"--workdir={plain}", f"--to={to}") == 0
  more = (
    f"--config.policy.adapter.path={to}",
    "--config.steps=2",
    "--config.optimizer.peak_lr=3e-2",
  )
  assert train(inputs, workdir, *more) == 0
  said = f"references.base: the policy's start, with its adapter {to}; path="
  assert said in capsys.readouterr().out
  losses = [x["loss"] for x in untimed(workdir)]
  assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
  before, after = (
    np.asarray(state["params"]["blocks"]["up"]["b"])
    for state in (state_of(plain, 5), state_of(workdir, 2))
  )
  assert 0 < np.abs(after - before).max() < 0.1
  values = json.loads((to / peft.CONFIG).read_text())
  values["lora_alpha"] = 9
  (to / peft.CONFIG).write_text(json.dumps(values))
  assert train(inputs, workdir, *more) == 2


def test_with_its_adapter_off_the_start_is_another_reference(
  inputs, plain, tmp_path
):
  to, workdir = tmp_path / "adapter", tmp_path / "w"
  assert mrpo("export", f"--workdir={plain}", f"--to={to}") == 0
  more = (
    f"--config.policy.adapter.path={to}",
    "--config.references.base.path=policy-base",
    "--config.steps=1",
  )
  assert train(inputs, workdir, *more) == 0
  # It begins where the run before it ended.
  first, last = untimed(workdir)[0]["loss"], untimed(plain)[-1]
  assert first == pytest.approx(last["eval/loss"], abs=1e-5)
  assert first < 0.68


def test_a_base_that_moves_starts_with_the_imported_adapter(
  inputs, plain, tmp_path
):
  to, workdir = tmp_path / "adapter", tmp_path / "w"
  assert mrpo("export", f"--workdir={plain}", f"--to={to}") == 0
  more = (
    f"--config.policy.adapter.path={to}",
    "--config.reference_update.every=1",
    "--config.steps=2",
    "--config.optimizer.peak_lr=3e-2",
  )
  assert train(inputs, workdir, *more) == 0
  # At rate 1 the reference is the policy before every step.
  losses = [x["loss"] for x in untimed(workdir)]
  assert losses == pytest.approx([math.log(2)] * 2, abs=1e-6)


def test_scales_of_layers_train_on_and_come_back(inputs, tmp_path):
  config = hub.read_config(inputs / "third")  # of two layers
  given = lora.Adapter(2, 3.0, ("query", "up"), scales=(("query", (0.5, 6.0)),))
  table = lora.adapter_table(parameters.table(config), given)
  arrays = parameters.map_specs(lambda one: np.full(one.shape, 0.1), table)
  peft.save(tmp_path / "a", config, given, arrays)
  more = (
    f"--config.policy.path={inputs}/third",
    f"--config.policy.adapter.path={tmp_path}/a",
    "--config.steps=2",
  )
  assert train(inputs, tmp_path / "w", *more) == 0
  losses = [x["loss"] for x in untimed(tmp_path / "w")]
  assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
  workdir, to = f"--workdir={tmp_path}/w", f"--to={tmp_path}/to"
  assert mrpo("export", workdir, to) == 0
  assert peft.load(tmp_path / "to", config)[0] == given


# Export.


@pytest.mark.parametrize(
  "run", ["plain", pytest.param("finished", marks=pytest.mark.slow)]
)
def test_exports_compute_what_was_trained(inputs, tmp_path, request, run):
  workdir = request.getfixturevalue(run)
  content = json.loads((workdir / "config.json").read_text())
  base = recorded_config("config.json", content).models()["policy"].base
  model = hub.read_config(inputs / "base")
  params = base_params(base, model)
  adapter = lora.Adapter(4, 8.0)
  trained = state_of(workdir, 5)["params"]
  tokens_BT = np.arange(24).reshape(2, 12) * 7 % 400
  logits = functools.partial(transformer.apply, model, tokens_BT=tokens_BT)
  want = logits(lora.attach(params, trained, adapter))
  assert np.abs(want - logits(params)).max() > 1e-3
  for name, flags in (("adapter", ()), ("merged", ("--merge-adapters",))):
    to = tmp_path / name
    assert mrpo("export", f"--workdir={workdir}", f"--to={to}", *flags) == 0
    assert (to / "tokenizer.json").exists()
  _, merged = hub.load(tmp_path / "merged")
  gap = np.abs(logits(merged) - want).max()
  assert gap < 2e-6 * np.abs(want).max()
  found, arrays = peft.load(tmp_path / "adapter", model)
  assert found.scale == adapter.scale
  for a, b in zip(
    jax.tree.leaves(arrays), jax.tree.leaves(trained), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  values = json.loads((tmp_path / "adapter" / peft.CONFIG).read_text())
  assert values["base_model_name_or_path"] == str(inputs / "base")


# Refusals.


@pytest.mark.parametrize(
  "overrides,message",
  [
    (("rank=0", "alpha=8"), "config.policy.adapter.rank must be positive"),
    (("rank=4", "alpha=0"), "config.policy.adapter.alpha must be positive"),
    (("rank=4",), "config.policy.adapter.alpha is missing"),
    (("rank=33", "alpha=8"), "rank=33 is larger than query"),
    (("rank=4", "alpha=8", "targets=q_proj"), "targets: 'q_proj' is no matrix"),
    (("rank=4", "alpha=8", "dropout=1.0"), "less than 1, got 1.0"),
    (("rank=4", "alpha=8", "bias=all"), "adapter.bias is not known"),
    (("path=/none",), "/none: no such folder"),
    (("path=/none", "rank=4"), "adapter.rank is not known"),
  ],
)
def test_a_wrong_adapter_is_one_line(
  inputs, tmp_path, capsys, overrides, message
):
  flags = [f"--config.policy.adapter.{one}" for one in overrides]
  assert_refused(inputs, tmp_path, capsys, flags, message)


@pytest.mark.parametrize(
  "flags,message",
  [
    (["policy.quantize=int8"], "needs config.policy.adapter"),
    (["policy.quantize=int5"], "config.policy.quantize must be one of"),
    (["references.base.adapter=/none"], "/none: no such folder"),
    (
      ["references.base.quantize=int4", "references.base.quantize_group=7"],
      "groups of 7 do not divide the 32 inputs of query",
    ),
    (
      [
        "policy.quantize=int8",
        "policy.adapter.rank=4",
        "policy.adapter.alpha=8",
        "references.base.quantize=int4",
      ],
      "references.base.quantize='int4', but the policy is int8",
    ),
  ],
)
def test_wrong_integers_are_one_line(inputs, tmp_path, capsys, flags, message):
  flags = [f"--config.{flag}" for flag in flags]
  assert_refused(inputs, tmp_path, capsys, flags, message)


def assert_refused(inputs, tmp_path, capsys, flags, message):
  assert train(inputs, tmp_path / "w", *flags) == 2
  error = capsys.readouterr().err.strip()
  assert error.startswith("error: ") and "\n" not in error
  assert message in error
  assert not (tmp_path / "w").exists()
