# SPDX-License-Identifier: Apache-2.0
"""GGUF files against transformers' own conversion, with torch.

tests/golden/make_gguf.py made the files, and what torch makes of them.
"""

import functools
import hashlib
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import transformers

from mrpo_jax import hub
from mrpo_jax.hub.gguf import import_gguf
from mrpo_jax.models import transformer
from mrpo_jax.models.families.read import config_from_hf
from tests.material.folders import GOLDEN

NAMES = ("llama", "gemma3")


@pytest.fixture(params=NAMES)
def golden(request, tmp_path_factory):
  """(folder, what transformers found, its tokens and logits) of a file."""
  name = request.param
  folder = tmp_path_factory.mktemp(name) / "model"
  import_gguf(GOLDEN / f"gguf_{name}.gguf", folder, dtype="float32")
  text = (GOLDEN / "gguf.json").read_text(encoding="utf-8")
  return folder, json.loads(text)[name], np.load(GOLDEN / f"gguf_{name}.npz")


def test_every_tensor_is_that_of_transformers_to_the_bit(golden):
  folder, theirs, _ = golden
  ours = safetensors.numpy.load_file(folder / "model.safetensors")
  sums = {
    name: hashlib.sha256(tensor.tobytes()).hexdigest()
    for name, tensor in ours.items()
  }
  assert sums == theirs["tensors"]


def test_the_config_is_that_of_transformers(golden):
  folder, theirs, _ = golden
  values = json.loads((folder / "config.json").read_text())
  want = theirs["config"]
  # It takes float32 for the number that was meant.
  assert want["rms_norm_eps"] == float(np.float32(values["rms_norm_eps"]))
  want = want | {"rms_norm_eps": values["rms_norm_eps"]}
  # Which it leaves at the default of the class.
  want |= {"query_pre_attn_scalar": values.get("query_pre_attn_scalar", 256)}
  assert config_from_hf(want) == hub.read_config(folder)
  given = {"architectures", "dtype", "torch_dtype", "rope_theta", *want}
  assert values.keys() <= given | {"rope_local_base_freq"}


def test_the_logits_are_those_of_torch(golden):
  folder, theirs, numbers = golden
  config, params = hub.load(folder)
  if config.attention_scale is not None:  # see above
    values = json.loads((folder / "config.json").read_text())
    values["query_pre_attn_scalar"] = theirs["config"]["query_pre_attn_scalar"]
    config = config_from_hf(values)
  apply = jax.jit(functools.partial(transformer.apply, config))
  ours = apply(params, numbers["tokens"])
  gap = np.abs(ours - numbers["logits"]).max()
  assert gap <= 1e-5 * np.abs(numbers["logits"]).max()


def test_token_ids_are_those_of_transformers(golden):
  folder, theirs, _ = golden
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  for text, want in theirs["ids"].items():
    assert tokenizer(text).input_ids == want, text
