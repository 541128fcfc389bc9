# SPDX-License-Identifier: Apache-2.0
"""Torch's log-probability of every token; benchmarks/rounding.py starts it.

  TORCH_PYTHON -m benchmarks.peers.torch_logps FOLDER IDS.json TO.json PRECISION

PRECISION: float32; float64, where transformers computes norms and rotations in
float32 all the same; or float64-throughout, in which it does not.
"""

import json
import pathlib
import sys

import torch
import transformers

THROUGHOUT = "float64-throughout"


def main():
  folder, sequences, to, precision = sys.argv[1:]
  dtype = torch.float32 if precision == "float32" else torch.float64
  family = transformers.AutoModelForCausalLM
  model = family.from_pretrained(folder, dtype=dtype)
  if precision == THROUGHOUT:
    # transformers makes float32 of what it computes in float32 by these names.
    # Weights were read under their own; what follows from the config is anew.
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    weights, config = model.state_dict(), model.config
    model = family.from_config(config, dtype=dtype).eval()
    model.load_state_dict(weights)
  found = []
  with torch.inference_mode():
    for ids, prompt in json.loads(pathlib.Path(sequences).read_text()):
      logits_TV = model(torch.tensor([ids])).logits[0, :-1]
      logp_TV = torch.log_softmax(logits_TV, dim=-1)
      targets_T1 = torch.tensor(ids[1:])[:, None]
      logp_T = torch.gather(logp_TV, -1, targets_T1)[:, 0]
      found.append(logp_T[prompt - 1 :].tolist())
  pathlib.Path(to).write_text(json.dumps(found))


if __name__ == "__main__":
  main()
