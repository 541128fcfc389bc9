# SPDX-License-Identifier: Apache-2.0
r"""A 70B policy, all weights, against two 8B references in its step.

Nobody's published run: what a pod is for.  The references have the policy's
vocabulary and cost 6 % of its step; being smaller, they cannot be its start.

  hf download NAME --local-dir NAME       # of each model
  mrpo train --config=configs/llama3_70b.py --workdir=$W

On 8 nodes of eight H100 (fsdp=16, model=4) a step takes 35.5 GiB of the 59 that
jax takes of a device and at least 3.9 s, as long as nodes exchange weights: at
most 32 pairs/s with pairs of 512 + 2 x 512 tokens: compiled, not run (`mrpo
plan`, docs/guide/plan.md).  With fsdp over all devices there are more rows in a
micro-batch than the pairs fill.

Append `:debug` for a minute on tiny models.
"""

from ml_collections import config_dict

from mrpo_jax import configs


def get_config(arg=""):
  arg = configs.parse_arg(arg, debug=False)
  c = config_dict.ConfigDict()
  c.seed = 0
  c.steps = 477  # of 128 pairs: one epoch of 61,135
  c.batch = 128  # pairs in one optimizer step, over all hosts
  c.eval_every = 100
  c.checkpoint_every = 50
  c.data = dict(
    train="HuggingFaceH4/ultrafeedback_binarized:train_prefs",
    eval="HuggingFaceH4/ultrafeedback_binarized:test_prefs",
    max_prompt=1024,  # tokens
    max_response=1024,
    row_length=3328,
  )
  c.mesh = dict(data=1, fsdp=-1, model=4)
  c.policy = dict(
    path="meta-llama/Meta-Llama-3-70B-Instruct",
    dtype="float32",  # master weights
    compute="bfloat16",
    remat="dots",
  )
  reference = dict(mode="online", dtype="bfloat16", tokenizer="policy")
  c.references = dict(
    names=("llama3", "llama31"),
    llama3=dict(path="meta-llama/Meta-Llama-3-8B-Instruct", **reference),
    llama31=dict(path="meta-llama/Llama-3.1-8B-Instruct", **reference),
  )
  c.loss = dict(
    name="mrpo",
    beta=0.01,  # per nat
    mixture="harmonic",  # as published
    clip=dict(epsilon_max=0.1, adaptive=True),  # as published
    weights="uniform",  # not as published: reads no label
  )
  c.optimizer = dict(peak_lr=3e-7, warmup=0.1, clip_norm=1.0)
  return configs.shrink(c) if arg.debug else c
