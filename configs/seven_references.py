# SPDX-License-Identifier: Apache-2.0
r"""Qwen2.5-0.5B against seven references, scored once.

"Intelligently Weighting Multiple Reference Models", arXiv:2512.10040, its
runs on UltraFeedback: QLoRA of rank 32 on all matrices, log-probabilities
per token, no clipping.  Name the weights after the colon:

  :vaw     accuracy on validation pairs (the paper's best with :vaw,multi)
  :vdw     discrimination on validation pairs
  :arwc    MRPO's own, of each pair
  :window  of the batch before

`,multi` takes one loss for each reference instead of one harmonic mixture.

  hf download NAME --local-dir NAME       # of each model
  C=configs/seven_references.py:vaw,multi
  mrpo score --config=$C --workdir=$W --store=$S     # 46 B parameters, once
  mrpo train --config=$C --workdir=$W --store=$S

Other than the paper: int4 in groups of 32 for NF4; the first 5,000 pairs of
UltraFeedback, and 1,000 of its test split for each of validation and test,
where the paper draws 7,000 anew for each seed and drops long and very short
ones.

On v5p:2x2x1 (4 chips, a copy of the models on each) the policy's step takes 3.1
GiB of a device's 95 and at least 0.09 s; the references, one after the other,
1.0 to 29 GiB (Phi-3-medium) and at least 0.01 to 0.4 s for 25 pairs of 256 +
2 x 256 tokens: compiled, not run (`mrpo plan`, docs/guide/plan.md).

Append `,debug` for a minute on tiny models.
"""

from ml_collections import config_dict

from mrpo_jax import configs

REFERENCES = dict(
  llama="meta-llama/Llama-3.1-8B-Instruct",
  mistral="mistralai/Mistral-7B-Instruct-v0.3",
  phi="microsoft/Phi-3-medium-128k-instruct",
  qwen_1b="Qwen/Qwen2.5-1.5B-Instruct",
  qwen_4b="Qwen/Qwen3-4B-Instruct-2507",
  yi="01-ai/Yi-1.5-9B-Chat",
)
WEIGHTS = dict(
  vaw="accuracy",
  vdw="discrimination",
  arwc="adaptive",
  window="sliding_window",
)


def get_config(arg="vaw"):
  arg = configs.parse_arg(arg, run="vaw", multi=False, debug=False)
  if arg.run not in WEIGHTS:
    raise ValueError(f"unknown run {arg.run!r}; known: {', '.join(WEIGHTS)}")
  c = config_dict.ConfigDict()
  c.seed = 0
  c.steps = 200  # of 25 pairs: one epoch of 5,000
  c.batch = 25  # pairs in one optimizer step
  c.eval_every = 50
  c.checkpoint_every = 50
  of = "HuggingFaceH4/ultrafeedback_binarized"
  c.data = dict(
    train=f"{of}:train_prefs[:5000]",
    eval=f"{of}:test_prefs[:1000]",
    validation=f"{of}:test_prefs[1000:2000]",
    max_prompt=512,  # tokens; 1,024 with a response
    max_response=512,
    row_length=2048,
  )
  c.policy = dict(
    path="Qwen/Qwen2.5-0.5B-Instruct",
    dtype="bfloat16",
    quantize="int4",
    adapter=dict(rank=32, alpha=16.0, dropout=0.0),
  )
  scored = dict(mode="scored", dtype="bfloat16")
  c.references = dict(
    names=("qwen", *REFERENCES),
    # Not "policy", which is in int4.
    qwen=dict(path="Qwen/Qwen2.5-0.5B-Instruct", **scored),
    **{name: dict(path=path, **scored) for name, path in REFERENCES.items()},
  )
  c.loss = dict(
    name="mrpo",
    beta=0.1,  # per nat and token
    mixture="multi" if arg.multi else "harmonic",
    clip=None,
    weights=WEIGHTS[arg.run],
    scale="mean",  # per token
  )
  c.optimizer = dict(peak_lr=1e-4, warmup=0.0, end_lr_share=1.0)  # constant
  if not arg.debug:
    return c
  c = configs.shrink(c)
  c.data.validation = c.data.eval
  c.references.names = c.references.names[:3]
  c.policy.quantize = "int8"  # tiny matrices have no groups of 32
  c.policy.adapter.rank = 8
  return c
