# SPDX-License-Identifier: Apache-2.0
"""Makes hlo/*.hlo: small programs as XLA compiles them for CPU, TPU and GPU.

  python tests/performance/make_programs.py cpu
  python tests/performance/make_programs.py tpu  # needs libtpu
  python tests/performance/make_programs.py gpu  # jax-cuda13-plugin, -pjrt

Neither a TPU nor a GPU is needed.  test_traffic.py says what each moves.
"""

import os
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np

HERE = pathlib.Path(__file__).parent / "hlo"
GPU = """gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000
  l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 } device_description_str: "NVIDIA H100 80GB HBM3"
"""
LAYERS = 12


def sizes(platform):
  """(tokens N, width D, vocabulary V, dtype): large enough to stay in HBM."""
  if platform == "cpu":
    return 64, 128, 32000, jnp.float32
  return 1024, 2048, 32000, jnp.bfloat16


def layer(x_ND, w_DD):
  return jnp.tanh(x_ND @ w_DD), None


def forward(x_ND, w_LDD):
  """A scan over stacked weights."""
  return jax.lax.scan(layer, x_ND, w_LDD)[0]


def loss(w_LDD, x_ND, one=layer):
  return jax.lax.scan(one, x_ND, w_LDD)[0].astype(jnp.float32).sum()


def backward(x_ND, w_LDD):
  """The gradient of the stack, from what the forward pass has kept."""
  return jax.grad(loss)(w_LDD, x_ND)


def remat(x_ND, w_LDD):
  """The same; each layer is computed again."""
  return jax.grad(loss)(w_LDD, x_ND, jax.checkpoint(layer))


def accumulate(sum_LDD, x_MND, w_LDD):
  """Gradients of micro-batches, added to one stack."""

  def add(sum_LDD, x_ND):
    return sum_LDD + remat(x_ND, w_LDD), None

  return jax.lax.scan(add, sum_LDD, x_MND)[0]


def embedding(table_VD, ids_N):
  """The gradient of an embedding: looked up, and added where it was."""

  def total(table_VD):
    return jnp.tanh(table_VD[ids_N].astype(jnp.float32)).sum()

  return jax.grad(total)(table_VD)


def programs(platform):
  """{name: (function, its arguments' (shape, dtype), donated)}."""
  N, D, V, dtype = sizes(platform)
  x, w = ((N, D), dtype), ((LAYERS, D, D), dtype)
  return {
    "forward": (forward, [x, w], ()),
    "backward": (backward, [x, w], ()),
    "remat": (remat, [x, w], ()),
    "accumulate": (accumulate, [w, ((3, N, D), dtype), w], (0,)),
    "embedding": (embedding, [((V, D), dtype), ((N,), jnp.int32)], ()),
  }


def stripped(text):
  """A program's text without what says where its lines come from."""
  text = re.sub(r"\nFileNames\n.*?\n\n(?=[%E])", "\n", text, flags=re.S)
  braces = r"=\{[^{}]*(\{[^{}]*\}[^{}]*)*\}"
  for key in ("metadata", "frontend_attributes", "sharding"):
    text = re.sub(f", {key}{braces}", "", text)
  kept = r'"known_trip_count":\{"n":"\d+"\}|"dot_dimension_numbers":\{[^}]*\}'
  lines = []
  for line in text.split("\n"):
    line, _, config = line.partition(", backend_config=")
    found = ", backend_config={" + ",".join(re.findall(kept, config)) + "}"
    lines.append(line + (found if '"' in found else ""))
  return "\n".join(lines)


def device_of(platform):
  """A device to compile for, which need not be here."""
  from jax.experimental import topologies

  from mrpo_jax.performance.topology import find_target

  if platform == "gpu":
    return topologies.get_topology_desc(
      "h100", "cuda", target_config=GPU, topology="1x1x1"
    ).devices[0]
  return find_target({"cpu": "local", "tpu": "v5p:2x2x1"}[platform]).devices[0]


def main(platform):
  from mrpo_jax.performance.compiled import compiled_text

  jax.config.update("jax_platforms", "cpu,cuda" if platform == "gpu" else "cpu")
  os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
  os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
  if platform == "gpu":
    os.environ["XLA_FLAGS"] = (
      "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    )
  mesh = jax.sharding.Mesh(np.array([device_of(platform)]), "x")
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  for name, (function, arguments, donated) in programs(platform).items():
    step = jax.jit(function, donate_argnums=donated)
    lowered = step.lower(
      *(jax.ShapeDtypeStruct(*one, sharding=sharding) for one in arguments)
    )
    _, text = compiled_text(lowered, mesh)
    (HERE / f"{platform}_{name}.hlo").write_text(stripped(text))


if __name__ == "__main__":
  main(sys.argv[1])
