# SPDX-License-Identifier: Apache-2.0
"""mrpo_jax's generation as a player; see benchmarks/generation.py."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import turns
from mrpo_jax import hub, parallel
from mrpo_jax.generation import Decoder, Sampling, samples
from mrpo_jax.generation.decoder import no_slots
from mrpo_jax.models import parameters, weights
from mrpo_jax.performance.bench import machine, matmul_peak


def bandwidth():
  """Bytes per second of reading a matrix that no cache holds, at best.

  By products with a vector from either side, which use all cores.
  """
  matrix = jax.random.normal(jax.random.key(0), (1 << 15, 1 << 11))
  found = []
  for product in ("ab,a->b", "ab,b->a"):
    size = matrix.shape[0 if product.endswith("b") else 1]
    run = jax.jit(functools.partial(jnp.einsum, product))
    vector = jnp.ones(size)
    run(matrix, vector).block_until_ready()
    for _ in range(3):
      started = time.perf_counter()
      run(matrix, vector).block_until_ready()
      found.append(matrix.nbytes / (time.perf_counter() - started))
  return max(found)


def player(job, quantize, slots, static):
  config, params = hub.load(job["folder"], dtype="float32")
  if quantize:
    params = weights.quantize(params, parameters.table(config), quantize)
  prompts, new = job["prompts"], job["new"]
  longest = max(map(len, prompts))
  a_position = 2 * 4 * config.layers * config.kv_heads * config.head_dim
  mesh = parallel.make_mesh(devices=jax.devices()[:1])
  sampling = Sampling(
    temperature=0, max_new_tokens=new, min_new_tokens=job["least"]
  )
  decoder = Decoder(
    *(config, params),
    sampling=sampling,
    stop_ids=[job["stop"]],
    slots=slots or len(prompts),
    longest=longest,
  )

  def said(prompts):
    requests = [(i, 0) for i in range(len(prompts))]
    return dict(samples(decoder, prompts, requests, 0))

  def whole():
    if not static:
      return said(prompts)
    found = {}
    for first in range(0, len(prompts), decoder.slots):
      some = said(prompts[first : first + decoder.slots])
      found |= {(first + i, n): one for (i, n), one in some.items()}
    return found

  def a_block():
    """Seconds of a block of tokens in the middle of the prompts' lengths."""
    slots = no_slots(decoder.slots)
    slots.active[:] = True
    slots.position[:] = int(np.mean(list(map(len, prompts)))) + new // 2
    decoder.start(0)
    started = time.perf_counter()
    decoder.decode(slots)
    return time.perf_counter() - started

  def turn(number):
    started = time.perf_counter()
    found = whole()
    seconds = time.perf_counter() - started
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    tokens = sum(len(one.ids) for one in found.values())
    return {
      "whole": seconds,
      "decode": min(a_block() for _ in range(2)) / decoder.block,
      "tokens": tokens,
      "weights": size,
      "cache": decoder.slots * decoder.length * a_position,
      "flops": 2 * parameters.count_parameters(config) * decoder.slots,
      "bandwidth": bandwidth(),
      "peak": matmul_peak(mesh, "float32"),
      "memory": turns.resident(),
    }

  def equality(number):
    found = said(prompts)
    some = [found[i, 0] for i in range(len(prompts))]
    return {"found": [{"ids": one.ids, "logp": one.logp} for one in some]}

  return equality if job["equality"] else turn


def main():
  given = turns.worker_arguments(__doc__, quantize="", slots=0, static=0)
  about = {name: machine()[name] for name in ("jax", "device")}
  make = functools.partial(player, given.job, given.quantize, given.slots)
  turns.serve(given.channel, about, make(given.static))


if __name__ == "__main__":
  main()
