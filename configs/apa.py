# SPDX-License-Identifier: Apache-2.0
r"""APA: advantage-induced policy alignment, on the policy's own responses.

  mrpo train --config=configs/apa.py:models=$W/models --workdir=/tmp/apa

Rounds of 128 prompts with a response each, as the paper has them, and two
passes over them in steps of 8: every token's log-ratio is regressed on its
advantage.  A value head beside the language model says what a response is
worth at each token.  Source: APA, arXiv:2306.02231; its rivals train on the
same rollouts: `loss=awr` and `loss=ppo`.

The reward counts words (D2PO's word collector); any other is a flag away.

Append `:debug` for a run of seconds on a tiny random model.
"""

from ml_collections import config_dict

from mrpo_jax import configs


def get_config(arg=""):
  arg = configs.parse_arg(arg, models=configs.MODELS, loss="apa", debug=False)
  c = config_dict.ConfigDict()
  c.seed = 0
  c.steps = 640
  c.batch = 8  # responses in one optimizer step, over all hosts
  c.checkpoint_every = 160
  c.data = dict(
    max_prompt=96,  # tokens; longer prompts are left out
    row_length=288,  # tokens of a packed row: two rollouts
  )
  c.online = dict(
    configs.WORDS,
    rounds=20,
    samples=1,
    passes=2,
    rollouts=dict(gamma=1.0, lam=0.95, kl_penalty=0.0, whiten=True),
  )
  c.policy = dict(path=f"{arg.models}/sft-base", head="tokens+value")
  c.references = dict(names=("base",), base=dict(path="policy"))
  c.loss = dict(name=arg.loss)
  c.optimizer = dict(peak_lr=1e-4, warmup=0.05, clip_norm=1.0)
  return configs.shrink(c) if arg.debug else c
