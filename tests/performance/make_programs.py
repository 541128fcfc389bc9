# SPDX-License-Identifier: Apache-2.0
"""Makes hlo/*.hlo: small programs as XLA compiles them for CPU, TPU and GPU.

  python tests/performance/make_programs.py cpu
  python tests/performance/make_programs.py tpu  # needs libtpu
  python tests/performance/make_programs.py gpu  # the extra plan-gpu

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
  from mrpo_jax.performance.topology import find_target

  names = {"cpu": "local", "tpu": "v5p:2x2x1", "gpu": "h100:1"}
  return find_target(names[platform]).devices[0]


def main(platform):
  from mrpo_jax.performance.compiled import compiled_text

  jax.config.update("jax_platforms", "cpu")
  if platform == "gpu":
    os.environ["XLA_FLAGS"] = "--xla_gpu_enable_triton_gemm=false"
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
