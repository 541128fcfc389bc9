# SPDX-License-Identifier: Apache-2.0
r"""MRPO against K references that are scored once, then left out of memory.

The first reference is the policy's start.  Name the others after the colon:
every one is a Hugging Face folder with its own tokenizer and chat template.

  C=configs/many_references.py:policy=$M/start,others=$M/a+$M/b+$M/c
  mrpo score --config=$C --workdir=$W --store=$S     # once per reference
  mrpo train --config=$C --workdir=$W --store=$S

A step then costs the same for any K.  Two references of other families differ
in how far their log-probabilities spread, and the one that spreads most would
decide alone; `scale="zscore"` gives all of them the spread of the first
(docs/guide/references.md).  Append `,debug` for a minute on tiny models.
"""

from ml_collections import config_dict

from mrpo_jax import configs


def get_config(arg=""):
  arg = configs.parse_arg(arg, policy="", others="second+third", debug=False)
  paths = arg.others.split("+")
  names = tuple(path.rstrip("/").rpartition("/")[2] for path in paths)
  c = config_dict.ConfigDict()
  c.seed = 0
  c.steps = 30  # of 64 pairs: an epoch of the embedded data
  c.batch = 64  # pairs in one optimizer step, over all hosts
  c.eval_every = 15
  c.checkpoint_every = 15
  c.data = dict(
    train=str(configs.HH_HARMLESS / "train.jsonl.gz"),
    eval=str(configs.HH_HARMLESS / "eval.jsonl.gz"),
    max_prompt=256,  # tokens under the tightest of all tokenizers
    max_response=256,
    row_length=1024,
  )
  c.policy = dict(path=arg.policy)
  c.references = dict(
    names=("start", *names),
    start=dict(path="policy", mode="scored"),
    **{
      name: dict(path=path, mode="scored")
      for name, path in zip(names, paths, strict=True)
    },
  )
  c.loss = dict(
    name="mrpo",
    beta=0.1,
    mixture="harmonic",  # as published
    scale="zscore",  # not as published: sums of other tokenizers' tokens
    clip=dict(epsilon_max=0.1, adaptive=True),  # as published
    weights="uniform",  # reads no label, so evaluation means the same
  )
  c.optimizer = dict(peak_lr=1e-5, warmup=0.1, clip_norm=1.0)
  return configs.shrink(c) if arg.debug else c
