# SPDX-License-Identifier: Apache-2.0
"""`mrpo plan`: what it says of a step, against counts by hand."""

import json
import math
import os
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import check_program
from mrpo_jax import cli, parallel
from mrpo_jax.errors import InputError
from mrpo_jax.models import parameters
from mrpo_jax.models.config import ModelConfig
from mrpo_jax.models.families.read import config_from_hf
from mrpo_jax.performance import chips, flops, plan, topology
from mrpo_jax.performance.abstract import DRAWS, assume
from mrpo_jax.performance.compiled import measured, roofline
from mrpo_jax.performance.model_shapes import MODELS
from mrpo_jax.performance.topology import find_target, read_shape
from mrpo_jax.runs.config import load
from mrpo_jax.runs.memory import argument_bytes, changes
from mrpo_jax.runs.setup import abstract_setup, mesh_of
from mrpo_jax.text import sized
from tests.material.logged import logged

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = f"--config={ROOT}/configs/quickstart.py:dpo,debug"
LONG = ["--topology=cpu:8", "--lengths=9,300", "--config.data.max_response=300"]
# Totals: of Llama-2-7b, Meta-Llama-3-8B, Phi-3-medium, Qwen2.5-0.5B and those
# with experts from their files; the others as commonly given.
PARAMETERS = {
  "meta-llama/Llama-2-7b-chat-hf": 6_738_415_616,
  "mistralai/Mistral-7B-v0.1": 7_241_732_096,
  "teknium/OpenHermes-2.5-Mistral-7B": 7_241_748_480,
  "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
  "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
  "mistralai/Mixtral-8x7B-Instruct-v0.1": 46_702_792_704,
  "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
  "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
  "meta-llama/Meta-Llama-3-70B-Instruct": 70_553_706_496,
  "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
  "princeton-nlp/Llama-3-Base-8B-SFT": 8_030_261_248,
  "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
  "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
  "Qwen/Qwen3-4B-Instruct-2507": 4_022_468_096,
  "Qwen/Qwen3-30B-A3B": 30_532_122_624,
  "01-ai/Yi-1.5-9B-Chat": 8_829_407_232,
  "microsoft/Phi-3-medium-128k-instruct": 13_960_238_080,
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  """The JSON and the lines of one plan."""
  to = tmp_path_factory.mktemp("plan") / "plan.json"
  config = _config("sft-base,debug", {"mesh.data": 4, "mesh.fsdp": 2})
  with logged() as lines:
    plan.run(config, "cpu:8", hbm=2**30, to=str(to))
  return json.loads(to.read_text()), "\n".join(lines)


def _config(arg, flags):
  return load(f"{ROOT}/configs/quickstart.py:{arg}").changed(flags)


@pytest.mark.slow
def test_bytes_of_arguments_are_what_the_shardings_say(found):
  shape = ModelConfig(
    vocab_size=512,
    width=32,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=16,
    mlp_width=64,
    tied=True,
  )
  table = jax.tree.leaves(parameters.table(shape), is_leaf=parameters.is_spec)
  # "embed" is split over fsdp=2, all else is whole.
  shard = sum(
    math.prod(one.shape) // (2 if "embed" in one.axes else 1) for one in table
  )
  models = 4 * 3 * shard  # float32: the policy and its two moments
  # 7 arrays of 8 / 8 rows of 256 tokens, and of 3 x 8 / 8 of 64.
  rows = 7 * 4 * (1 * 256 + 3 * 64)
  counts = 4 * 4  # step, seed, those of Adam and of the schedule
  size = found[0]["steps"]["train"]["bytes"]["argument"]
  assert size == models + rows + counts


def test_collectives_stand_under_their_axes(found):
  rows = found[0]["steps"]["train"]["collectives"]
  axes = {}
  for row in rows:
    assert row["count"] > 0 and row["bytes"] > 0
    axes.setdefault(row["kind"], []).append(set(row["axes"]))
  assert any("data" in some for some in axes["all-reduce"])
  assert {"fsdp"} in axes["all-gather"]
  assert not any("model" in some for kind in axes.values() for some in kind)


def test_work_is_at_least_what_is_useful(found):
  figures = found[0]["steps"]["train"]
  useful = figures["useful_flops"] / 8
  # Rows of 256 tokens for pairs of 64, and products that are computed again.
  assert useful < figures["flops"] < 8 * useful
  assert figures["cost_analysis"]["flops"] > 0
  assert not figures["unknown_loops"]
  assert figures["fits"] and found[0]["fits"]


def test_the_table_says_its_assumptions(found):
  text = found[1]
  for part in ("cpu:8", "data=4, fsdp=2", "prompts of 32", "'blockwise'"):
    assert part in text
  assert "useful: forward = tokens x 2" in text
  assert "all-gather" in text and "fits" in text


def test_a_roofline_is_the_slowest_of_three():
  figures = {
    "flops": 459e12,
    "bytes_moved": 2765e9 * 3,
    "collectives": [{"bytes": 300e9}, {"bytes": 300e9}],
  }
  seconds = roofline(figures, chips.CHIPS["v5p"])
  assert seconds == pytest.approx({"compute": 1, "memory": 3, "network": 1})
  assert roofline(figures, None) == {}


def _argument_alone(step, arguments, mesh, trips, keep=""):
  size, _ = argument_bytes(arguments)
  return {"bytes": {"argument": size, "peak": size}}


def test_fit_finds_the_first_that_fits(monkeypatch, capsys, tmp_path):
  monkeypatch.setattr(plan, "measured", _argument_alone)
  argv = ["plan", CONFIG, "--topology=cpu:8"]

  def peak(*flags):
    to = tmp_path / "plan.json"
    assert cli.main([*argv, *flags, f"--json={to}"]) == 0
    found = json.loads(to.read_text())
    return found, max(one["bytes"]["peak"] for one in found["steps"].values())

  _, whole = peak()
  _, sharded = peak("--config.mesh.data=1", "--config.mesh.fsdp=-1")
  assert sharded < whole / 2
  between = (whole + sharded) / 2 / 2**30
  capsys.readouterr()
  found, _ = peak(f"--hbm={between}")
  assert found["fits"] is False
  assert "does not fit; --fit tries what would" in capsys.readouterr().out
  found, _ = peak(f"--hbm={between}", "--fit")
  text = capsys.readouterr().out
  assert found["fit"]["plan"]["fits"] is True
  flags = text.partition("fits with ")[2].split()
  assert "--config.mesh.fsdp=-1" in flags and "--config.data.rows=0" in flags
  again, _ = peak(f"--hbm={between}", *flags)
  assert again["fits"] is True
  peak(f"--hbm={sharded / 2**40}", "--fit")
  assert "nothing of that fits" in capsys.readouterr().out


def test_changes_come_in_order():
  config = _config("mrpo,debug", {})
  names = [what for what, _ in changes(config, 8)]
  assert names == [
    *("rows", "remat", "mesh", "scored references"),
    *("int8 references", "int4 references"),
  ]
  flags = dict(changes(config, 8))["scored references"]
  assert flags["references.base.mode"] == "scored"
  assert flags["policy.remat"] == "full"


@pytest.mark.parametrize(
  "flags,match",
  [
    (["--topology=v9:2x2"], "want local, cpu:8, a TPU slice like v5p"),
    (["--topology=v5p"], "--topology=v5p: not known"),
    (["--topology=v5p:0x1x1"], "v5p:0x1x1: want no size of 0"),
    (["--topology=cpu:0"], "cpu:0: want no size of 0"),
    (["--topology=cpu:9"], "cpu:9: this process has 8 CPU devices"),
    (["--topology=cpu:8", "--hbm=-1"], "--hbm: '-1'; want a positive number"),
    (["--topology=cpu:8", "--lengths=3"], "--lengths: '3'; want like 256,256"),
    (LONG, "longer than config.data.row_length=256"),
    (
      ["--topology=cpu:8", "--lengths=9,9999"],
      "--lengths=9,9999: longer than config.data.max_prompt",
    ),
    (["--topology=cpu:8", "--json=none/x.json"], "no such folder"),
    (["--topology=cpu:8", "--config.policy.path=no/model"], "no/model: no"),
    (["--topology=cpu:8", "--config.mesh.fsdp=3"], "does not fit 8 devices"),
    ([], "--topology is missing"),
  ],
)
def test_wrong_input_is_one_line(capsys, flags, match):
  assert len(jax.devices()) == 8  # jax has started, and keeps to that
  assert cli.main(["plan", CONFIG, *flags]) == 2
  lines = capsys.readouterr().err.strip().split("\n")
  assert len(lines) == 1 and match in lines[0]


def test_without_libtpu_one_line_says_what_to_install(monkeypatch):
  def absent(name):
    raise topology.importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(topology.importlib.metadata, "version", absent)
  with pytest.raises(InputError, match=r"pip install 'mrpo-jax\[plan\]'"):
    find_target("v5p:2x2x1")


def test_a_program_for_tpus_is_read(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])  # back afterwards
  try:
    target = find_target("v5p:2x2x1")
  except InputError as error:
    pytest.skip(str(error))
  mesh = parallel.make_mesh(data=1, fsdp=4, devices=target.devices)
  P = jax.sharding.PartitionSpec

  def argument(shape, *axes):
    to = jax.sharding.NamedSharding(mesh, P(*axes))
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=to)

  x_ND = argument((512, 1024), "fsdp")
  w_LDD = argument((6, 1024, 1024), None, "fsdp")

  def layer(x_ND, w_DD):
    return jnp.tanh(x_ND @ w_DD), None

  def total(w_LDD, x_ND):
    return jax.lax.scan(layer, x_ND, w_LDD)[0].sum()

  step = jax.jit(jax.grad(total), out_shardings=w_LDD.sharding)
  figures = measured(step, (w_LDD, x_ND), mesh, lambda _: None)
  # Forward, and backward for both factors.
  assert figures["flops"] == 3 * 6 * 2 * 128 * 1024 * 1024
  shard = 256 * 1024 * 2  # bytes of a weight on one device
  found = {row["kind"]: row for row in figures["collectives"]}
  assert found["all-gather"]["bytes"] == 2 * 6 * 3 * shard
  assert found["reduce-scatter"]["bytes"] == 6 * 3 * shard
  assert {tuple(row["axes"]) for row in found.values()} == {("fsdp",)}


