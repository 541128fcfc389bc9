# SPDX-License-Identifier: Apache-2.0
r"""MallowsPO-theta on Llama-3-8B-Instruct.

MallowsPO, arXiv:2405.14953, its AlpacaEval 2 runs: DPO whose margin is scaled
for each prompt by the dispersion of the reference, measured by its entropy.

  hf download NAME --local-dir NAME       # of the model
  mrpo train --config=configs/mallowspo_llama3.py --workdir=$W

beta and learning rate are those of the paper's best MallowsPO (and DPO) run on
this model; 0.29 is the constant of the released code, 1 / 0.29 its mean
dispersion.  Data, batch and lengths follow SimPO, arXiv:2405.14734, whose
responses these runs train on.

On eight H100 (fsdp=8) a step takes 27.7 GiB of the 59 that jax takes of each
and at least 1.7 s, so at most 77 pairs/s with pairs of 512 + 2 x 512 tokens:
compiled, not run (`mrpo plan`, docs/guide/plan.md).

Append `:debug` for a minute on tiny models.
"""

from ml_collections import config_dict

from mrpo_jax import configs


def get_config(arg=""):
  arg = configs.parse_arg(arg, debug=False)
  c = config_dict.ConfigDict()
  c.seed = 0
  c.steps = 467  # of 128 pairs: one epoch of 59,876
  c.batch = 128  # pairs in one optimizer step, over all hosts
  c.eval_every = 100
  c.checkpoint_every = 100
  c.data = dict(
    train="princeton-nlp/llama3-ultrafeedback-armorm:train",
    eval="princeton-nlp/llama3-ultrafeedback-armorm:test",
    max_prompt=1024,  # tokens
    max_response=1024,
    row_length=3328,
  )
  c.mesh = dict(data=1, fsdp=-1)
  c.policy = dict(
    path="meta-llama/Meta-Llama-3-8B-Instruct",
    dtype="float32",  # master weights
    compute="bfloat16",
    remat="dots",
  )
  c.references = dict(
    names=("start",),
    start=dict(path="policy", mode="online", dtype="bfloat16"),
  )
  c.loss = dict(
    name="mallows_theta",
    beta=0.01,  # per nat
    dispersion=1 / 0.29,
  )
  c.optimizer = dict(peak_lr=5e-7, warmup=0.1, clip_norm=1.0)
  return configs.shrink(c) if arg.debug else c
