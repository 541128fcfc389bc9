# SPDX-License-Identifier: Apache-2.0
"""Does the decoder compile for TPUs, its cache in place, and what does it move?

  pip install libtpu && python -m benchmarks.compile_decoder \
    [--model=meta-llama/Meta-Llama-3-8B] [--slots=64] [--length=1024] \
    [TOPOLOGY,model=N ...]

Ahead of time, on a host without any: nothing is run.  Bytes are those that a
chip reads and writes for a token of every slot, by the compiled program, beside
those of the weights and of a cache that is full, each read once.
"""

import argparse
import time

import jax

from mrpo_jax import parallel
from mrpo_jax.generation import Decoder, Sampling
from mrpo_jax.models import parameters
from mrpo_jax.performance import hlo_work
from mrpo_jax.performance.compiled import compiled_text
from mrpo_jax.performance.topology import find_target, read_shape
from mrpo_jax.text import aligned

CASES = ("v5e:2x4,model=8", "v5p:2x2x1,model=4")
HEADER = (
  *("chip", "chips", "seconds", "weights GB", "cache GB", "cache in place"),
  *("temporaries GB", "bytes a token, GB", "to weights + cache"),
)


def row(given, case):
  topology, _, model = case.partition(",model=")
  target = find_target(topology)
  mesh = parallel.make_mesh(model=int(model or 1), devices=target.devices)
  config = read_shape(given.model)
  rules = {"embed": ()}
  to = parallel.param_shardings(config, mesh, rules)
  params = parallel.abstract(parameters.abstract(config, "bfloat16"), to)
  new = given.length // 2
  decoder = Decoder(
    *(config, params),
    sampling=Sampling(max_new_tokens=new),
    stop_ids=(2,),
    slots=given.slots,
    longest=given.length - new,
    partition=parallel.partition_of(mesh, rules),
  )
  started = time.perf_counter()
  compiled, text = compiled_text(decoder.lowered(), mesh)
  seconds = time.perf_counter() - started
  if given.program:
    with open(given.program, "w", encoding="utf-8") as file:
      file.write(text)

  def here(tree):
    """Bytes on one chip."""
    return sum(
      leaf.dtype.itemsize * int(jax.numpy.prod(jax.numpy.array(shape)))
      for leaf in jax.tree.leaves(tree)
      for shape in [leaf.sharding.shard_shape(leaf.shape)]
    )

  memory = compiled.memory_analysis()
  weights = here(params)
  places = decoder.length * decoder.slots // decoder.rows
  size = 2 * 2 * config.layers * config.kv_heads * config.head_dim * places
  cache = size // mesh.shape["model"]
  work = hlo_work.work(text, dict(mesh.shape))
  moved = work.bytes / decoder.block
  return (
    *(target.chip, len(target.devices), f"{seconds:.0f}"),
    *(f"{weights / 1e9:.2f}", f"{cache / 1e9:.2f}"),
    "yes" if memory.alias_size_in_bytes >= cache else "no",
    f"{memory.temp_size_in_bytes / 1e9:.2f}",
    *(f"{moved / 1e9:.2f}", f"{moved / (weights + cache):.2f}"),
  )


def main():
  flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  flags.add_argument("cases", nargs="*", default=CASES)
  flags.add_argument("--model", default="meta-llama/Meta-Llama-3-8B")
  flags.add_argument("--slots", type=int, default=64)
  flags.add_argument("--length", type=int, default=1024)
  flags.add_argument("--program", default="", help="file for its text")
  given = flags.parse_args()
  rows = [HEADER, *(tuple(map(str, row(given, one))) for one in given.cases)]
  print(aligned(rows))


if __name__ == "__main__":
  main()
