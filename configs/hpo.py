# SPDX-License-Identifier: Apache-2.0
r"""HPO: preferences and rewards of the responses in one loss, on any host.

  mrpo train --config=configs/hpo.py:kto,models=$W/models --workdir=/tmp/hpo
  mrpo train --config=configs/hpo.py:kto,alone,models=$W/models \
    --workdir=/tmp/kto

Hosts are kto, the paper's (arXiv:2405.17956), and dpo; `alone` trains the host
without the rewards, to compare with.  It starts from the supervised model of a
quickstart in W.  Rewards are scored once, into the store.

Not as published: the rewards, which need no model here; AdamW in the place of
RMSprop; models this small say nothing about which method is better.

Append `,debug` for a run of seconds on a tiny random model.
"""

from ml_collections import config_dict

from mrpo_jax import configs


def get_config(arg="kto"):
  arg = configs.parse_arg(
    arg, run="kto", models=configs.MODELS, alone=False, debug=False
  )
  if arg.run not in ("kto", "dpo"):
    raise ValueError(f"unknown host {arg.run!r}; known: kto, dpo")
  c = config_dict.ConfigDict()
  c.seed = 0
  c.steps = 236  # of 16 pairs: two epochs
  c.batch = 16  # pairs in one optimizer step, over all hosts
  c.eval_every = 118
  c.data = dict(configs.HH)
  c.policy = dict(path=f"{arg.models}/sft-base")
  c.references = dict(names=("base",), base=dict(path="policy"))
  c.loss = dict(name=arg.run, beta=0.1)  # per nat
  c.optimizer = dict(peak_lr=1e-4, warmup=0.1, clip_norm=1.0)
  if not arg.alone:
    follow_rewards(c, delay=4 if arg.debug else 100)
  return configs.shrink(c) if arg.debug else c


def follow_rewards(c, delay):
  """The terms of HPO beside the host, and the rewards that they read."""
  c.data.rewards = dict(
    names=("readable", "long"),  # R, their weighted sum, is from 0 to 1
    readable=dict(
      reward="mrpo_jax.online.reading:readable",
      weight=0.5,  # the reward is from 0, hard to read, to 1
    ),
    long=dict(
      reward="mrpo_jax.online.words:length",
      options=dict(cap=50),  # words
      weight=0.01,  # so that 50 words and more give 0.5
    ),
  )
  c.loss.auxiliary = dict(
    name="hpo",
    weight=0.5,  # of the likelihood; as published
    lam=5.0,  # per unit of reward; as published
    delay=delay,  # steps; 100 as published
    value_weight=0.1,  # as published
    tau=0.7,  # unverified: the sources at hand do not give the paper's
    value_rate=10.0,  # times the policy's learning rate: V starts from nothing
  )
