# SPDX-License-Identifier: Apache-2.0
"""Memory of the train step as compiled, beside what it cannot do without.

  python -m benchmarks.step_memory [--shape=A] [--topology=cpu:1]

Nothing is run: the compiler says what it will take.  One scored reference, so
that the policy stands alone.
"""

import argparse
import json
import pathlib
import tempfile

from benchmarks import material
from mrpo_jax.models import head, parameters
from mrpo_jax.models.config import ModelConfig
from mrpo_jax.models.families.read import config_to_hf
from mrpo_jax.performance import plan
from mrpo_jax.performance.topology import find_target
from mrpo_jax.runs.config import read
from mrpo_jax.text import aligned

VOCABULARIES = (16384, 262144)
REMAT = ("none", "dots", "full")
ROW_LENGTH, BATCH = 1024, 8
WIDE = 4  # bytes of float32


def needed(model, remat):
  """{what: bytes} of a step in float32, of one row at a time."""
  weights = WIDE * parameters.count_parameters(model)
  D, F = model.width, model.mlp_width
  heads = model.head_dim * model.heads
  kv_heads = model.head_dim * model.kv_heads
  # What enters a layer; and with "dots" its products and what attention gave.
  kept = D
  if remat == "dots":
    kept += 2 * heads + model.heads + 2 * kv_heads + 2 * D + 2 * F
  chunk = head.chunk_size(1, ROW_LENGTH) * head.VOCABULARY
  return {
    "weights": weights,
    "gradient": weights,
    "moments": 2 * weights,
    "layers": WIDE * kept * model.layers * ROW_LENGTH,
    "chunk": WIDE * chunk,
  }


def measured(folder, model, remat, target):
  """Bytes of a device at their peak, as compiled."""
  config_json = config_to_hf(model, "float32")
  (folder / "config.json").write_text(json.dumps(config_json))
  job = {
    "rounds": [[0]],
    "batch": BATCH,
    "pairs": "none",
    "longest": material.LONGEST,
    "row_length": ROW_LENGTH,
    "dtype": "float32",
    "lr": 1e-6,
    "beta": 0.1,
    "model": str(folder),
    "adapter": "",
    "references": [str(folder)],
  }
  config = material.settings_of(job, 1, "scored")
  config["policy"]["remat"] = remat
  found = plan.plan(read(config), target, plan.usual_lengths(read(config)))
  return found["steps"]["train"]["bytes"]["peak"]


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--shape", default="A", choices=material.SHAPES)
  parser.add_argument("--topology", default="cpu:1")
  given = parser.parse_args()
  target = find_target(given.topology)
  rows = [["vocabulary", "remat", "compiled, MB", "needed, MB", "ratio", "of"]]
  with tempfile.TemporaryDirectory() as folder:
    for vocabulary in VOCABULARIES:
      shape = {**material.SHAPES[given.shape], "vocab_size": vocabulary}
      model = ModelConfig(**shape)
      for remat in REMAT:
        bytes_ = measured(pathlib.Path(folder), model, remat, target)
        row = [f"{vocabulary:,}", remat, f"{bytes_ / 1e6:,.0f}"]
        if remat == "none":  # keeps what the compiler pleases
          rows.append([*row, "", "", ""])
          continue
        parts = needed(model, remat)
        total = sum(parts.values())
        said = ", ".join(f"{k} {v / 1e6:,.0f}" for k, v in parts.items())
        ratio = f"{bytes_ / total:.2f}"
        rows.append([*row, f"{total / 1e6:,.0f}", ratio, said])
  print(aligned(rows))


if __name__ == "__main__":
  main()
