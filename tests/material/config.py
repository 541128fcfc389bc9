# SPDX-License-Identifier: Apache-2.0
"""A config for any loss by its name, as small as the quickstart's debug run.

  mrpo train --config=tests/material/config.py:aot,inputs=DIR --workdir=W

DIR holds the Hugging Face folders `base` and `second`, `pairs.jsonl` and, of
single responses, `labelled.jsonl`: see `inputs.py`.
"""

from configs import quickstart
from mrpo_jax import configs

CONFIG = __file__
# What a loss needs in a config beside its name.
LOSS = {
  "combine": dict(losses=("hinge", "nca"), loss_weights=(0.5, 0.5)),
  "alpha_dpo": dict(running=0.9),
  "hpo": dict(auxiliary=dict(name="hpo", delay=2, width=16)),
}
SEVERAL = ("mrpo", "multi_dpo", "mnpo")
NONE = ("nll", "simpo", "simper", "alpha_po", "cpo", "slic", "orpo", "tpo")
NONE += ("bradley_terry",)
UNPAIRED = ("kto_unpaired", "apo_zero_unpaired", "bco_unpaired")
LIMITS = dict(max_prompt=32, max_response=32)


def get_config(arg=""):
  arg = configs.parse_arg(arg, run="dpo", inputs="", several=False)
  c = quickstart.get_config("dpo,debug")
  c.steps = 5
  c.eval_every = 0
  c.checkpoint_every = 0
  rows = "labelled" if arg.run in UNPAIRED else "pairs"
  c.data.train = f"{arg.inputs}/{rows}.jsonl"
  c.data.eval = ""
  c.data.update(LIMITS)
  c.data.row_length = 128
  # Of all kernels this one compiles in the least time.
  c.policy = dict(path=f"{arg.inputs}/base", kernel="xla")
  c.loss = dict(name=arg.run, **LOSS.get(arg.run, {}))
  if arg.run == "bradley_terry":
    c.policy.head = "scalar"
  if arg.run in ("hpo", "qrpo"):
    words = dict(reward="mrpo_jax.online.words:length", weight=0.001)
    c.data.rewards = dict(names=("words",), words=words)
  if arg.run in NONE:
    c.references = dict(names=())
  elif arg.run in SEVERAL or arg.several:
    second = dict(path=f"{arg.inputs}/second")
    c.references.names = ("base", "second")
    c.references.second = second
  return c
