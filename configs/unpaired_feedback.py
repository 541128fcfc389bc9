# SPDX-License-Identifier: Apache-2.0
r"""KTO on single responses, each with a label: good or bad.

KTO, arXiv:2402.01306, on the data of TRL's example, rows of prompt, completion
and label.  Beside its own response each row is given one of another prompt,
from which the divergence from the reference is estimated.

  mrpo train --config=configs/unpaired_feedback.py --workdir=$W

Your own rows: `data.train=FILE`.  Without that divergence
`loss.name=apo_zero_unpaired`, with a running mean of rewards in its place
`loss.name=bco_unpaired`.

Append `:debug` for a minute on tiny models.
"""

from ml_collections import config_dict

from mrpo_jax import configs


def get_config(arg=""):
  arg = configs.parse_arg(arg, debug=False)
  c = config_dict.ConfigDict()
  c.seed = 0
  c.epochs = 1.0
  c.batch = 64  # responses in one optimizer step, over all hosts
  c.eval_every = 50
  c.checkpoint_every = 50
  c.data = dict(
    train="trl-lib/kto-mix-14k:train",
    eval="trl-lib/kto-mix-14k:test",
    max_prompt=1024,  # tokens
    max_response=512,
    row_length=4096,  # a row holds the mismatched responses, too
  )
  c.mesh = dict(data=1, fsdp=-1)
  c.policy = dict(
    path="Qwen/Qwen2-0.5B-Instruct",
    dtype="float32",  # master weights
    compute="bfloat16",
    remat="full",
  )
  c.references = dict(
    names=("start",),
    start=dict(path="policy", mode="online", dtype="bfloat16"),
  )
  c.loss = dict(
    name="kto_unpaired",
    beta=0.1,  # per nat
    # The run says where they should stand if labels are not balanced.
    desirable_weight=1.0,
    undesirable_weight=1.0,
  )
  c.optimizer = dict(peak_lr=1e-6, warmup=0.1, clip_norm=1.0)
  if arg.debug:
    del c.epochs
    c.data.unpair = True  # of pairs
    return configs.shrink(c)
  return c
