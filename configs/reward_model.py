# SPDX-License-Identifier: Apache-2.0
r"""A reward model of human preferences: a scalar head, by Bradley-Terry.

  mrpo train --config=configs/reward_model.py:models=$W/models \
    --workdir=/tmp/reward
  mrpo export --workdir=/tmp/reward --to=/tmp/reward/model

It starts from the supervised model of a quickstart in W, or any other:
`--config.policy.path=FOLDER`.  The export is a folder that transformers'
`AutoModelForSequenceClassification` loads.

Append `:debug` for a run of seconds on a tiny random model.
"""

from ml_collections import config_dict

from mrpo_jax import configs


def get_config(arg=""):
  arg = configs.parse_arg(arg, models=configs.MODELS, debug=False)
  c = config_dict.ConfigDict()
  c.seed = 0
  c.steps = 58  # of 32 pairs: an epoch
  c.batch = 32  # pairs in one optimizer step, over all hosts
  c.eval_every = 29
  c.data = dict(configs.HH)
  c.policy = dict(path=f"{arg.models}/sft-base", head="scalar")
  c.references = dict(names=())
  # Pairs leave open what is added to all rewards: the second term keeps it
  # near zero.
  c.loss = dict(name="bradley_terry", center=0.01)
  c.optimizer = dict(peak_lr=3e-4, warmup=0.1, clip_norm=1.0)
  return configs.shrink(c) if arg.debug else c
