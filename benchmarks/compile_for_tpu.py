# SPDX-License-Identifier: Apache-2.0
"""Do the attention kernels compile for TPUs, values and gradients?

  pip install libtpu && python -m benchmarks.compile_for_tpu [topology ...]

Ahead of time, on a host without any: nothing is run, so nothing is timed but
the compilation.  On one chip, and on all of the topology, with rows and heads
split over them.
"""

import functools
import itertools
import os
import sys
import time

import jax
import jax.numpy as jnp

from mrpo_jax import parallel
from mrpo_jax.models.attention import kernels
from mrpo_jax.models.attention.layout import RowLayout
from mrpo_jax.performance.topology import find_target
from mrpo_jax.text import aligned

TOPOLOGIES = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2")
SHAPE = dict(data=1, fsdp=-1, model=2)  # of the mesh of all chips
ROWS, LENGTH, HEADS, KV_HEADS, HEAD_DIM = 2, 1024, 8, 4, 64
CASES = ((None, None), (None, 30.0), (256, 30.0))  # window, softcap


def compiled(mesh, name, window, softcap):
  """(seconds, bytes of temporaries of a chip) of one kernel's gradient."""
  partition, spec = parallel.partition_of(mesh), jax.sharding.PartitionSpec
  rows, of_heads = (
    jax.sharding.NamedSharding(mesh, one)
    for one in (
      spec(partition.rows),
      spec(partition.rows, None, partition.heads),
    )
  )
  kernel = kernels.KERNELS[name]
  if name == "splash":
    kernel = functools.partial(kernel, windows=(0, window) if window else (0,))

  kernel = kernels.divided(kernel, partition)

  def argument(shape, dtype, place):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

  def total(query_RTHE, key_RSGE, value_RSGE, layout, size):
    out_RTHE = kernel(
      *(query_RTHE, key_RSGE, value_RSGE, layout),
      size if window else None,
      scale=HEAD_DIM**-0.5,
      softcap=softcap,
    )
    return jnp.sum(out_RTHE.astype(jnp.float32))

  heads = (HEADS, KV_HEADS, KV_HEADS)
  arrays = [
    argument((ROWS, LENGTH, n, HEAD_DIM), jnp.bfloat16, of_heads) for n in heads
  ]
  of_tokens = argument((ROWS, LENGTH), jnp.int32, rows)
  layout = RowLayout(*[of_tokens] * 3)
  started = time.perf_counter()
  lowered = jax.jit(jax.grad(total, (0, 1, 2))).lower(
    *arrays, layout, argument((), jnp.int32, parallel.replicated(mesh))
  )
  program = lowered.compile()
  seconds = time.perf_counter() - started
  return seconds, program.memory_analysis().temp_size_in_bytes


def main(names):
  os.environ["TPU_SKIP_MDS_QUERY"] = "1"
  rows = [
    ("chip", "chips", "kernel", "window", "softcap", "seconds", "temporaries")
  ]
  for topology in names or TOPOLOGIES:
    devices = find_target(topology).devices
    chip, one = devices[0].device_kind, parallel.make_mesh(devices=devices[:1])
    for mesh in (one, parallel.make_mesh(**SHAPE, devices=devices)):
      for name, case in itertools.product(("splash", "blockwise"), CASES):
        seconds, size = compiled(mesh, name, *case)
        cells = chip, mesh.size, name, *case, f"{seconds:.1f}"
        rows.append((*map(str, cells), f"{size / 1e6:.1f} MB"))
  print(aligned(rows))


if __name__ == "__main__":
  main(sys.argv[1:])
