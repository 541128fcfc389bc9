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
from mrpo_jax.configs import HH_HARMLESS

MODELS = "/tmp/mrpo_quickstart/models"  # of launch/quickstart.sh by itself


def get_config(arg=""):
  arg = configs.parse_arg(arg, models=MODELS, debug=False)
  c = config_dict.ConfigDict()
  c.seed = 0
  c.steps = 58  # of 32 pairs: an epoch
  c.batch = 32  # pairs in one optimizer step, over all hosts
  c.eval_every = 29
  c.data = dict(
    train=str(HH_HARMLESS / "train.jsonl.gz"),
    eval=str(HH_HARMLESS / "eval.jsonl.gz"),
    max_prompt=96,  # tokens; keeps the prompt's end
    max_response=160,  # tokens; keeps the response's start
    row_length=512,  # tokens of a packed row: about three pairs
  )
  c.policy = dict(path=f"{arg.models}/sft-base", head="scalar")
  c.references = dict(names=())
  # Pairs leave open what is added to all rewards: the second term keeps it
  # near zero.
  c.loss = dict(name="bradley_terry", center=0.01)
  c.optimizer = dict(peak_lr=3e-4, warmup=0.1, clip_norm=1.0)
  return configs.shrink(c) if arg.debug else c
