# SPDX-License-Identifier: Apache-2.0
r"""Online DPO: pairs of the policy's own responses, labelled by a reward.

  mrpo train --config=configs/online_dpo.py:models=$W/models \
    --workdir=/tmp/online

Every step is a round: the policy answers 16 prompts twice, the reward says
which answer is better, and DPO trains on those pairs.  The reward counts words
(D2PO's word collector); any other is a flag away:
`--config.online.reward=module:name`, `command:WORDS` or the folder of a reward
model.  The policy is the supervised model of a quickstart in W, or any other:
`--config.policy.path=FOLDER`.

Further references join as in any other config; `references=2` is MRPO against
the quickstart's two models.

Append `:debug` for a run of seconds on a tiny random model.
"""

from ml_collections import config_dict

from mrpo_jax import configs


def get_config(arg=""):
  arg = configs.parse_arg(arg, models=configs.MODELS, references=1, debug=False)
  c = config_dict.ConfigDict()
  c.seed = 0
  c.steps = 200
  c.batch = 16  # pairs in one optimizer step, over all hosts
  c.log_every = 1
  c.checkpoint_every = 50
  c.data = dict(
    max_prompt=96,  # tokens; longer prompts are left out
    row_length=384,  # tokens of a packed row: two pairs
  )
  c.online = dict(
    configs.WORDS,
    rounds=200,  # one step each
    samples=2,
  )
  c.policy = dict(path=f"{arg.models}/sft-base")
  c.references = dict(
    names=("base", "second")[: arg.references],
    base=dict(path="policy"),
    second=dict(path=f"{arg.models}/sft-second"),
  )
  c.loss = dict(name="dpo" if arg.references == 1 else "mrpo", beta=0.05)
  c.optimizer = dict(peak_lr=1e-4, warmup=0.05, clip_norm=1.0)
  return configs.shrink(c) if arg.debug else c
