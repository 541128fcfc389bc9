# SPDX-License-Identifier: Apache-2.0
r"""MRPO's "L <- M": Llama-2-7B-chat against itself and a Mistral-7B.

MRPO, arXiv:2405.16388, as its code sets it: LoRA of rank 8 on queries and
values, the base is the policy with the adapter off, the other reference in 4
bit.  On one device the weights are read as they were fetched:

  for M in meta-llama/Llama-2-7b-chat-hf teknium/OpenHermes-2.5-Mistral-7B; do
    hf download $M --local-dir $M
  done
  mrpo train --config=configs/mrpo_llama2_mistral.py --workdir=$W

Other than the code: bfloat16 for float16, int4 in groups of 32 for NF4, each
reference reads the text with its own tokenizer and template (the code feeds it
the policy's tokens), and the weights stand on their own references
(docs/guide/references.md).  Which part of UltraFeedback the paper drew is
unknown: this is all of it.

On four H100 (a copy of the models on each) a step takes 22.3 GiB of the 59 that
jax takes of a device and at least 0.1 s, so at most 79 pairs/s with pairs of
256 + 2 x 256 tokens: compiled, not run (`mrpo plan`, docs/guide/plan.md).

Append `:debug` for a minute on tiny models.
"""

from ml_collections import config_dict

from mrpo_jax import configs


def get_config(arg=""):
  arg = configs.parse_arg(arg, debug=False)
  c = config_dict.ConfigDict()
  c.seed = 0
  c.steps = 7_600  # of 8 pairs: one epoch
  c.batch = 8  # pairs: 2 on a device, accumulated 4 times
  c.eval_every = 500
  c.checkpoint_every = 500
  c.data = dict(
    train="HuggingFaceH4/ultrafeedback_binarized:train_prefs",
    eval="HuggingFaceH4/ultrafeedback_binarized:test_prefs",
    max_prompt=512,  # tokens; with a response the code's 1,024
    max_response=512,
    row_length=1792,
  )
  c.policy = dict(
    path="meta-llama/Llama-2-7b-chat-hf",
    dtype="bfloat16",
    adapter=dict(rank=8, alpha=16.0, targets=("query", "value"), dropout=0.0),
    remat="dots",
  )
  c.references = dict(
    names=("base", "mistral"),
    base=dict(path="policy", mode="online"),
    mistral=dict(
      path="teknium/OpenHermes-2.5-Mistral-7B",
      dtype="bfloat16",
      quantize="int4",
      mode="online",
    ),
  )
  c.loss = dict(
    name="mrpo",
    beta=0.1,  # per nat
    mixture="harmonic",
    clip=dict(epsilon_max=0.1, adaptive=True),
    weights="adaptive",  # reads the label, in evaluation too
  )
  c.optimizer = dict(peak_lr=1e-5, warmup=0.0, clip_norm=1.0)
  if not arg.debug:
    return c
  c = configs.shrink(c)
  c.references.mistral.quantize = "int8"  # tiny matrices have no groups of 32
  return c
