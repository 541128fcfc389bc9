# SPDX-License-Identifier: Apache-2.0
r"""APO: accelerated preference optimization on fresh pairs in each round.

  mrpo train --config=configs/apo_rounds.py:models=$W/models --workdir=/tmp/apo

Three rounds.  In each the policy answers prompts five times, a reward names
the best and the worst answer, and DPO trains on those pairs; then the next
round's policy and reference are the outcome, extrapolated by alpha beyond the
round before, and the optimizer starts anew.  Source: APO, arXiv:2410.06293;
what it leaves open is decided so: the extrapolated policy samples.

  alpha=0         iterative DPO, and SamPO's restarts with loss=sampo
  keep=1          the reference stays the start, as Online-RLHF has it

Append `:debug` for a run of seconds on a tiny random model.
"""

from ml_collections import config_dict

from mrpo_jax import configs

ROUNDS = 3


def get_config(arg=""):
  arg = configs.parse_arg(
    arg, models=configs.MODELS, alpha=0.3, loss="dpo", keep=0, debug=False
  )
  c = config_dict.ConfigDict()
  c.seed = 0
  c.steps = 60 * ROUNDS
  c.batch = 16  # pairs in one optimizer step, over all hosts
  c.checkpoint_every = 60
  c.data = dict(
    max_prompt=96,  # tokens; longer prompts are left out
    row_length=384,  # tokens of a packed row: two pairs
  )
  c.online = dict(
    configs.WORDS,
    rounds=ROUNDS,
    samples=5,
  )
  c.policy = dict(path=f"{arg.models}/sft-base")
  c.references = dict(names=("base",), base=dict(path="policy"))
  if not arg.keep:
    c.rounds = dict(count=ROUNDS, alpha=arg.alpha)
  c.loss = dict(name=arg.loss, beta=0.05)
  c.optimizer = dict(peak_lr=1e-4, warmup=0.05, clip_norm=1.0)
  if arg.debug:
    c = configs.shrink(c)
    if not arg.keep:
      c.rounds.count = c.online.rounds
  return c
