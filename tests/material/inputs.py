# SPDX-License-Identifier: Apache-2.0
"""Pairs, and models with tokenizers, in folders as runs read them."""

import functools
import gzip
import json

import jax

from mrpo_jax import configs, hub
from mrpo_jax.data import formats
from mrpo_jax.data.tokenizer import load_tokenizer, train_tokenizer
from mrpo_jax.models import parameters
from mrpo_jax.models.config import ModelConfig

SHIPPED = configs.TOKENIZERS / "unigram-512"
# Tokenizer, shipped or of that size; shape of the model.
MODELS = {
  "base": (512, dict(width=32, tied=True)),
  "second": (SHIPPED, dict(width=48, tied=True)),
  "third": (350, dict(width=24, layers=2, kv_heads=2)),
}


def write_pairs(path, count=40, skip=0):
  """So many human pairs of the embedded data."""
  with gzip.open(configs.HH_HARMLESS / "eval.jsonl.gz", "rb") as file:
    path.write_bytes(b"".join(file.readlines()[skip : skip + count]))


def write_labelled(path, pairs):
  """The responses of pairs as rows with a label, the good ones first."""
  rows = [
    {"prompt": pair.prompt, "completion": response, "label": label}
    for label in (True, False)
    for pair in pairs
    for response in [pair.chosen if label else pair.rejected]
  ]
  path.write_text("\n".join(map(json.dumps, rows)))


def save(folder, config, params, tokenizer):
  # From the host: slices of device arrays are compiled, one by one.
  hub.save(folder, config, jax.device_get(params), tokenizer=tokenizer)


def random_params(config, seed):
  init = functools.partial(parameters.init, config)
  return jax.jit(init)(jax.random.key(seed))


def make_inputs(folder):
  """Forty human pairs, eight of them, and models of different shapes."""
  write_pairs(folder / "pairs.jsonl")
  write_pairs(folder / "few.jsonl", 8)
  pairs = list(formats.read(folder / "pairs.jsonl"))
  write_labelled(folder / "labelled.jsonl", pairs)
  texts = [text for pair in pairs for text in formats.texts(pair)]
  for name, (kind, shape) in MODELS.items():
    tokenizer = (
      load_tokenizer(kind) if kind == SHIPPED else train_tokenizer(texts, kind)
    )
    config = ModelConfig(
      vocab_size=len(tokenizer),
      bos_id=tokenizer.bos_token_id,
      eos_id=tokenizer.eos_token_id,
      head_dim=shape["width"] // 2,
      **dict(layers=1, heads=2, kv_heads=1, mlp_width=48) | shape,
    )
    params = random_params(config, seed=config.width)
    save(folder / name, config, params, tokenizer)
