# SPDX-License-Identifier: Apache-2.0
r"""DPO and MRPO of a pretrained model on real human preferences, with LoRA.

`launch/real.sh` fetches the models, scores them, and starts both runs:

  dpo   SmolLM2-135M-Instruct against its own start
  mrpo  the same against its start and Gemma 3 270M: other makers, shapes,
        tokenizers; both were scored once and are not in memory

  C=configs/real.py:mrpo,models=$M
  mrpo score --config=$C --workdir=$W/mrpo --store=$W/store
  mrpo train --config=$C --workdir=$W/mrpo --store=$W/store

`data.limit` takes a fifth of the embedded pairs: all of them would take five
times as long.  Append `,debug` for a minute on tiny models.
"""

from ml_collections import config_dict

from mrpo_jax import configs

PAIRS = 16  # in one optimizer step
STEPS = 24
MODELS = "/tmp/mrpo_real/models"  # of launch/real.sh by itself


def get_config(arg="mrpo"):
  arg = configs.parse_arg(arg, run="mrpo", models=MODELS, debug=False)
  if arg.run not in ("dpo", "mrpo"):
    raise ValueError(f"unknown run {arg.run!r}; known: dpo, mrpo")
  c = config_dict.ConfigDict()
  c.seed = 0
  c.steps = STEPS
  c.batch = PAIRS
  c.checkpoint_every = 4  # steps: a minute of work, which a kill may cost
  c.data = dict(
    train=str(configs.HH_HARMLESS / "train.jsonl.gz"),
    eval=str(configs.HH_HARMLESS / "eval.jsonl.gz"),
    conversations="hh",  # in the chat template of each model
    limit=PAIRS * STEPS,  # each once
    max_prompt=192,  # tokens; keeps the prompt's end
    max_response=128,  # tokens; keeps the response's start
    row_length=1024,  # tokens of a packed row: about six pairs
  )
  c.eval_every = STEPS  # minutes each
  c.evaluation = dict(  # before and after
    tasks=("truthfulqa_mc1", "truthfulqa_mc2", "gsm8k"),
    data=str(configs.SHIPPED / "benchmarks"),
  )
  c.samples = dict(
    prompts=str(configs.SHIPPED / "benchmarks" / "prompts.jsonl"),
    max_new_tokens=80,
  )
  c.policy = dict(
    path=f"{arg.models}/smollm2",
    dtype="float32",
    adapter=dict(rank=16, alpha=32.0),
  )
  references = dict(
    names=("start",),
    start=dict(path="policy", mode="scored"),
  )
  c.loss = dict(name="dpo", beta=0.1)  # per nat; DPO's usual value
  if arg.run == "mrpo":
    references["names"] = ("start", "gemma3")
    references["gemma3"] = dict(
      path=f"{arg.models}/gemma3", mode="scored", dtype="float32"
    )
    c.loss = dict(
      name="mrpo",
      beta=0.1,
      mixture="harmonic",  # as published
      scale="zscore",  # not as published: sums of other tokenizers' tokens
      clip=dict(epsilon_max=0.1, adaptive=True),  # as published
      weights="uniform",  # not as published: reads no label
    )
  c.references = references
  c.optimizer = dict(peak_lr=2e-4, warmup=0.1, clip_norm=1.0)
  if arg.debug:
    c.evaluation.limit = 1
    c.samples.max_new_tokens = 8
    configs.shrink(c)
  return c
