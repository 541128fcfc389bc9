# SPDX-License-Identifier: Apache-2.0
"""Makes what torch's sequence classifiers say of tokens, for every family.

    pip install torch transformers numpy
    python tests/golden/make_rewards.py           # writes rewards.npz beside it
    python tests/golden/make_rewards.py --check   # torch loads what we save

The decoders are those of make_families.py; their scalar head is `score(D)`.
rewards.npz holds, per folder, rewards of whole sequences: of the prompt with
one response, and with the other.  --check needs jax and mrpo_jax as well.
"""

import argparse
import pathlib
import tempfile

import numpy as np

HERE = pathlib.Path(__file__).parent
NAMES = (
  *("llama_theta", "llama_gqa_tied", "mistral_window", "qwen2_window"),
  *("qwen3_tied", "gemma_mqa", "gemma2_caps", "gemma3_pattern", "phi3_partial"),
  *("olmo2_mha", "smollm3_interval", "stablelm_parallel", "gpt_neox_parallel"),
  *("gpt2_inner",),
)


def score(width):
  """score_1D, the scalar head of all of them."""
  return np.cos(np.arange(width, dtype=np.float32))[None]


def sequences(vocabulary):
  """(prompt, responses of 7, 1 and 12 tokens) of ids."""
  ids = np.arange(31) * 7 % (vocabulary - 3) + 3
  return ids[:11], (ids[11:18], ids[18:19], ids[19:])


def rewards(model):
  """Of the prompt with each response, by itself."""
  import torch  # not where tests import this file

  prompt, responses = sequences(model.config.vocab_size)
  found = []
  for response in responses:
    ids = torch.tensor(np.concatenate([prompt, response]))[None]
    with torch.no_grad():
      found.append(model(ids).logits.item())
  return np.array(found, np.float32)


def classifier(folder):
  import torch
  import transformers

  model = transformers.AutoModelForSequenceClassification.from_pretrained(
    folder, num_labels=1, attn_implementation="eager", dtype=torch.float32
  )
  return model.eval()


def with_score(folder):
  import torch

  model = classifier(folder)
  with torch.no_grad():
    model.score.weight.copy_(torch.tensor(score(model.score.in_features)))
  return model


def check():
  """torch loads what hub.save writes, and says the same."""
  from mrpo_jax import hub

  want = np.load(HERE / "rewards.npz")
  for name in NAMES:
    config, params = hub.load(HERE / name, head="scalar", dtype="float32")
    params["score"] = score(config.width)
    with tempfile.TemporaryDirectory() as folder:
      hub.save(f"{folder}/m", config, params)
      apart = np.abs(rewards(classifier(f"{folder}/m")) - want[name]).max()
    print(f"{name}: {apart:.1e} apart")
    assert apart < 1e-5


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--check", action="store_true")
  if parser.parse_args().check:
    check()
    return
  found = {name: rewards(with_score(HERE / name)) for name in NAMES}
  np.savez(HERE / "rewards.npz", **found)


if __name__ == "__main__":
  main()
