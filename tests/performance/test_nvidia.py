# SPDX-License-Identifier: Apache-2.0
"""Plans for NVIDIA's GPUs: topologies, exchanges of nodes, cuDNN, cuBLAS."""

import dataclasses
import importlib.metadata
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import cli, parallel
from mrpo_jax.data import pack
from mrpo_jax.data.encode import Encoded
from mrpo_jax.errors import InputError
from mrpo_jax.models.attention import kernels
from mrpo_jax.models.attention.layout import RowLayout
from mrpo_jax.performance import (
  abstract,
  chips,
  hlo_work,
  nvidia,
  plan_text,
  topology,
)
from mrpo_jax.performance.compiled import measured, roofline
from mrpo_jax.performance.topology import find_target
from tests.material.attention import CONFIG

MESH = {"data": 2, "fsdp": 4}
TWO_NODES = [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.fixture
def gpus(monkeypatch):
  """Topologies of GPUs in this process; a test is skipped without plug-in."""
  for name in ("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "CUDA_VISIBLE_DEVICES"):
    monkeypatch.setenv(name, os.environ.get(name, ""))  # back afterwards
  try:
    importlib.metadata.version(nvidia.PLUGIN)
  except importlib.metadata.PackageNotFoundError:
    pytest.skip("needs the extra plan-gpu")


# What names a topology.


@pytest.mark.parametrize("name", ["h100:9", "h100:0", "a100:2x16", "b200:0x8"])
def test_a_node_has_eight_gpus_at_most(name):
  with pytest.raises(InputError, match=f"{name}: want 1 to 8 GPUs of a node"):
    find_target(name)


@pytest.mark.parametrize("name", ["h100:2x2x2", "h300:8", "h100", "H100:8"])
def test_what_is_no_node_is_not_known(name):
  with pytest.raises(InputError, match="GPUs like h100:8 or, of several nodes"):
    find_target(name)


@pytest.mark.parametrize(
  "versions,match",
  [
    ({"jaxlib": "0.10.2"}, "needs jax's compiler for GPUs, which"),
    (
      {"jaxlib": "0.10.2", nvidia.PLUGIN: "0.10.1"},
      "needs jax's compiler for GPUs 0.10.2, not 0.10.1",
    ),
  ],
)
def test_without_the_plugin_one_line_says_what_to_install(
  monkeypatch, versions, match
):
  absent = nvidia.importlib.metadata.PackageNotFoundError

  def version(name):
    if name not in versions:
      raise absent(name)
    return versions[name]

  monkeypatch.setattr(nvidia.importlib.metadata, "version", version)
  with pytest.raises(InputError, match=match) as caught:
    find_target("h100:8")
  assert "pip install 'mrpo-jax[plan-gpu]'" in str(caught.value)


def test_a_description_has_the_figures_of_its_chip():
  # As XLA's h100_sxm.txtpb has them.
  text = nvidia.target_config("h100")
  for part in (
    *("core_count: 132", "shared_memory_per_block_optin: 232448"),
    *("memory_bandwidth: 3352320000000", "device_memory_size: 84929347584"),
    *("cuda_compute_capability { major: 9 minor: 0 }", "clock_rate_ghz: 1.98"),
  ):
    assert part in text
  for name, one in nvidia.DESCRIPTIONS.items():
    assert chips.of_kind(one.name) == name.upper()
  # Others of these names have other figures.
  assert chips.of_kind("NVIDIA H100 PCIe") is None
  assert chips.of_kind("NVIDIA GH200 480GB") is None


def test_a_gpu_has_what_jax_takes_of_it(monkeypatch):
  monkeypatch.delenv("XLA_CLIENT_MEM_FRACTION", raising=False)
  monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
  assert nvidia.usable_bytes(80e9) == 60e9
  monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.9")
  assert nvidia.usable_bytes(80e9) == pytest.approx(72e9)
  for wrong in ("most", "90", "0", "-0.5", "nan"):
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", wrong)
    match = f"XLA_CLIENT_MEM_FRACTION={wrong}: want"
    with pytest.raises(InputError, match=match):
      nvidia.usable_bytes(80e9)
  monkeypatch.delenv("XLA_CLIENT_MEM_FRACTION")
  monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "90")
  with pytest.raises(InputError, match="XLA_PYTHON_CLIENT_MEM_FRACTION=90"):
    nvidia.usable_bytes(80e9)


def test_a_command_looks_for_no_cuda_where_there_is_no_gpu(
  monkeypatch, tmp_path
):
  name = "JAX_SKIP_CUDA_CONSTRAINTS_CHECK"
  monkeypatch.delenv(name, raising=False)
  cli._miss_no_cuda([str(tmp_path)])
  assert name not in os.environ
  cli._miss_no_cuda([str(tmp_path / "nvidia0")])
  assert os.environ[name] == "1"
  monkeypatch.delenv(name)


# Exchanges within a node and between nodes.


def _exchange(kind, groups, nodes=TWO_NODES, mesh=MESH):
  """The Collective of 64 bytes between 8 devices."""
  text = f"""ENTRY %main (x: f32[16]) -> f32[16] {{
  %x = f32[16]{{0}} parameter(0)
  ROOT %r = f32[16]{{0}} {kind}(%x), {groups}, to_apply=%add
}}
"""
  (one,) = hlo_work.work(text, mesh, nodes=nodes).collectives
  return one


ALL, HALVES, ACROSS = (
  f"replica_groups={groups}"
  for groups in ("[1,8]<=[8]", "[2,4]<=[8]", "[4,2]<=[2,4]T(1,0)")
)
CHAIN = "source_target_pairs={{0,1},{1,2},{2,3},{3,4}}"


@pytest.mark.parametrize(
  "kind,groups,sent,away",
  [
    # 7 pieces of 64 bytes come in, one of them from the other node: of its 4
    # each device fetches one, and hands it on.
    ("all-gather", ALL, 7 * 64, 64),
    ("all-gather", HALVES, 3 * 64, 0),
    ("all-gather", ACROSS, 64, 64),
    # 2 x 7/8 of 64 bytes; of each eighth its sum goes out once and back.
    ("all-reduce", ALL, 112, 16),
    ("reduce-scatter", ALL, 56, 8),
    ("reduce-scatter", ACROSS, 32, 32),
    # An eighth for each other device; 4 of the 7 are elsewhere.
    ("all-to-all", ALL, 56, 32),
    ("all-to-all", HALVES, 48, 0),
    ("collective-permute", CHAIN, 64, 64),
    ("collective-permute", CHAIN.replace(",{3,4}", ""), 64, 0),
    ("all-reduce-start", "replica_groups={}", 112, 16),
  ],
)
def test_what_goes_to_other_nodes(kind, groups, sent, away):
  one = _exchange(kind, groups)
  assert (one.bytes, one.away) == pytest.approx((sent, away))
  alone = _exchange(kind, groups, nodes=None)
  assert (alone.bytes, alone.away) == (pytest.approx(sent), 0)


def test_nodes_that_take_part_unequally_count_as_the_slowest():
  # 6 of 8 devices in the first node; one of the last 2 sends to 6 others.
  one = _exchange("all-to-all", ALL, nodes=[0] * 6 + [1] * 2)
  assert one.away == pytest.approx(6 / 8 * 64)


def test_a_node_and_the_network_take_their_own_time():
  figures = {
    "flops": 989.5e12,
    "bytes_moved": 0,
    "collectives": [
      {"bytes": 450e9, "bytes_away": 0},
      {"bytes": 500e9, "bytes_away": 50e9},
    ],
  }
  seconds = roofline(figures, chips.CHIPS["H100"])
  assert seconds == pytest.approx(
    {"compute": 1, "memory": 0, "network": 2, "between nodes": 1}
  )


# Kernels that a program calls by name.

B, H, G, T, E = 1, 32, 8, 1024, 128
# As jaxlib 0.10.2 writes it for an H100, shortened.
FMHA = """ENTRY %main (q: bf16[1,1024,32,128]) -> bf16[1,32,1024,128] {
  %q = bf16[1,1024,32,128]{3,2,1,0} parameter(0)
  %k = bf16[1,1024,8,128]{3,2,1,0} parameter(1)
  %v = bf16[1,1024,8,128]{3,2,1,0} parameter(2)
  %bias = bf16[1,1,1024,1024]{3,2,1,0} parameter(3)
  %s = f32[1,32,1024]{2,1,0} parameter(4)
  %f = (bf16[1,32,1024,128]{3,1,2,0}, f32[1,32,1024]{2,1,0}, u8[0]{0}) \
custom-call(%q, %k, %v, %bias), custom_call_target=\
"__cudnn$fmhaScaleBiasSoftmax", backend_config={"operation_queue_id": "0", \
"cudnn_fmha_backend_config": {"algorithm": {"tuning_knobs": {"17": "1"}, \
"workspace_size": "0"}, "intermediate_tensor_shape": {"element_type": "BF16", \
"dimensions": ["1", "32", "1024", "1024"], "tuple_shapes": []}, \
"mask_type": "NO_MASK", "sliding_window_length": 0, "max_seg_per_batch": 1}}
  %o = bf16[1,32,1024,128]{3,1,2,0} get-tuple-element(%f), index=0
  %b = (bf16[1,32,1024,128]{3,1,2,0}, bf16[1,8,1024,128]{3,1,2,0}, \
bf16[1,8,1024,128]{3,1,2,0}, bf16[1,1,1024,1024]{3,2,1,0}, u8[4096]{0}) \
custom-call(%q, %k, %v, %s, %q, %bias, %o), custom_call_target=\
"__cudnn$fmhaScaleBiasSoftmaxBackward", backend_config={\
"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"dimensions": \
["1", "32", "1024", "1024"]}, "mask_type": "NO_MASK"}}
  ROOT %dq = bf16[1,32,1024,128]{3,1,2,0} get-tuple-element(%b), index=0
}
"""


def test_cudnn_under_a_mask_computes_every_query_with_every_key():
  work = hlo_work.work(FMHA, {"data": 1})
  product = 2 * B * H * T * T * E
  # Forward two products, backward the scores again and four gradients.
  assert work.flops == (2 + 5) * product
  assert work.whole_kernels == {
    "__cudnn$fmhaScaleBiasSoftmax": 1,
    "__cudnn$fmhaScaleBiasSoftmaxBackward": 1,
  }
  assert not work.kernels and not work.unknown_calls
  q, k, bias, sums = 2 * T * H * E, 2 * T * G * E, 2 * T * T, 4 * H * T
  forward = (q + 2 * k + bias) + (q + sums)
  # The query stands for the gradient of the result, too, and is read once.  The
  # gradient of the mask is written, though nothing takes it.
  backward = (q + 2 * k + sums + bias + q) + (q + 2 * k + bias)
  assert work.bytes == forward + backward


@pytest.mark.parametrize(
  "old,new",
  [
    ('"NO_MASK"', '"CAUSAL"'),
    ('"NO_MASK"', '"PADDING"'),
    ('"sliding_window_length": 0', '"sliding_window_length": 512'),
    ('"max_seg_per_batch": 1', '"max_seg_per_batch": 12'),
  ],
)
def test_what_cudnn_leaves_out_is_not_guessed(old, new):
  work = hlo_work.work(FMHA.replace(old, new), {"data": 1})
  name = "__cudnn$fmhaScaleBiasSoftmax"
  assert work.kernels[name] == 1 and name not in work.whole_kernels


def test_packed_sequences_count_as_what_is_causal_in_each():
  packed = FMHA.replace('"max_seg_per_batch": 1', '"max_seg_per_batch": 12')
  packed = packed.replace('"NO_MASK", "sliding', '"PADDING_CAUSAL", "sliding')
  name = "__cudnn$fmhaScaleBiasSoftmax"
  work = hlo_work.work(packed, {"data": 1}, lambda scope: 0.25)
  product = 2 * B * H * T * T * E
  assert work.flops == (0.25 * 2 + 5) * product
  assert work.whole_kernels[name] == 1 and name not in work.kernels
  work = hlo_work.work(packed, {"data": 1})  # nobody knows the lengths
  assert work.flops == 5 * product and work.kernels[name] == 1


def test_the_share_of_packed_sequences_by_hand():
  # A pair of (2, 1, 3): sequences of 3 and of 5 tokens; one of (4, 0, 0), whose
  # prompt stands alone and again.  Rows of 10, expanded to 128.
  pairs = [(2, 1, 3), (4, 0, 0)]
  rows = pack.pack(
    [Encoded(*([0] * n for n in one)) for one in pairs], length=10
  )
  seen = sum(n * (n + 1) // 2 for n in (3, 5, 4, 4))
  assert abstract._share_seen(rows, 1) == pytest.approx(seen / 128**2)


def test_what_nobody_knows_is_said():
  text = """ENTRY %main (x: f32[64,64]) -> f32[64,64] {
  %x = f32[64,64]{1,0} parameter(0)
  %p = (f32[64,64]{1,0}, s8[1024]{0}) custom-call(%x, %x), \
custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":\
{"alpha_real":1,"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],\
"rhs_contracting_dimensions":["0"]}}}
  %y = f32[64,64]{1,0} get-tuple-element(%p), index=0
  %a = f32[64,64]{1,0} custom-call(%y), custom_call_target="mosaic_gpu_v2"
  ROOT %r = f32[64,64]{1,0} custom-call(%a), custom_call_target="somebody's"
}
"""
  work = hlo_work.work(text, {"data": 1})
  assert work.flops == 2 * 64**3
  assert work.kernels == {"mosaic_gpu_v2": 1}
  assert work.unknown_calls == {"somebody's": 1}
  assert not work.whole_kernels


# Compiled for GPUs that are not here.


def test_several_nodes_are_devices_node_by_node(gpus):
  target = find_target("h200:2x4")
  assert [one.process_index for one in target.devices] == TWO_NODES
  assert {one.platform for one in target.devices} == {"gpu"}
  assert target.chip == "H200" and target.peak == chips.CHIPS["H200"]
  assert target.memory == nvidia.usable_bytes(chips.CHIPS["H200"].memory)
  assert find_target("h200:8", hbm=1.0).memory == 1.0


def test_a_program_for_gpus_is_read(gpus):
  mesh = parallel.make_mesh(
    data=1, fsdp=8, devices=find_target("h100:2x4").devices
  )

  def argument(shape, *axes):
    to = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=to)

  x_ND = argument((1024, 1024), "fsdp")
  w_LDD = argument((6, 1024, 1024), None, "fsdp")

  def layer(x_ND, w_DD):
    return jnp.tanh(x_ND @ w_DD), None

  def total(w_LDD, x_ND):
    return jax.lax.scan(layer, x_ND, w_LDD)[0].sum()

  step = jax.jit(jax.grad(total), out_shardings=w_LDD.sharding)
  figures = measured(step, (w_LDD, x_ND), mesh, lambda _: None)
  # Forward, and backward for both factors.
  assert figures["flops"] == 3 * 6 * 2 * 128 * 1024 * 1024
  assert figures["nodes"] == 2 and not figures["unknown_calls"]
  shard = 128 * 1024 * 2  # bytes of a weight on one device
  found = {row["kind"]: row for row in figures["collectives"]}
  gathered = found["all-gather"]
  assert gathered["bytes"] == pytest.approx(2 * 6 * 7 * shard, rel=0.01)
  for row in found.values():
    assert row["axes"] == ["fsdp"]
    assert row["bytes_away"] == pytest.approx(row["bytes"] / 7)


def compiled_attention(kernel, T, E, trips):
  """Figures of the gradient of a kernel on 2 rows, compiled for an H100."""
  mesh = parallel.make_mesh(devices=find_target("h100:1").devices)
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

  def argument(shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

  query, key = argument((2, T, 4, E)), argument((2, T, 2, E))
  layout = RowLayout(*[argument((2, T), jnp.int32)] * 3)

  def total(query, key, layout):
    out = kernel(query, key, key, layout, scale=0.1, softcap=None)
    return out.astype(jnp.float32).sum()

  step = jax.jit(jax.grad(total, (0, 1)))
  return measured(step, (query, key, layout), mesh, trips)


def test_cudnn_compiles_where_there_is_none(gpus):
  figures = compiled_attention(kernels.cudnn, 256, 256, lambda _: None)
  assert figures["flops"] == (2 + 5) * 2 * 2 * 4 * 256 * 256 * 256
  assert sum(figures["whole_kernels"].values()) == 2


def test_packed_cudnn_compiles_where_there_is_none(gpus):
  figures = compiled_attention(
    *(kernels.cudnn_packed, 256, 64),
    lambda scope: 0.1 if "cudnn_packed" in scope else None,
  )
  # Rows are twice as long inside, where a prompt stands before each response.
  product = 2 * 2 * 4 * 512 * 512 * 64
  assert figures["flops"] == pytest.approx(0.1 * (2 + 5) * product)
  assert sum(figures["whole_kernels"].values()) == 2 and not figures["kernels"]


@pytest.mark.parametrize(
  "name,windows,want",
  [
    ("a100", (), "cudnn"),
    ("h100", (), "cudnn_packed"),
    ("b200", (), "cudnn_packed"),
    ("b200", (0, 0), "cudnn"),  # a window is given all the same
    ("h100", (0, 512), "cudnn"),
  ],
)
def test_auto_is_packed_where_it_can_be(gpus, name, windows, want):
  mesh = parallel.make_mesh(devices=find_target(f"{name}:2").devices)
  config = dataclasses.replace(CONFIG, layer_windows=windows)
  partition = parallel.partition_of(mesh)
  assert kernels.fastest(config, "bfloat16", partition) == want
  kernels.check(want, config, "bfloat16", "gpu", partition)
  if want == "cudnn":
    match = "knows no windows" if windows else "from Hopper on"
    with pytest.raises(ValueError, match=match):
      kernels.check("cudnn_packed", config, "bfloat16", "gpu", partition)


def test_a_plan_says_what_is_not_known(gpus, capsys, tmp_path, monkeypatch):
  def some(step, arguments, mesh, trips, keep=""):
    return {
      "bytes": {"argument": 1, "peak": 1},
      "flops": 1e12,
      "bytes_moved": 1e9,
      "nodes": 2,
      "collectives": [
        dict(
          kind="all-gather", axes=["fsdp"], count=1, bytes=7e9, bytes_away=1e9
        )
      ],
      "kernels": {},
      "whole_kernels": {"__cudnn$fmhaSoftmax": 3},
      "unknown_calls": {"somebody's": 2},
      "unknown_loops": [],
      "cost_analysis": {"flops": None},
    }

  monkeypatch.setattr("mrpo_jax.performance.plan.measured", some)
  to = tmp_path / "plan.json"
  flags = ["--topology=h100:2x4", f"--json={to}"]
  root = topology.pathlib.Path(__file__).parents[2]
  config = f"--config={root}/configs/quickstart.py:dpo,debug"
  assert cli.main(["plan", config, *flags]) == 0
  text = " ".join(capsys.readouterr().out.split())
  for part in (
    *("8 devices of h100:2x4", "cuDNN's workspace", "75% unless"),
    *("__cudnn$fmhaSoftmax 3 calls, counted as every query with every key",),
    *("somebody's 2 calls, whose operations are not known", "to other nodes"),
    *("between nodes at least 0.0200 s", nvidia.PLUGIN),
  ):
    assert part in text, part
  found = json.loads(to.read_text())
  assert found["platform"] == "gpu" and found["chip"] == "H100"
  assert np.isclose(found["steps"]["train"]["seconds"]["between nodes"], 0.02)
  assert "compiled for GPUs" not in "\n".join(
    plan_text._of_gpus({"platform": "tpu"})
  )
