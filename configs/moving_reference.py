# SPDX-License-Identifier: Apache-2.0
r"""DPO whose reference follows the policy: TR-DPO, APO's rounds, DAR's two.

  :soft    every 4 steps the reference moves 0.6 of the way to the policy
           (TR-DPO, arXiv:2404.09656; its alpha)
  :hard    every 16 steps it becomes the policy (TR-DPO; its tau; the paper
           finds fewer than 16 unstable)
  :rounds  3 rounds; each starts, policy and reference, from the last one's
           outcome and 0.3 times as far again (APO, arXiv:2410.06293)
  :dual    as :hard, in a geometric mixture with the start, which stays: a tenth
           of it (the reference of DAR, arXiv:2602.11523, whose own loss of
           drawn responses is `losses.dar`)

  mrpo train --config=configs/moving_reference.py:soft,policy=$M --workdir=$W

Where the reference stands is in the checkpoint.  Append `,debug` for a minute
on tiny models.
"""

from ml_collections import config_dict

from mrpo_jax import configs


def get_config(arg="soft"):
  arg = configs.parse_arg(arg, run="soft", policy="", debug=False)
  moves = {
    "soft": dict(reference_update=dict(every=4, rate=0.6)),
    "hard": dict(reference_update=dict(every=16, rate=1.0)),
    "rounds": dict(rounds=dict(count=3, alpha=0.3)),
    "dual": dict(reference_update=dict(every=16, rate=1.0)),
  }
  if arg.run not in moves:
    raise ValueError(f"unknown run {arg.run!r}; known: {', '.join(moves)}")
  c = config_dict.ConfigDict(moves[arg.run])
  c.seed = 0
  c.steps = 90  # of 64 pairs: three epochs of the embedded data
  c.batch = 64  # pairs in one optimizer step, over all hosts
  c.eval_every = 30  # at the end of each round, before the next one starts
  c.checkpoint_every = 30
  c.data = dict(
    train=str(configs.HH_HARMLESS / "train.jsonl.gz"),
    eval=str(configs.HH_HARMLESS / "eval.jsonl.gz"),
    max_prompt=256,  # tokens
    max_response=256,
    row_length=1024,
  )
  c.policy = dict(path=arg.policy)
  c.references = dict(
    names=("base",),
    base=dict(path="policy", mode="online"),  # what moves cannot be scored
  )
  c.loss = dict(name="dpo", beta=0.05)  # TR-DPO's
  if arg.run == "dual":
    c.references.names = ("base", "start")
    # Where the policy began; it stays, so it is scored once.
    c.references.start = dict(path="policy", mode="scored")
    c.loss.mixture = "geometric"
    c.loss.weights = (0.9, 0.1)  # DAR's alpha is the second
  c.optimizer = dict(peak_lr=1e-6, warmup=0.1, clip_norm=2.0)  # TR-DPO's
  if not arg.debug:
    return c
  c = configs.shrink(c)
  if arg.run == "dual":  # the policy's start here, too
    c.references.start = dict(path="policy", mode="scored")
  c.steps = 9
  return c
