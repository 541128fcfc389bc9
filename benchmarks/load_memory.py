# SPDX-License-Identifier: Apache-2.0
"""Peak memory of loading a sharded 1 GB model onto 8 devices of a mesh.

  python benchmarks/load_memory.py [--mesh=data=1,fsdp=4,model=2]

Writes a random bfloat16 Llama in five files, loads it in a fresh process with
eight CPU devices, and prints that process's peak resident size.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp

from mrpo_jax import hub, parallel
from mrpo_jax.hub import write
from mrpo_jax.models import parameters
from mrpo_jax.models.config import ModelConfig

MODEL = ModelConfig(
  vocab_size=32000,
  width=1536,
  layers=16,
  heads=12,
  kv_heads=4,
  head_dim=128,
  mlp_width=4608,
)


def resident():
  """MB that this process held at most so far (Linux)."""
  # Not ru_maxrss: a child starts with its parent's.
  status = pathlib.Path("/proc/self/status").read_text()
  (line,) = (x for x in status.split("\n") if x.startswith("VmHWM"))
  return int(line.split()[1]) / 1024


def load(folder, sizes):
  mesh = parallel.make_mesh(**sizes)
  before, started = resident(), time.perf_counter()
  _, params = hub.load(folder, mesh=mesh)
  jax.block_until_ready(params)
  seconds = time.perf_counter() - started
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 2**20
  print(
    f"jax {jax.__version__}, mesh {sizes}: {size:.0f} MB of weights in "
    f"{seconds:.1f} s; resident {before:.0f} MB before, {resident():.0f} MB at "
    "most"
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--mesh", default="data=1,fsdp=4,model=2")
  parser.add_argument("--folder", help="of the process that loads")
  given = parser.parse_args()
  pairs = (part.split("=") for part in given.mesh.split(","))
  sizes = {axis: int(size) for axis, size in pairs}
  if given.folder:
    load(given.folder, sizes)
    return
  write.SHARD_BYTES = 220 * 10**6
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch) / "model"
    hub.save(
      folder, MODEL, parameters.init(MODEL, jax.random.key(0), jnp.bfloat16)
    )
    flags = "--xla_force_host_platform_device_count=8"
    subprocess.run(
      [sys.executable, __file__, f"--mesh={given.mesh}", f"--folder={folder}"],
      env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
      check=True,
    )


if __name__ == "__main__":
  main()
