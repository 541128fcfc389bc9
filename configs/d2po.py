# SPDX-License-Identifier: Apache-2.0
r"""D2PO: online DPO whose labels come from a discriminator that learns.

  mrpo train --config=configs/d2po.py:models=$W/models --workdir=/tmp/d2po

The policy answers 16 prompts twice a round.  A reward model, the
discriminator, says which answer is better; every fifth round the reward (gold)
decides the pairs that it tells apart least, and the discriminator learns from
those.  Source: D2PO, arXiv:2405.01511, whose sizes these are where two cores
allow.

The discriminator starts as the policy with a head of zeros, or from a reward
model: `--config.online.discriminator.path=FOLDER`.  Variants of its Table:

  loop=gold     the reward labels all
  loop=static   the discriminator labels all and never learns

Append `:debug` for a run of seconds on a tiny random model.
"""

from ml_collections import config_dict

from mrpo_jax import configs

LOOPS = {
  "d2po": {},
  "gold": dict(path=""),
  "static": dict(buy=0),
}


def get_config(arg=""):
  arg = configs.parse_arg(
    arg, models=configs.MODELS, reward="policy", loop="d2po", debug=False
  )
  if arg.loop not in LOOPS:
    raise ValueError(f"unknown loop {arg.loop!r}; known: {', '.join(LOOPS)}")
  c = config_dict.ConfigDict()
  c.seed = 0
  c.steps = 200
  c.batch = 16  # pairs in one optimizer step, over all hosts
  c.checkpoint_every = 50
  c.data = dict(
    max_prompt=96,  # tokens; longer prompts are left out
    row_length=384,  # tokens of a packed row: two pairs
  )
  c.online = dict(
    configs.WORDS,
    rounds=200,  # one step each
    min_new_tokens=20,
    # The reward costs nothing here: it also measures what it does not label.
    measure=True,
  )
  c.online.discriminator = {
    "path": arg.reward,
    "buy": 5,  # pairs of 160 responses
    "every": 5,
    "choice": "confidence",
    "passes": 2,
    "batch": 16,
    "peak_lr": 1e-4,
    **LOOPS[arg.loop],
  }
  c.policy = dict(path=f"{arg.models}/sft-base")
  c.references = dict(names=("base",), base=dict(path="policy"))
  c.loss = dict(name="dpo", beta=0.05)
  c.optimizer = dict(peak_lr=1e-4, warmup=0.05, clip_norm=1.0)
  return configs.shrink(c) if arg.debug else c
