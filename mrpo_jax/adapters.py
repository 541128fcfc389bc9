# SPDX-License-Identifier: Apache-2.0
"""Adapters in and out: folders as PEFT lays them out.

A folder holds adapter_config.json and adapter_model.safetensors.  Pickled
weights are never opened.  What a config asks for beyond plain LoRA is refused
by name: a wrong number is worse than none.
"""

import hashlib
import json
import math
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from mrpo_jax import hub
from mrpo_jax.errors import InputError
from mrpo_jax.models import leaves

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# Keys of PEFT's config that do not change what a stored adapter computes.  Any
# other one is refused unless it is null, false, empty or "none".
HARMLESS = set(
  "peft_type task_type auto_mapping base_model_name_or_path revision "
  "peft_version inference_mode r lora_alpha lora_dropout use_rslora "
  "target_modules exclude_modules fan_in_fan_out init_lora_weights "
  "megatron_core loftq_config eva_config qalora_group_size "
  "ensure_weight_tying".split()
)
# Initialisations that change the base weights, too.
CHANGED_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")


def load(path, table):
  """Reads a LoRA from a folder of PEFT.

  Args:
    path: folder with adapter_config.json and adapter_model.safetensors.
    table: `spec.table` of the base model.

  Returns:
    (adapter, arrays): leaves.Adapter without dropout, and float32 arrays of
    the host in the shape of `leaves.adapter_table`.  Of a module that holds
    several leaves (a fused query, key and value), each gets its own `a`.

  Raises:
    InputError or OSError: names the file, the key or the tensor that is wrong.
  """
  folder = pathlib.Path(path)
  values = _read_config(folder)
  file = folder / WEIGHTS
  if not file.is_file():
    raise InputError(f"{folder}: there is no {WEIGHTS}")
  try:
    stored = safetensors.numpy.load_file(file)
  except safetensors.SafetensorError as error:
    raise InputError(
      f"{file}: not a whole safetensors file ({error})"
    ) from None
  matrices = leaves.matrices(table)
  targets = tuple(
    name
    for name, spec in matrices.items()
    if any(names[0] in stored for names in _names(spec))
  )
  _check_names(file, stored, [matrices[name] for name in targets])
  rank = values["r"]
  blocks = {name: _pair(file, stored, matrices[name], rank) for name in targets}
  adapter = leaves.Adapter(
    rank=rank,
    alpha=float(values["lora_alpha"]),
    targets=targets,
    rslora=bool(values.get("use_rslora")),
  )
  return adapter, {"blocks": blocks}


def save(path, table, adapter, arrays, *, base=None, tokenizer=None, card=None):
  """Writes a folder that `load` and PEFT read, or nothing at all.

  Args:
    path: the folder to make; it must not exist, or be empty.
    table: `spec.table` of the base model.
    adapter: leaves.Adapter.
    arrays: tree in the shape of `leaves.adapter_table`.
    base: folder or name of the base model.
    tokenizer: a transformers tokenizer to put beside the weights.
    card: text of the folder's README.md.

  Raises:
    InputError: the folder is taken, or a matrix is only a part of a module of
      the base model, which PEFT can adapt as a whole alone.
    OSError: the disk refuses.
  """
  matrices, tensors = leaves.matrices(table), {}
  for name, pair in arrays["blocks"].items():
    spec = matrices[name]
    if spec.shared:
      raise InputError(
        f"{name} is a part of {spec.name}, which PEFT adapts as a whole: "
        "export with --merge-adapters"
      )
    for kind, names in zip("ab", _names(spec), strict=True):
      for tensor, layer in zip(names, np.asarray(pair[kind]), strict=True):
        first = spec.inputs if kind == "a" else 1
        flat = layer.reshape(math.prod(layer.shape[:first]), -1)
        tensors[tensor] = np.ascontiguousarray(flat.T)
  values = _peft_config(matrices, tuple(arrays["blocks"]), adapter, base)
  with hub.new_folder(path) as partial:
    text = json.dumps(values, indent=2) + "\n"
    (partial / CONFIG).write_text(text, encoding="utf-8")
    try:
      safetensors.numpy.save_file(tensors, partial / WEIGHTS, {"format": "pt"})
    except safetensors.SafetensorError as error:
      raise OSError(f"{partial / WEIGHTS}: {error}") from None
    # safetensors makes files that only their owner may read.
    shutil.copymode(partial / CONFIG, partial / WEIGHTS)
    hub.write_beside(partial, tokenizer, card)


def fingerprint(path):
  """SHA-256, in hex, over the contents of both files."""
  whole = hashlib.sha256()
  for name in (CONFIG, WEIGHTS):
    with open(pathlib.Path(path) / name, "rb") as stream:
      whole.update(hashlib.file_digest(stream, "sha256").digest())
  return whole.hexdigest()


# Reading.


