# SPDX-License-Identifier: Apache-2.0
"""Do the attention kernels compile for TPUs, values and gradients?

  pip install libtpu && python -m benchmarks.compile_for_tpu [topology ...]

Ahead of time, on a host without any: nothing is run, so nothing is timed but
the compilation.
"""

import functools
import os
import sys
import time

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from mrpo_jax.models import attention, kernels
from mrpo_jax.report import aligned

TOPOLOGIES = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2")
ROWS, LENGTH, HEADS, KV_HEADS, HEAD_DIM = 2, 1024, 8, 4, 64
CASES = ((None, None), (None, 30.0), (256, 30.0))  # window, softcap


def compiled(device, name, window, softcap):
  """(seconds, bytes of temporaries) of one kernel's gradient."""
  place = jax.sharding.SingleDeviceSharding(device)
  kernel = kernels.KERNELS[name]
  if name == "splash":
    kernel = functools.partial(kernel, windows=(0, window) if window else (0,))

  def argument(shape, dtype=jnp.bfloat16):
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
  arrays = [argument((ROWS, LENGTH, n, HEAD_DIM)) for n in heads]
  of_tokens = argument((ROWS, LENGTH), jnp.int32)
  layout = attention.Layout(*[of_tokens] * 3)
  started = time.perf_counter()
  lowered = jax.jit(jax.grad(total, (0, 1, 2))).lower(
    *arrays, layout, argument((), jnp.int32)
  )
  program = lowered.compile()
  seconds = time.perf_counter() - started
  return seconds, program.memory_analysis().temp_size_in_bytes


def main(names):
  os.environ["TPU_SKIP_MDS_QUERY"] = "1"
  rows = [("chip", "kernel", "window", "softcap", "seconds", "temporaries")]
  for topology in names or TOPOLOGIES:
    device = topologies.get_topology_desc(topology, "tpu").devices[0]
    for name in ("splash", "blockwise"):
      for window, softcap in CASES:
        seconds, size = compiled(device, name, window, softcap)
        cells = (device.device_kind, name, window, softcap)
        rows.append(
          (*map(str, cells), f"{seconds:.1f}", f"{size / 1e6:.1f} MB")
        )
  print(aligned(rows))


if __name__ == "__main__":
  main(sys.argv[1:])
