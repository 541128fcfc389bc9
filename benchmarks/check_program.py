# SPDX-License-Identifier: Apache-2.0
r"""Reads a compiled train step: no logits, no model collected whole.

  mrpo plan --config=... --topology=... [--config.a.b=value] --program=F
  python -m benchmarks.check_program F --config=... --topology=... \
    [--config.a.b=value]

Fails where an array is as large as the logits of a micro-batch, or where all
layers of a weight, the embedding or the head are collected at once.  Sizes
tell: of tiny models, where they coincide, it says too much.
"""

import argparse
import math
import sys

import jax

from mrpo_jax.cli.flags import changed_config
from mrpo_jax.errors import InputError
from mrpo_jax.models import parameters
from mrpo_jax.performance import hlo_text, hlo_work
from mrpo_jax.performance.topology import find_target, read_shape
from mrpo_jax.runs.setup import abstract_setup, mesh_of


def faults(text, setup):
  """Lines about what should not be there."""
  computations, _ = hlo_text.parse(text)
  models = [setup.objective.policy, *setup.objective.references]
  mesh = setup.mesh.shape
  rows = setup.packing.rows // (mesh["data"] * mesh["fsdp"])
  tokens = rows * setup.packing.length // mesh["context"]
  for V, D in {
    (model.config.vocab_size, model.config.width)
    for model in models
    if not model.scored
  }:
    for here in computations.values():
      for one in here.values():
        for dtype, sizes, _ in one.shapes:
          is_weight = tokens != D and sorted(sizes) == sorted((V, D))
          large = math.prod(sizes) >= tokens * (V // mesh["model"])
          if V in sizes and large and not is_weight:
            yield f"logits: {one.name} is {dtype}{list(sizes)}"
  whole, layer = {}, 0
  for model in models:
    table = parameters.table(model.config)
    for path, one in jax.tree.leaves_with_path(table):
      name = jax.tree_util.keystr(path, simple=True, separator=".")
      whole[math.prod(one.shape)] = (name, {one.shape[0], model.config.width})
      if one.axes[0] == "layers":
        layer = max(layer, math.prod(one.shape[1:]))
  for one in hlo_work.work(text, dict(mesh)).collectives:
    for dtype, sizes, _ in one.shapes if one.kind == "all-gather" else ():
      size = math.prod(sizes)
      name, axes = whole.get(size, ("", {0}))
      if "f" in dtype and size > layer and axes <= set(sizes):
        yield f"collected whole: {name} as {dtype}{list(sizes)} in {one.scope}"


def main(argv=None):
  parser = argparse.ArgumentParser()
  parser.add_argument("program")
  parser.add_argument("--config", required=True)
  parser.add_argument("--topology", required=True)
  given, changes = parser.parse_known_args(argv)
  try:
    config = changed_config(given.config, changes)
  except InputError as error:
    parser.error(str(error))
  target = find_target(given.topology)
  mesh = mesh_of(config, target.devices)
  setup = abstract_setup(config, mesh, read_shape)
  with open(given.program) as file:
    found = sorted(set(faults(file.read(), setup)))
  print("\n".join(found) or "no logits, and no weight is collected whole")
  return 1 if found else 0


if __name__ == "__main__":
  sys.exit(main())
