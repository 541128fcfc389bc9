# SPDX-License-Identifier: Apache-2.0
r"""Llama-3-8B, all weights, against several references on UltraFeedback.

  :online  K = 2 in the step: the supervised start and Llama-3-8B-Instruct
  :scored  K = 4 read from the store: these, Mistral-7B and Yi-9B

  hf download NAME --local-dir NAME       # of each model
  C=configs/llama3_ultrafeedback.py:scored
  mrpo score --config=$C --workdir=$W --store=$S
  mrpo train --config=$C --workdir=$W --store=$S

MRPO, arXiv:2405.16388, with two changes: uniform weights, which read no label,
and for other families of models `scale="zscore"`, or the one whose
log-probabilities spread most would decide alone (docs/guide/references.md).
Batch, learning rate and lengths are SimPO's for this start, arXiv:2405.14734.

On eight H100 (fsdp=8) a step takes 29.6 GiB of the 59 that jax takes of each
online, 25.9 scored, and at least 2.1 or 1.3 s, so at most 62 or 102 pairs/s
with pairs of 512 + 2 x 512 tokens: compiled, not run (`mrpo plan`,
docs/guide/plan.md).

Append `,debug` for a minute on tiny models.
"""

from ml_collections import config_dict

from mrpo_jax import configs

OTHERS = {  # references beside the start, by run
  "online": dict(instruct="meta-llama/Meta-Llama-3-8B-Instruct"),
  "scored": dict(
    instruct="meta-llama/Meta-Llama-3-8B-Instruct",
    mistral="mistralai/Mistral-7B-Instruct-v0.3",
    yi="01-ai/Yi-1.5-9B-Chat",
  ),
}


def get_config(arg="online"):
  arg = configs.parse_arg(arg, run="online", debug=False)
  if arg.run not in OTHERS:
    raise ValueError(f"unknown run {arg.run!r}; known: {', '.join(OTHERS)}")
  others = OTHERS[arg.run]
  c = config_dict.ConfigDict()
  c.seed = 0
  c.steps = 477  # of 128 pairs: one epoch of 61,135
  c.batch = 128  # pairs in one optimizer step, over all hosts
  c.eval_every = 100
  c.checkpoint_every = 100
  c.data = dict(
    train="HuggingFaceH4/ultrafeedback_binarized:train_prefs",
    eval="HuggingFaceH4/ultrafeedback_binarized:test_prefs",
    max_prompt=1024,  # tokens
    max_response=1024,
    row_length=3328,
  )
  c.mesh = dict(data=1, fsdp=-1)
  c.policy = dict(
    path="princeton-nlp/Llama-3-Base-8B-SFT",
    dtype="float32",  # master weights
    compute="bfloat16",
    remat="dots",
  )
  reference = dict(mode=arg.run, dtype="bfloat16")
  c.references = dict(
    names=("start", *others),
    start=dict(path="policy", **reference),
    **{name: dict(path=path, **reference) for name, path in others.items()},
  )
  c.loss = dict(
    name="mrpo",
    beta=0.01,  # per nat
    mixture="harmonic",  # as published
    clip=dict(epsilon_max=0.1, adaptive=True),  # as published
    weights="uniform",  # not as published: reads no label
  )
  if arg.run == "scored":
    c.loss.scale = "zscore"
  c.optimizer = dict(peak_lr=5e-7, warmup=0.1, clip_norm=1.0)
  return configs.shrink(c) if arg.debug else c
