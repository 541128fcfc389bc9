# SPDX-License-Identifier: Apache-2.0
"""Material that the programs of a comparison share: models, pairs, the work.

Llama shapes with random weights, as Hugging Face folders; pairs of the
embedded human preferences, as JSON lines that everyone reads.
"""

import json
import os
import pathlib
import random

import jax

from configs import quickstart
from mrpo_jax import configs, files, hub
from mrpo_jax.data import encode, formats
from mrpo_jax.data.tokenizer import load_tokenizer, train_tokenizer
from mrpo_jax.hub import peft
from mrpo_jax.models import lora, parameters
from mrpo_jax.models.config import ModelConfig

# transformers serves as a tokenizer here and need not ask for torch.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
LONGEST = 512  # tokens of prompt and one response: none is cut anywhere
SHAPES = {
  "tiny": dict(
    width=32,
    layers=2,
    heads=2,
    kv_heads=2,
    head_dim=16,
    mlp_width=64,
    vocab_size=512,
  ),
  "A": dict(
    width=256,
    layers=6,
    heads=4,
    kv_heads=4,
    head_dim=64,
    mlp_width=688,
    vocab_size=16384,
  ),
  "B": dict(
    width=512,
    layers=8,
    heads=8,
    kv_heads=8,
    head_dim=64,
    mlp_width=1376,
    vocab_size=32768,
  ),
  # The sizes of Qwen 2.5, for accelerators; the head is untied here.
  "0.5B": dict(
    width=896,
    layers=24,
    heads=14,
    kv_heads=2,
    head_dim=64,
    mlp_width=4864,
    vocab_size=151936,
  ),
  "1.5B": dict(
    width=1536,
    layers=28,
    heads=12,
    kv_heads=2,
    head_dim=128,
    mlp_width=8960,
    vocab_size=151936,
  ),
}
_BASE = quickstart.SHAPES["base"]
SHAPES["quickstart"] = dict(
  {k: v for k, v in _BASE.items() if k != "tokenizer"},
  head_dim=_BASE["width"] // _BASE["heads"],
)
LARGEST_VOCABULARY = 32768  # that the embedded text can fill


def prepare(
  workdir,
  shape,
  *,
  rounds,
  steps,
  batch,
  references=1,
  dtype="float32",
  lr=1e-6,
  row_length=2 * LONGEST,
  model="",
  rank=0,
):
  """The work of a comparison, in files; returns the path of job.json.

  It names the folder `model`, the folders `references` (the model, and weights
  of other seeds), the folder `adapter` (a LoRA that changes nothing yet, where
  it has a `rank`), the files `pairs` and `ids` (of prompt, chosen and rejected
  response, a line per pair), and for each of the `rounds` the pairs of its
  steps, by their place in the files.
  """
  workdir = pathlib.Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  pairs = list(formats.read(configs.HH_HARMLESS / "train.jsonl.gz"))
  if model:
    folders, tokenizer = [str(model)] * references, load_tokenizer(model)
  else:
    folders, tokenizer = random_models(workdir, shape, dtype, references, pairs)
  limits = dict(max_prompt=LONGEST, max_response=LONGEST)
  encoded = encode.encode_all(tokenizer, pairs, **limits)
  kept = [one for one in zip(pairs, encoded, strict=True) if fits(one[1])]
  random.Random(0).shuffle(kept)
  count = rounds * steps * batch
  if count > len(kept):
    raise SystemExit(f"error: {count} pairs asked for, but {len(kept)} fit")
  texts, ids = workdir / "pairs.jsonl", workdir / "ids.jsonl"
  files.write_lines(texts, [vars(pair) for pair, _ in kept[:count]])
  files.write_lines(
    ids,
    [[e.prompt_ids, e.chosen_ids, e.rejected_ids] for _, e in kept[:count]],
  )
  places = iter(range(count))
  job = {
    "model": folders[0],
    "references": folders,
    "adapter": new_adapter(workdir, folders[0], rank) if rank else "",
    "pairs": str(texts.resolve()),
    "ids": str(ids.resolve()),
    "rounds": [
      [[next(places) for _ in range(batch)] for _ in range(steps)]
      for _ in range(rounds)
    ],
    "batch": batch,
    "longest": LONGEST,
    "row_length": row_length,
    "dtype": dtype,
    "lr": lr,
    "beta": 0.1,
  }
  path = workdir / "job.json"
  path.write_text(json.dumps(job))
  return path


def random_models(workdir, shape, dtype, count, pairs):
  """(folders, tokenizer) of models that differ in their seed, kept there."""
  config = ModelConfig(**SHAPES[shape])
  tokenizer = train_tokenizer(
    (text for pair in pairs for text in formats.texts(pair)),
    vocab_size=min(config.vocab_size, LARGEST_VOCABULARY),
  )
  folders = []
  for seed in range(count):
    folder = workdir / f"{shape}-{dtype}-{seed}"
    if not folder.exists():
      params = parameters.init(config, jax.random.key(seed), dtype)
      hub.save(folder, config, params, tokenizer=tokenizer)
    folders.append(str(folder.resolve()))
  return folders, tokenizer


def new_adapter(workdir, model, rank):
  """The folder of a LoRA at all matrices of a model, as PEFT starts one."""
  folder = workdir / f"adapter-{rank}"
  if not folder.exists():
    config = hub.read_config(model)
    adapter = lora.Adapter(rank=rank, alpha=2.0 * rank)
    table = lora.adapter_table(parameters.table(config), adapter)
    arrays = lora.init_adapters(table, jax.random.key(0))
    peft.save(folder, config, adapter, arrays, base=str(model))
  return str(folder.resolve())


def fits(one):
  """Do prompt and either response of Encoded take at most LONGEST tokens?"""
  longer = max(len(one.chosen_ids), len(one.rejected_ids))
  return not one.dropped and len(one.prompt_ids) + longer <= LONGEST


def settings_of(job, references, mode="online"):
  """The config of `mrpo train` that does a job, as a nested dict.

  The first reference is the policy's start; K of them are averaged, which
  other programs can do, too.
  """
  names = [f"r{k}" for k in range(references)]
  folders = ["policy", *job["references"][1:references]]
  adapter = {"adapter": {"path": job["adapter"]}} if job["adapter"] else {}
  return {
    "seed": 0,
    "steps": sum(map(len, job["rounds"])),
    "batch": job["batch"],
    "data": {
      "train": job["pairs"],
      "max_prompt": job["longest"],
      "max_response": job["longest"],
      "row_length": job["row_length"],
    },
    "policy": {"path": job["model"], "dtype": job["dtype"], **adapter},
    "references": {
      "names": names,
      **{
        name: {"path": folder, "mode": mode, "dtype": job["dtype"]}
        for name, folder in zip(names, folders, strict=True)
      },
    },
    "loss": {
      "name": "dpo",
      "beta": job["beta"],
      "mixture": "geometric",
      "weights": "uniform",
    },
    # The same learning rate throughout.
    "optimizer": {"peak_lr": job["lr"], "warmup": 0.0, "end_lr_share": 1.0},
  }
