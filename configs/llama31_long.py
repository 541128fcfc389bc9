# SPDX-License-Identifier: Apache-2.0
r"""Llama-3.1-8B, all weights, DPO on pairs of up to 32k tokens.

A prompt of 24k tokens and two responses of 4k: a row holds one pair, and
`context` devices share it (docs/guide/sharding.md).  Pairs are your own.

On h100:8 (fsdp=2, context=4) a step takes 22.7 GiB of a device's 59 and at
least 16.5 s, so at most 1.9 pairs/s: compiled, not run (`mrpo plan`,
docs/guide/plan.md).

  mrpo train --config=configs/llama31_long.py --workdir=$W

Append `:debug` for a minute on tiny models.
"""

from ml_collections import config_dict

from mrpo_jax import configs


def get_config(arg=""):
  arg = configs.parse_arg(arg, debug=False)
  c = config_dict.ConfigDict()
  c.seed = 0
  c.steps = 500
  c.batch = 32  # pairs in one optimizer step, over all hosts: 1M tokens
  c.eval_every = 100
  c.checkpoint_every = 50
  c.data = dict(
    train="long/train.jsonl",
    eval="long/eval.jsonl",
    max_prompt=24576,  # tokens
    max_response=4096,
    row_length=32768,
  )
  c.mesh = dict(data=1, fsdp=-1, context=4)
  c.policy = dict(
    path="meta-llama/Llama-3.1-8B-Instruct",
    dtype="float32",  # master weights
    compute="bfloat16",
    remat="full",
  )
  c.references = dict(
    names=("start",),
    start=dict(path="policy", mode="online", dtype="bfloat16"),
  )
  c.loss = dict(name="dpo", beta=0.01)  # per nat
  c.optimizer = dict(peak_lr=5e-7, warmup=0.1, clip_norm=1.0)
  return configs.shrink(c) if arg.debug else c
