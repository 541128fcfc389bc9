# SPDX-License-Identifier: Apache-2.0
r"""What integers do to log-probabilities: a Markdown table, a row per model.

  python benchmarks/quantization_error.py [FOLDER ...] \
    [--data=FILE] [--pairs=32] [--groups=32,128]

With --data, response tokens are those of its preference pairs under the
model's own tokenizer; without, random ids after a random prompt, which say
little about a trained model.  bytes: of all weights, as a device holds them.
Without folders: a random bfloat16 model of each family, of about 4 M weights.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from mrpo_jax import hub
from mrpo_jax.data import encode, source
from mrpo_jax.data.tokenizer import load_tokenizer
from mrpo_jax.models import parameters, transformer
from mrpo_jax.models.families import FAMILIES
from mrpo_jax.models.families.family import KEYS
from mrpo_jax.models.families.read import config_from_hf
from mrpo_jax.models.weights import quantize

VOCABULARY = 2048
SPREAD = 2.5  # standard deviation of logits
SIZES = dict(  # fields of ModelConfig
  vocab_size=VOCABULARY,
  width=256,
  layers=4,
  heads=4,
  kv_heads=4,
  mlp_width=768,
)
ALSO = dict(
  granite=dict(attention_multiplier=1 / 64),
  qwen3_moe=dict(num_experts=16, num_experts_per_tok=4),
)
LENGTH = 128  # tokens of a sequence, at most


def random_sequences(config, pairs):
  """[(ids, tokens of the prompt)]."""
  length = length_of(config) // 2
  ids_NT = np.random.default_rng(0).integers(
    0, config.vocab_size, (2 * pairs, length)
  )
  return [(ids.tolist(), length // 4) for ids in ids_NT]


def length_of(config):
  return min(LENGTH, config.max_positions)


def responses(config, folder, file, pairs):
  """[(ids, tokens of the prompt)] of both responses of each pair."""
  tokenizer = load_tokenizer(str(folder))
  rows = source.load(file)[:pairs]
  half = length_of(config) // 2
  found = encode.encode_all(tokenizer, rows, max_prompt=half, max_response=half)
  return [
    (one.prompt_ids + ids, len(one.prompt_ids))
    for one in found
    if not one.dropped
    for ids in (one.chosen_ids, one.rejected_ids)
  ]


def token_logps(config, params, sequences):
  """log p of every response token, one after the other."""

  @jax.jit
  def logp_T(params, tokens_1T):
    logits_1TV = transformer.apply(config, params, tokens_1T)
    logp_TV = jax.nn.log_softmax(logits_1TV[0, :-1], axis=-1)
    return jnp.take_along_axis(logp_TV, tokens_1T[0, 1:, None], axis=-1)[:, 0]

  found = []
  for ids, prompt in sequences:
    tokens_1T = np.zeros((1, length_of(config)), np.int32)
    tokens_1T[0, : len(ids)] = ids
    # Causal: the padding on the right changes nothing.
    found.append(
      np.asarray(logp_T(params, tokens_1T))[prompt - 1 : len(ids) - 1]
    )
  return np.concatenate(found)


def size_of(params):
  """Bytes on a device, where two int4 share one."""
  return sum(
    array.size * (0.5 if array.dtype == jnp.int4 else array.dtype.itemsize)
    for array in jax.tree.leaves(params)
  )


def random_models():
  """(name, ModelConfig, params) of every family, all of one size."""
  for name, family in FAMILIES.items():
    keys = {**KEYS, **family.keys}
    values = {keys[field]: size for field, size in SIZES.items()}
    values = {k: v for k, v in values.items() if k not in family.only}
    if family.mlp_factor:
      values.pop(keys["mlp_width"])
    values |= {"model_type": name} | ALSO.get(name, {})
    config = config_from_hf(values)
    params = parameters.init(config, jax.random.key(0), jnp.bfloat16)
    tokens_1T = jax.random.randint(jax.random.key(1), (1, 64), 0, VOCABULARY)
    logits = transformer.apply(config, params, tokens_1T)
    # The final norm, so that the logits spread as those of a trained model.
    factor = SPREAD / jnp.std(logits)
    scale = (config.norm_shift + params["norm"]) * factor - config.norm_shift
    params["norm"] = scale.astype(jnp.bfloat16)
    yield "random", config, params


def rows_of(name, config, params, folder, data, pairs, groups):
  """Lines of the table: what each kind changes in this model."""
  sequences = (
    responses(config, folder, data, pairs)
    if data
    else random_sequences(config, pairs)
  )
  want = token_logps(config, params, sequences)
  before = size_of(params)
  dtype = params["norm"].dtype.name
  for group in (None, *groups):
    kind = "int4" if group else "int8"
    what = f"{kind}, groups of {group}" if group else kind
    start = f"| {name} | {config.family} | {what} |"
    try:
      small = quantize(params, parameters.table(config), kind, group=group)
    except ValueError as error:
      yield f"{start} {error} | | | |"
      continue
    gap = np.abs(token_logps(config, small, sequences) - want)
    share = size_of(small) / before
    yield (
      f"{start} {gap.mean():.4f} | {np.quantile(gap, 0.99):.3f} | "
      f"{share:.1%} of {dtype} | {len(want)} |"
    )


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("folders", nargs="*")
  parser.add_argument("--data", default="", help="file of preference pairs")
  parser.add_argument("--pairs", type=int, default=32)
  parser.add_argument("--groups", default="32,128", help="of int4")
  given = parser.parse_args()
  groups = [int(group) for group in given.groups.split(",")]
  print(
    "| model | family | weights | mean abs(delta log p), nats per token "
    "| 99 % | bytes | tokens |"
  )
  print("|---|---|---|---|---|---|---|")
  folders = ((f, pathlib.Path(f).name, *hub.load(f)) for f in given.folders)
  models = folders if given.folders else ((None, *m) for m in random_models())
  for folder, *model in models:
    for row in rows_of(*model, folder, given.data, given.pairs, groups):
      print(row, flush=True)


if __name__ == "__main__":
  main()
