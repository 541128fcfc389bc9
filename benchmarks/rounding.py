# SPDX-License-Identifier: Apache-2.0
r"""Are log-probabilities as near to exact ones as torch's?  A Markdown table.

  python -m benchmarks.rounding FOLDER --data=FILE --torch_python=PYTHON \
    [--pairs=20] [--max_prompt=256] [--max_response=256]

Both responses of the first pairs of the file, the same ids for all.  Exact is
torch in float64 throughout.  Ours are those of training (packed rows, the
chunked head) and those of `transformer.apply`; in float64, too, where only the
order of the operations differs from torch.  PYTHON has torch and transformers.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from mrpo_jax import hub
from mrpo_jax.data import encode, pack, source
from mrpo_jax.data.tokenizer import load_tokenizer
from mrpo_jax.models import packed, transformer
from mrpo_jax.rows import micro_batch


def pairs_of(given):
  """list of Encoded."""
  tokenizer = load_tokenizer(given.folder)
  limits = dict(max_prompt=given.max_prompt, max_response=given.max_response)
  found = encode.encode_all(tokenizer, source.load(given.data), **limits)
  return [one for one in found if not one.dropped][: given.pairs]


def alone(config, params, pairs):
  """logp_T of each response, of `transformer.apply` on its sequence alone."""

  @jax.jit
  def logp_T(params, tokens_1T):
    logits_TV = transformer.apply(config, params, tokens_1T)[0, :-1]
    logp_TV = jax.nn.log_softmax(logits_TV, axis=-1)
    return jnp.take_along_axis(logp_TV, tokens_1T[0, 1:, None], axis=-1)[:, 0]

  found = []
  for ids, prompt in sequences_of(pairs):
    tokens_1T = np.array([ids + [0] * (-len(ids) % 64)])  # few compilations
    found.append(logp_T(params, tokens_1T)[prompt - 1 : len(ids) - 1])
  return found


def trained(config, params, pairs):
  """logp_T of each response, as the train step and `mrpo score` have it."""
  length = 2 * max(map(pack.size, pairs))
  rows = pack.pack(pairs, length=length)

  @jax.jit
  def logp_RM(params, a):
    here = micro_batch(rows, a)
    return packed.token_figures(config, params, here, len(pairs))["logp"]

  A = len(rows.slots_RM)
  logp_ARM = np.stack([logp_RM(params, a) for a in range(A)])
  return [logp_ARM[rows.slots_RM == n] for n in range(2 * len(pairs))]


def sequences_of(pairs):
  """[(ids, tokens of the prompt)] of every response."""
  return [
    (one.prompt_ids + ids, len(one.prompt_ids))
    for one in pairs
    for ids in (one.chosen_ids, one.rejected_ids)
  ]


def torch_logps(given, pairs, precision):
  with tempfile.TemporaryDirectory() as folder:
    ids, to = (pathlib.Path(folder, name) for name in ("ids", "logps"))
    ids.write_text(json.dumps(sequences_of(pairs)))
    module = [given.torch_python, "-m", "benchmarks.peers.torch_logps"]
    subprocess.run([*module, given.folder, ids, to, precision], check=True)
    return json.loads(to.read_text())


def row(name, found, exact):
  """Cells: differences from the exact ones, in nats."""
  token_N, sum_N = [], []
  for one, other in zip(found, exact, strict=True):
    difference_T = np.asarray(one, np.float64) - np.asarray(other)
    token_N.append(np.abs(difference_T))
    sum_N.append(abs(difference_T.sum()))
  token_N = np.concatenate(token_N)
  figures = token_N.mean(), token_N.max(), np.mean(sum_N), np.max(sum_N)
  return " | ".join([name, *(f"{figure:.1e}" for figure in figures)])


def main():
  flags = argparse.ArgumentParser(description=__doc__)
  flags.add_argument("folder")
  flags.add_argument("--data", required=True)
  flags.add_argument("--torch_python", required=True)
  flags.add_argument("--pairs", type=int, default=20)
  flags.add_argument("--max_prompt", type=int, default=256)
  flags.add_argument("--max_response", type=int, default=256)
  given = flags.parse_args()
  jax.config.update("jax_enable_x64", True)
  pairs = pairs_of(given)
  exact = torch_logps(given, pairs, "float64-throughout")
  rows = [
    (f"torch {precision}", torch_logps(given, pairs, precision))
    for precision in ("float32", "float64")
  ]
  config, params = hub.load(given.folder, dtype="float32")
  for dtype in ("float32", "float64"):
    params = jax.tree.map(lambda x, to=dtype: x.astype(to), params)
    rows += [
      (f"here {dtype}, training", trained(config, params, pairs)),
      (f"here {dtype}, apply", alone(config, params, pairs)),
    ]
  count = sum(map(len, exact))
  print(f"{len(exact)} responses, {count} tokens, {config.family}\n")
  print("| | mean of a token | largest | mean of a response | largest |")
  print("|---|---|---|---|---|")
  for name, found in rows:
    print(f"| {row(name, found, exact)} |")


if __name__ == "__main__":
  main()
