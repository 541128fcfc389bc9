# SPDX-License-Identifier: Apache-2.0
"""Makes the tiny Llama folders and what torch computes with them.

    pip install torch transformers safetensors numpy
    python tests/golden/make_llama.py          # writes llama_* beside this file
    python tests/golden/make_llama.py --check  # torch loads what we save

Each folder is a random model; llama_<name>.npz holds tokens and the float32
logits of torch for whole, left-padded and right-padded sequences; llama.json
the versions and the date.  --check needs jax, flax and mrpo_jax as well.
"""

import argparse
import datetime
import json
import pathlib
import platform
import shutil
import tempfile

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
MODELS = dict(
  gqa_tied=dict(
    vocab_size=96,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    tie_word_embeddings=True,
  ),
  # Nothing divides by 8, and the heads are not as wide together as the model.
  mha_odd=dict(
    vocab_size=67,
    hidden_size=21,
    num_hidden_layers=3,
    num_attention_heads=3,
    head_dim=10,
    intermediate_size=37,
    rms_norm_eps=1e-5,
  ),
  theta=dict(
    vocab_size=80,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=1,
    intermediate_size=40,
    max_position_embeddings=128,
    rope_parameters=dict(rope_type="default", rope_theta=500000.0),
  ),
  bf16=dict(
    vocab_size=96,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    eos_token_id=[3, 5],
  ),
)
SEQUENCES, LENGTH = 3, 12
LENGTHS = (12, 9, 5)  # of the padded sequences


def random_model(name, settings):
  """Weights far from their usual start, so that every part shows in logits."""
  torch.manual_seed(len(name))
  config = transformers.LlamaConfig(**settings)
  model = transformers.LlamaForCausalLM(config).eval()
  with torch.no_grad():
    for key, weight in model.named_parameters():
      if "norm" in key:
        weight.uniform_(0.5, 1.5)
      else:
        weight.normal_(0.0, 1.0 if "embed" in key else weight.shape[1] ** -0.5)
  return model.to(torch.bfloat16 if name == "bf16" else torch.float32)


def logits(model, tokens, mask):
  """Float32 logits; positions count the real tokens."""
  positions = (mask.cumsum(axis=1) - 1).clip(min=0)
  with torch.no_grad():
    out = model(
      input_ids=torch.tensor(tokens),
      attention_mask=torch.tensor(mask),
      position_ids=torch.tensor(positions),
    )
  return out.logits.numpy()


def masks():
  place = np.arange(LENGTH)[None]
  lengths = np.array(LENGTHS)[:, None]
  return dict(
    whole=np.ones((SEQUENCES, LENGTH), np.int64),
    right=(place < lengths).astype(np.int64),
    left=(place >= LENGTH - lengths).astype(np.int64),
  )


def read(folder):
  return transformers.AutoModelForCausalLM.from_pretrained(
    folder,
    dtype=torch.float32,
    attn_implementation="eager",
    output_loading_info=True,
  )


def make():
  for name, settings in MODELS.items():
    folder = HERE / f"llama_{name}"
    shutil.rmtree(folder, ignore_errors=True)
    random_model(name, settings).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    model, _ = read(folder)
    generator = np.random.default_rng(len(name))
    tokens = generator.integers(
      0, settings["vocab_size"], (SEQUENCES, LENGTH), dtype=np.int64
    )
    arrays = dict(tokens=tokens)
    for kind, mask in masks().items():
      arrays[f"{kind}_mask"] = mask
      arrays[f"{kind}_logits"] = logits(model, tokens, mask)
    np.savez_compressed(HERE / f"llama_{name}.npz", **arrays)
  made = dict(
    script="tests/golden/make_llama.py",
    date=datetime.date.today().isoformat(),
    python=platform.python_version(),
    torch=torch.__version__,
    transformers=transformers.__version__,
    numpy=np.__version__,
  )
  (HERE / "llama.json").write_text(json.dumps(made, indent=2) + "\n")


def check():
  """Every golden model, through our load and save, back into torch."""
  from mrpo_jax import hub

  for name in MODELS:
    config, params = hub.load(HERE / f"llama_{name}")
    golden = np.load(HERE / f"llama_{name}.npz")
    for limit in (5 * 10**9, 20_000):
      hub.SHARD_BYTES = limit
      with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / "model"
        hub.save(folder, config, params)
        model, info = read(folder)
        files = len(list(folder.glob("*.safetensors")))
      ours = logits(model, golden["tokens"], golden["whole_mask"])
      gap = np.abs(ours - golden["whole_logits"]).max()
      print(f"{name}: {files} file(s), logits off by {gap:.1e}, {info}")
      assert gap == 0 and not any(info.values())


if __name__ == "__main__":
  parser = argparse.ArgumentParser()
  parser.add_argument("--check", action="store_true")
  check() if parser.parse_args().check else make()
