# SPDX-License-Identifier: Apache-2.0
"""A GGUF file's model, written as a Hugging Face folder."""

import collections
import importlib.metadata
import json
import logging
import math

import huggingface_hub
import jax.numpy as jnp

from mrpo_jax import __version__, files
from mrpo_jax.errors import InputError
from mrpo_jax.hub.folder import GENERATION, floating
from mrpo_jax.hub.gguf.architectures import architecture_of, config_values
from mrpo_jax.hub.gguf.keys import Keys
from mrpo_jax.hub.gguf.read import read
from mrpo_jax.hub.gguf.tensors import is_tied, tensor_plans
from mrpo_jax.hub.gguf.tokenizer import tokenizer_of
from mrpo_jax.hub.write import write_shards
from mrpo_jax.models.families import FAMILIES
from mrpo_jax.models.families.read import config_from_hf
from mrpo_jax.progress import Progress, stage

logger = logging.getLogger(__name__)

PROVENANCE = "gguf.json"
MB = 10**6
CARD = """\
---
{{ card_data }}
---

# {{ name }}

Written by mrpo_jax from a GGUF file: its weights are what that file's integers
stand for, and not those that the file was made from.

| | |
|---|---|
| file | {{ file }} |
| SHA-256 | {{ sha256 }} |
| architecture | {{ architecture }} |
| stored as | {{ kinds }} |
| written as | {{ dtype }} |
"""


def convert(path, folder, *, dtype):
  """See `import_gguf`."""
  dtype = floating(dtype)
  source = read(path)
  stamps = _stamps(source)
  try:
    keys = Keys(source.metadata)
    about = {
      name: keys.general("text", f"general.{name}", None)
      for name in ("name", "license")
    }
    values, plans = _described(source, keys, dtype)
    tokenizer, ends = tokenizer_of(keys, values["vocab_size"])
  except InputError as error:
    text = str(error).removeprefix(f"{path}: ")
    raise type(error)(f"{path}: {text}") from None
  with files.new_folder(folder) as partial:
    provenance = _provenance(source, keys, about["name"], dtype)
    files.write_json(partial / "config.json", values, sort_keys=False)
    generation = _generation(values, ends)
    files.write_json(partial / GENERATION, generation, sort_keys=False)
    files.write_json(partial / PROVENANCE, provenance, sort_keys=False)
    with files.of_rust(partial):
      tokenizer.save_pretrained(partial)
    (partial / "README.md").write_text(
      _card(about["license"], provenance), encoding="utf-8"
    )
    _write_weights(partial, plans, dtype)
    if _stamps(source) != stamps:
      raise InputError(f"{path}: changed while it was read; import it again")
  logger.info(
    f"{folder}: {values['model_type']} with {len(plans)} tensors in "
    f"{dtype.name}, {len(tokenizer)} tokens; from {source.paths[0].name}"
  )


def _stamps(source):
  """What changes with the content of the files."""
  found = [path.stat() for path in source.paths]
  return [(one.st_ino, one.st_size, one.st_mtime_ns) for one in found]


def _described(source, keys, dtype):
  """(the config.json, {name: TensorPlan}), which fit each other."""
  tied = is_tied(source.tensors)
  values = config_values(keys, source.tensors, tied=tied)
  architectures = list(FAMILIES[values["model_type"]].architectures[:1])
  values = {
    "architectures": architectures,
    **values,
    "dtype": dtype.name,
    "torch_dtype": dtype.name,  # of transformers 4
  }
  config = config_from_hf(values)
  return values, tensor_plans(
    source.tensors, config, architecture_of(keys), source.paths[0]
  )


def _generation(values, ends):
  names = ("bos_token_id", "eos_token_id", "pad_token_id")
  found = {name: values[name] for name in names}
  if len(ends) > 1:
    found["eos_token_id"] = ends
  return found


def _provenance(source, keys, name, dtype):
  """The content of gguf.json: which bytes the folder comes from."""
  size = sum(path.stat().st_size for path in source.paths)
  with stage(f"reading {size / MB:,.0f} MB for their SHA-256"):
    sums = {path.name: files.sha256_of(path) for path in source.paths}
  kinds = collections.Counter(one.kind.name for one in source.tensors.values())
  return {
    "files": sums,
    "bytes": size,
    "architecture": keys.architecture,
    "name": name,
    "tensors": dict(kinds.most_common()),
    "dtype": dtype.name,
    "mrpo_jax": __version__,
    "gguf": importlib.metadata.version("gguf"),
  }


def _card(license, provenance):
  card = huggingface_hub.ModelCard.from_template(
    huggingface_hub.ModelCardData(
      license=license,
      library_name="transformers",
      tags=["mrpo_jax", "gguf"],
    ),
    template_str=CARD,
    name=json.dumps(provenance["name"] or provenance["architecture"])[1:-1],
    file=", ".join(provenance["files"]),
    sha256=", ".join(provenance["files"].values()),
    architecture=provenance["architecture"],
    kinds=", ".join(f"{n} x {k}" for k, n in provenance["tensors"].items()),
    dtype=provenance["dtype"],
  )
  return f"{card}\n"


def _write_weights(folder, plans, dtype):
  """The shards of the weights, one tensor dequantised after the other."""
  size = jnp.dtype(dtype).itemsize
  sizes = {name: math.prod(plan.shape) * size for name, plan in plans.items()}
  total = math.ceil(sum(sizes.values()) / MB)
  written = said = 0
  with Progress("import", total, "MB") as bar:

    def tensor(name):
      nonlocal written, said
      array = plans[name].read(dtype)
      written += sizes[name]
      done = math.ceil(written / MB) - said
      said += done
      speed = f"{bar.per_second(written) / MB:,.0f} MB/s"
      bar.update(done, [speed])
      return array

    write_shards(folder, sizes, tensor)
