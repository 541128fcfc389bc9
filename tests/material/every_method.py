# SPDX-License-Identifier: Apache-2.0
"""A config for any loss by its name, as small as the quickstart's debug run.

  mrpo train --config=tests/material/every_method.py:aot,inputs=DIR --workdir=W

DIR holds the Hugging Face folders `base` and `second`, and `pairs.jsonl`.
"""

import gzip

import jax

from configs import common, quickstart
from mrpo_jax import hub
from mrpo_jax.data import formats
from mrpo_jax.data.tokenizer import train_tokenizer
from mrpo_jax.models import parameters
from mrpo_jax.models.config import ModelConfig

# What a loss needs in a config beside its name.
LOSS = {
  "combine": dict(losses=("hinge", "nca"), loss_weights=(0.5, 0.5)),
  "alpha_dpo": dict(running=0.9),
}
SEVERAL = ("mrpo", "multi_dpo", "mnpo")
NONE = ("nll", "simpo", "alpha_po", "cpo", "slic", "orpo", "tpo")


def get_config(arg=""):
  arg = common.parse_arg(arg, run="dpo", inputs="")
  c = quickstart.get_config("dpo,debug")
  c.steps = 5
  c.eval_every = 0
  c.checkpoint_every = 0
  c.data.train = f"{arg.inputs}/pairs.jsonl"
  c.data.eval = ""
  c.data.max_prompt = c.data.max_response = 32
  c.data.row_length = 128
  c.policy = dict(path=f"{arg.inputs}/base")
  c.loss = dict(name=arg.run, **LOSS.get(arg.run, {}))
  if arg.run in NONE:
    c.references = dict(names=())
  elif arg.run in SEVERAL:
    second = dict(path=f"{arg.inputs}/second")
    c.references.names = ("base", "second")
    c.references.second = second
  return c


def make_inputs(folder):
  """Forty human pairs, and two models of different shape and tokenizer."""
  with gzip.open(common.HH_HARMLESS / "eval.jsonl.gz", "rb") as file:
    rows = [next(file) for _ in range(40)]
  (folder / "pairs.jsonl").write_bytes(b"".join(rows))
  pairs = list(formats.read(folder / "pairs.jsonl"))
  texts = [text for pair in pairs for text in formats.texts(pair)]
  for name, kind, width in (("base", "bpe", 32), ("second", "unigram", 48)):
    tokenizer = train_tokenizer(texts, kind=kind, vocab_size=512)
    config = ModelConfig(
      vocab_size=len(tokenizer),
      width=width,
      layers=1,
      heads=2,
      kv_heads=1,
      head_dim=width // 2,
      mlp_width=48,
      tied=True,
      bos_id=tokenizer.bos_token_id,
      eos_id=tokenizer.eos_token_id,
    )
    params = parameters.init(config, jax.random.key(width))
    hub.save(folder / name, config, params, tokenizer=tokenizer)