def _read_config(folder):
  file = folder / CONFIG
  if not file.is_file():
    reason = f"there is no {CONFIG}" if folder.is_dir() else "no such folder"
    raise InputError(f"{folder}: {reason}")
  try:
    values = json.loads(file.read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as error:
    raise InputError(f"{file}: not JSON ({error})") from None
  if not isinstance(values, dict):
    raise InputError(f"{file}: want a JSON object")
  if values.get("peft_type") != "LORA":
    raise InputError(
      f"{file}: peft_type={values.get('peft_type')!r} is not supported; want "
      "'LORA'"
    )
  for key, value in values.items():
    if key not in HARMLESS and value and value != "none":
      raise InputError(f"{file}: {key}={value!r} is not computed here")
  start = values.get("init_lora_weights")
  if isinstance(start, str) and start.startswith(CHANGED_BASE):
    raise InputError(
      f"{file}: init_lora_weights={start!r} changes the base model; convert "
      "the adapter to a plain LoRA when saving it"
    )
  for key, kinds in (("r", int), ("lora_alpha", (int, float))):
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, kinds) or not value > 0:
      raise InputError(f"{file}: {key}={value!r}; want a positive number")
  return values


def _names(spec):
  """(names of `a`, names of `b`) of the tensors of all layers."""
  modules = [
    PREFIX + spec.name.format(layer).removesuffix(".weight")
    for layer in range(spec.shape[0])
  ]
  return tuple(
    [f"{module}.lora_{kind}.weight" for module in modules] for kind in "AB"
  )


def _check_names(file, stored, matrices):
  known = {
    name for spec in matrices for names in _names(spec) for name in names
  }
  absent = [name for name in sorted(known) if name not in stored]
  others = [name for name in stored if name not in known]
  for problem, which in (("missing", absent), ("unexpected", others)):
    if which:
      more = f" and {len(which) - 3} more" if len(which) > 3 else ""
      raise InputError(
        f"{file}: {problem} tensors: {', '.join(which[:3])}{more}"
      )
  if not stored:
    raise InputError(f"{file}: holds no tensor")


def _pair(file, stored, spec, rank):
  """{"a", "b"} of one leaf, all layers stacked."""
  inputs, outputs = _sizes(spec)
  whole = spec.shared.whole if spec.shared else None
  rows = math.prod(whole) // math.prod(inputs) if whole else math.prod(outputs)
  a_names, b_names = _names(spec)
  shape = (rank, math.prod(inputs))
  a = [_tensor(file, stored, name, shape).T for name in a_names]
  b = [
    _part(_tensor(file, stored, name, (rows, rank)), spec).T for name in b_names
  ]
  L = spec.shape[0]
  return {
    "a": np.stack(a).reshape(L, *inputs, rank),
    "b": np.stack(b).reshape(L, rank, *outputs),
  }


def _sizes(spec):
  """(sizes of the inputs, sizes of the outputs) of one layer."""
  cut = 1 + spec.inputs
  return spec.shape[1:cut], spec.shape[cut:]


def _part(tensor, spec):
  """The rows of a stored [out, rank] that belong to this leaf."""
  if spec.shared is None:
    return tensor
  # A row of the whole for each output, split as the weight itself is.
  size, outer = tensor.shape[0], spec.shared.split
  if spec.inputs_first:
    index = np.arange(size)[spec.shared.part[-1]]
  else:
    index = np.arange(size).reshape(outer[: -spec.inputs])[spec.shared.part]
  return tensor[index.reshape(-1)]


def _tensor(file, stored, name, shape):
  tensor = stored[name]
  if tensor.shape != shape:
    raise InputError(f"{file}: {name} has shape {tensor.shape}; want {shape}")
  if not jnp.issubdtype(tensor.dtype, jnp.floating):
    raise InputError(f"{file}: {name} holds {tensor.dtype}; want floats")
  tensor = tensor.astype(np.float32)
  if not np.isfinite(tensor).all():
    raise InputError(f"{file}: {name} holds numbers that are not finite")
  return tensor


# Writing.


def _peft_config(matrices, targets, adapter, base):
  alpha = adapter.alpha
  return {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base,
    "r": adapter.rank,
    "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
    "use_rslora": adapter.rslora,
    "lora_dropout": adapter.dropout,
    "target_modules": _module_names(matrices, targets),
    "fan_in_fan_out": any(matrices[name].inputs_first for name in targets),
    "bias": "none",
    "inference_mode": True,
  }


def _module_names(matrices, targets):
  """The end of each module's name, so long that it means no other matrix."""
  short = {name: spec.name.split(".")[-2] for name, spec in matrices.items()}
  others = {short[name] for name in matrices if name not in targets}
  return sorted(
    {
      matrices[name].name.partition("{}.")[2].removesuffix(".weight")
      if short[name] in others
      else short[name]
      for name in targets
    }
  )