def test_rows_are_those_of_all_processes(monkeypatch):
  monkeypatch.setattr(parallel, "row_share", lambda mesh: (1, 2))
  config = _config("dpo,debug", {"mesh.data": 8})
  mesh = mesh_of(config, find_target("cpu:8").devices)
  setup = abstract_setup(config, mesh, read_shape)
  rows = assume(setup, (32, 32)).rows[0][0]
  assert rows.tokens_RT.shape[1] == setup.packing.rows == 8
  real = rows.slots_RM[rows.slots_RM < 2 * config.batch]
  assert real.min() < config.batch <= real.max()


def test_a_program_that_holds_too_much_is_found():
  T, V, D = 256, 512, 384  # a weight is larger than the logits of a row
  config = _config("dpo,debug", {"mesh.data": 8, "policy.new.width": D})
  mesh = mesh_of(config, find_target("cpu:8").devices)
  setup = abstract_setup(config, mesh, read_shape)

  def found(rows, width):
    text = f"""ENTRY %main (x: f32[{V},{D // 8}]) -> f32[{V},{D}] {{
  %x = f32[{V},{D // 8}]{{1,0}} parameter(0)
  %weight = bf16[{V},{D}]{{1,0}} convert(%x)
  %logits = f32[{rows},{V}]{{1,0}} broadcast(%x), dimensions={{}}
  ROOT %g = f32[{V},{width}]{{1,0}} all-gather(%x), \
replica_groups=[1,8]<=[8], dimensions={{1}}
}}
"""
    lines = list(check_program.faults(text, setup))
    return [line.split(":")[0] for line in lines]

  assert found(T, D) == ["logits", "collected whole"]
  assert found(T // 2, D // 2) == []


@pytest.mark.parametrize(("context", "code"), [(1, 0), (2, 1)])
def test_a_program_is_checked_with_the_changes_of_its_plan(
  tmp_path, context, code
):
  T, V = 256, 512
  program = tmp_path / "program.hlo"
  program.write_text(f"""ENTRY %main (x: f32[]) -> f32[{T // 2},{V}] {{
  %x = f32[] parameter(0)
  ROOT %logits = f32[{T // 2},{V}]{{1,0}} broadcast(%x), dimensions={{}}
}}
""")
  given = ("--config=configs/quickstart.py:dpo,debug", "--topology=cpu:8")
  changes = (f"--config.mesh.context={context}", "--config.mesh.data=-1")
  # Devices that share a row have half of its tokens.
  assert check_program.main([str(program), *given, *changes]) == code


def test_shapes_of_published_models():
  for name, values in MODELS.items():
    count = parameters.count_parameters(config_from_hf(values))
    assert count == PARAMETERS[name], name
  assert set(PARAMETERS) == set(MODELS)


def test_of_experts_a_token_meets_a_few():
  def active(name):
    return parameters.count_active(config_from_hf(MODELS[name]))

  # As their makers say: "12.9B active", and "3.3B activated".
  assert round(active("mistralai/Mixtral-8x7B-v0.1"), -8) == 12_900_000_000
  assert 3.3e9 < active("Qwen/Qwen3-30B-A3B") < 3.4e9


def test_chips_are_found_by_what_jax_calls_them():
  assert chips.of_kind("NVIDIA H100 80GB HBM3") == "H100"
  assert chips.of_kind("TPU v5 lite") == "v5e"
  assert chips.of_kind("TPU v5") == "v5p"
  for name in ("v5e", "v5p", "v6e"):  # as jax may spell them, too
    assert chips.of_kind(f"TPU {name}") == name
  assert chips.of_kind("cpu") is None


@pytest.mark.parametrize("kind, cores", [("TPU7x", 2), ("TPU v5", 1)])
def test_a_device_that_is_here_may_be_a_part_of_a_chip(
  monkeypatch, kind, cores
):
  def device(core):
    return types.SimpleNamespace(
      device_kind=kind, platform="tpu", core_on_chip=core
    )

  here = [device(core) for _ in range(4) for core in range(cores)]
  monkeypatch.setattr(jax, "devices", lambda: here)
  target = find_target("local")
  chip = chips.CHIPS[chips.of_kind(kind)]
  assert target.memory == chip.memory / cores
  assert target.peak.flops == chip.flops / cores


def test_what_is_given_twice_is_there_once():
  whole = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  one = jax.ShapeDtypeStruct((8, 4), np.float32, sharding=whole)
  other = jax.ShapeDtypeStruct((8, 4), np.float32, sharding=whole)
  assert argument_bytes(((one, other), {"again": one})) == (256, 128)


def test_sizes_read_well():
  assert sized(1.25e12, "FLOP") == "1.25 TFLOP"
  assert sized(95 * 2**30, "B", 1024) == "95 GiB"
  assert sized(12.0, "B", 1024) == "12 B"


def test_assumed_pairs_are_packed_as_a_run_packs_them():
  config = _config("dpo,debug", {})
  mesh = parallel.make_mesh()
  setup = abstract_setup(config, mesh, read_shape)
  assumed = assume(setup, (32, 32))
  assert len(assumed.draws) == DRAWS
  used, chunks = [], []
  for views in assumed.draws:
    lengths = flops.pair_lengths(views[0])
    assert lengths.shape == (8, 3)
    assert 16 <= lengths.min() and lengths.max() <= 48
    rows = views[0][0]
    used.append(int((rows.segments_RT > 0).any(axis=(1, 2)).sum()))
    scored_A = (rows.slots_RM[: used[-1]] < 16).sum(2).max(1)
    chunks += (-(-scored_A // (256 // 8))).tolist()
  assert len(set(chunks)) > 1  # or the mean would say nothing
  scope = f"jit(train_step)/micro_batches_of_{rows.tokens_RT.shape[-1]}/while"
  assert assumed.of(scope) == np.mean(used)
  inner = f"{scope}/body/transpose(jvp(head_gradient))/while/body/while"
  assert assumed.of(inner) == pytest.approx(np.mean(chunks))
  assert assumed.of("jit(train_step)/other/while") is None
  assert np.isfinite(list(assumed.trips.values())).all()
