# SPDX-License-Identifier: Apache-2.0
"""Makes small adapters with PEFT, and what torch computes with them.

    pip install torch transformers peft safetensors numpy
    python tests/golden/make_adapter.py          # writes adapter_* beside this
    python tests/golden/make_adapter.py --check  # PEFT loads what we save

Each is a LoRA with random weights on one of the models beside this file;
adapter.npz holds tokens and the float32 logits of torch with each of them,
adapter.json the versions and the date.  --check needs jax, flax, qwix and
mrpo_jax as well.
"""

import argparse
import datetime
import json
import pathlib
import platform
import shutil
import tempfile

import numpy as np
import peft
import torch
import transformers

HERE = pathlib.Path(__file__).parent
ALL = dict(r=2, lora_alpha=4, target_modules="all-linear")
ADAPTERS = dict(  # name -> its base model, and what it asks of PEFT
  plain=(
    "llama_gqa_tied",
    dict(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "o_proj"]),
  ),
  rslora=(
    "llama_gqa_tied",
    dict(r=3, lora_alpha=2, use_rslora=True, target_modules="all-linear"),
  ),
  # Modules that hold several of our leaves: one after the other, head by head,
  # and with the inputs first.
  phi3=("phi3_partial", ALL),
  gpt_neox=("gpt_neox_sequential", ALL),
  gpt2=("gpt2_inner", ALL | dict(target_modules=["c_attn", "c_fc"])),
  # Ranks and alphas of their own, for layers and for modules; the first
  # pattern that is the end of a module's whole name counts.
  patterns=(
    "llama_gqa_tied",
    dict(
      r=4,
      lora_alpha=8,
      target_modules="all-linear",
      rank_pattern={"layers.1.self_attn.o_proj": 2, "o_proj": 3, "up_proj": 5},
      alpha_pattern={
        "model.layers.0.self_attn.q_proj": 64,
        "self_attn.[qk]_proj": 6,
        r"layers\.1\.mlp\.(up|down)_proj": 1.5,
      },
    ),
  ),
  patterns_phi3=(
    "phi3_partial",
    ALL
    | dict(
      use_rslora=True,
      rank_pattern={"1.self_attn.qkv_proj": 3},
      alpha_pattern={"layers.0.mlp.gate_up_proj": 9, "down_proj": 1},
    ),
  ),
)


def base_model(base):
  return transformers.AutoModelForCausalLM.from_pretrained(
    HERE / base, dtype=torch.float32, attn_implementation="eager"
  ).eval()


def logits(model, tokens):
  with torch.no_grad():
    return model(input_ids=torch.tensor(tokens)).logits.numpy()


def make():
  generator = np.random.default_rng(0)
  tokens = generator.integers(0, 60, (3, 12), dtype=np.int64)
  arrays = dict(tokens=tokens)
  for name, (base, settings) in ADAPTERS.items():
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(base_model(base), config).eval()
    with torch.no_grad():
      for key, weight in model.named_parameters():
        if "lora_B" in key:
          weight.normal_(0.0, 0.1)
    folder = HERE / f"adapter_{name}"
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    file = folder / "adapter_config.json"
    values = json.loads(file.read_text())
    values["base_model_name_or_path"] = base  # not where it was made
    file.write_text(json.dumps(values, indent=2) + "\n")
    arrays[f"{name}_logits"] = logits(model, tokens)
  np.savez_compressed(HERE / "adapter.npz", **arrays)
  made = dict(
    script="tests/golden/make_adapter.py",
    date=datetime.date.today().isoformat(),
    python=platform.python_version(),
    torch=torch.__version__,
    transformers=transformers.__version__,
    peft=peft.__version__,
    numpy=np.__version__,
  )
  (HERE / "adapter.json").write_text(json.dumps(made, indent=2) + "\n")


def check():
  """Every golden adapter, through our load and save, back into PEFT."""
  from mrpo_jax import hub
  from mrpo_jax.hub.peft import load, save

  golden = np.load(HERE / "adapter.npz")
  for name, (base, _) in ADAPTERS.items():
    config = hub.read_config(HERE / base)
    adapter, arrays = load(HERE / f"adapter_{name}", config)
    with tempfile.TemporaryDirectory() as scratch:
      folder = pathlib.Path(scratch) / "adapter"
      save(folder, config, adapter, arrays, base=base)
      model = peft.PeftModel.from_pretrained(base_model(base), folder).eval()
      ours = logits(model, golden["tokens"])
    gap = np.abs(ours - golden[f"{name}_logits"]).max()
    print(f"{name}: logits off by {gap:.1e}")
    # A module of several of our leaves gets blocks, which sum in another order.
    assert gap <= 1e-6 * np.abs(golden[f"{name}_logits"]).max()


if __name__ == "__main__":
  parser = argparse.ArgumentParser()
  parser.add_argument("--check", action="store_true")
  check() if parser.parse_args().check else make()
