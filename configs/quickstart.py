# SPDX-License-Identifier: Apache-2.0
r"""The main job on real human preferences, in minutes on two CPU cores.

Four runs of one trainer; `launch/quickstart.sh` starts them in this order:

  sft-base    supervised start of the policy; it is also reference 0
  sft-second  another reference: other shape, other tokenizer
  dpo         direct preference optimization against reference 0
  mrpo        multi-reference preference optimization against both

It demonstrates the machine, not a method: models this small, trained for
minutes on 1,884 dialogues, say nothing about which method is better.

  mrpo train --config=configs/quickstart.py:sft-base --workdir=$W/sft-base
  mrpo train --config=configs/quickstart.py:mrpo,models=$W/models \
    --workdir=$W/mrpo

Append `,debug` for a one-minute run of the same code on tiny random models.
"""

from ml_collections import config_dict

from mrpo_jax import configs

SHAPES = {
  # 1.0 M parameters: trains in a minute on two cores.
  "base": dict(
    layers=4,
    width=128,
    heads=2,
    kv_heads=1,
    mlp_width=352,
    tokenizer="bpe",
    vocab_size=2048,
  ),
  # 0.5 M, narrower, fewer layers, and a Unigram tokenizer of its own.
  "second": dict(
    layers=3,
    width=96,
    heads=2,
    kv_heads=2,
    mlp_width=256,
    tokenizer="unigram",
    vocab_size=1536,
  ),
}


def get_config(arg="mrpo"):
  arg = configs.parse_arg(arg, run="mrpo", models=configs.MODELS, debug=False)
  runs = ("sft-base", "sft-second", "dpo", "mrpo")
  if arg.run not in runs:
    raise ValueError(f"unknown run {arg.run!r}; known: {', '.join(runs)}")
  c = config_dict.ConfigDict()
  c.seed = 0
  c.data = dict(configs.HH)
  if arg.run.startswith("sft"):
    supervised(c, arg.run.removeprefix("sft-"))
  else:
    preferences(c, arg)
  return configs.shrink(c) if arg.debug else c


def supervised(c, name):
  """Likelihood of the chosen responses, from random weights."""
  c.steps = 40
  c.batch = 64  # pairs in one optimizer step: 29 steps are an epoch
  c.data.row_length = 256  # prompt and one response; attention is quadratic
  c.policy = dict(path="", new=SHAPES[name])
  if name == "second":
    c.policy.tokenizer = str(configs.TOKENIZERS / "unigram-1536")
  c.references = dict(names=())
  c.loss = dict(name="nll")
  # From scratch: large steps, short warm-up.
  c.optimizer = dict(peak_lr=5e-3, warmup=0.1, clip_norm=1.0, weight_decay=0.1)


def preferences(c, arg):
  """DPO or MRPO from the supervised start."""
  c.steps = 30  # of 64 pairs: an epoch
  c.batch = 64  # pairs in one optimizer step, over all hosts
  c.eval_every = 15
  c.checkpoint_every = 15
  c.policy = dict(path=f"{arg.models}/sft-base")
  references = dict(
    names=("base",),
    base=dict(path="policy", mode="online"),
  )
  c.loss = dict(name="dpo", beta=0.1)  # per nat; DPO's usual value
  if arg.run == "mrpo":
    references["names"] = ("base", "second")
    references["second"] = dict(path=f"{arg.models}/sft-second", mode="online")
    c.loss = dict(
      name="mrpo",
      beta=0.1,
      mixture="harmonic",  # as published
      clip=dict(epsilon_max=0.1, adaptive=True),  # as published
      # Not as published: adaptive weights read the label, so the evaluation
      # would; uniform ones do not.
      weights="uniform",
    )
  c.references = references
  c.optimizer = dict(peak_lr=1e-4, warmup=0.1, clip_norm=1.0)
