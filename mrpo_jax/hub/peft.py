# SPDX-License-Identifier: Apache-2.0
"""Adapters in and out: folders as PEFT lays them out.

A folder holds adapter_config.json and adapter_model.safetensors.  Pickled
weights are never opened.  What a config asks for beyond plain LoRA is refused
by name: a wrong number is worse than none.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import re
import shutil

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from mrpo_jax import files
from mrpo_jax.errors import InputError
from mrpo_jax.hub.write import write_beside
from mrpo_jax.models import lora, weights

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# Keys of PEFT's config that do not change what a stored adapter computes.  Any
# other one is refused unless it is null, false, empty or "none".
HARMLESS = set(
  "peft_type task_type auto_mapping base_model_name_or_path revision "
  "peft_version inference_mode r lora_alpha rank_pattern alpha_pattern "
  "lora_dropout use_rslora "
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
    table: `parameters.table` of the base model.

  Returns:
    (adapter, arrays): lora.Adapter without dropout, and float32 arrays of
    the host in the shape of `lora.adapter_table`.  Of a module that holds
    several leaves (a fused query, key and value), each gets its own `a`.
    Where modules differ in rank, smaller ones are filled up with zeros.

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
  matrices = weights.matrices(table)
  targets = tuple(
    name
    for name, spec in matrices.items()
    if any(names[0] in stored for names in _names(spec))
  )
  _check_names(file, stored, [matrices[name] for name in targets])
  own = {name: _adapter_of(values, _module(matrices[name])) for name in targets}
  scales = {adapter.scale for adapter in own.values()}
  if not math.isclose(min(scales), max(scales)):
    raise InputError(
      f"{folder / CONFIG}: alpha / rank differs between modules: "
      f"{', '.join(map(str, sorted(scales)))}"
    )
  widest = max(own.values(), key=lambda adapter: adapter.rank)
  blocks = {
    name: _widened(
      _pair(file, stored, matrices[name], adapter.rank), widest.rank
    )
    for name, adapter in own.items()
  }
  return dataclasses.replace(widest, targets=targets), {"blocks": blocks}


def save(path, table, adapter, arrays, *, base=None, tokenizer=None, card=None):
  """Writes a folder that `load` and PEFT read, or nothing at all.

  Args:
    path: the folder to make; it must not exist, or be empty.
    table: `parameters.table` of the base model.
    adapter: lora.Adapter.
    arrays: tree in the shape of `lora.adapter_table`.
    base: folder or name of the base model.
    tokenizer: a transformers tokenizer to put beside the weights.
    card: text of the folder's README.md.

  Raises:
    InputError: the folder is taken.
    OSError: the disk refuses.
  """
  matrices, tensors, modules = weights.matrices(table), {}, {}
  for name in arrays["blocks"]:
    modules.setdefault(matrices[name].name, []).append(name)
  for names in modules.values():
    parts = [(matrices[name], arrays["blocks"][name]) for name in names]
    tensors |= _module_tensors(parts)
  values = _peft_config(matrices, modules, adapter, base)
  with files.new_folder(path) as partial:
    text = json.dumps(values, indent=2) + "\n"
    (partial / CONFIG).write_text(text, encoding="utf-8")
    try:
      safetensors.numpy.save_file(tensors, partial / WEIGHTS, {"format": "pt"})
    except safetensors.SafetensorError as error:
      raise OSError(f"{partial / WEIGHTS}: {error}") from None
    # safetensors makes files that only their owner may read.
    shutil.copymode(partial / CONFIG, partial / WEIGHTS)
    write_beside(partial, tokenizer, card)


def fingerprint(path):
  """SHA-256, in hex, over the contents of both files."""
  _read_config(pathlib.Path(path))
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
  for key, pattern, kinds in (
    ("r", "rank_pattern", int),
    ("lora_alpha", "alpha_pattern", (int, float)),
  ):
    own = values.get(pattern) or {}
    if not isinstance(own, dict):
      raise InputError(f"{file}: {pattern}={own!r}; want an object")
    numbers = {key: values.get(key)}
    numbers |= {f"{pattern}.{module}": value for module, value in own.items()}
    for name, n in numbers.items():
      if isinstance(n, bool) or not isinstance(n, kinds) or not n > 0:
        raise InputError(f"{file}: {name}={n!r}; want a positive number")
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
  rows = _outputs(spec)
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
  return tensor[_rows(spec)] if spec.shared else tensor


def _rows(spec):
  """Which outputs of the stored module are this leaf's, split as its weight."""
  size, outer = _outputs(spec), spec.shared.split
  if spec.inputs_first:
    return np.arange(size)[spec.shared.part[-1]]
  index = np.arange(size).reshape(outer[: -spec.inputs])[spec.shared.part]
  return index.reshape(-1)


def _outputs(spec):
  """Outputs of the stored module."""
  inputs, outputs = _sizes(spec)
  if spec.shared is None:
    return math.prod(outputs)
  return math.prod(spec.shared.whole) // math.prod(inputs)


def _module(spec):
  """The name of the module within a layer."""
  return spec.name.partition("{}.")[2].removesuffix(".weight")


def _adapter_of(values, module):
  """The Adapter that a config gives to a module: its own rank, its own alpha.

  Patterns are regular expressions for the end of a module's name, as in PEFT.
  """

  def own(key, default):
    for pattern, value in (values.get(key) or {}).items():
      if re.fullmatch(rf"(.*\.)?({pattern})", module):
        return value
    return default

  return lora.Adapter(
    rank=own("rank_pattern", values["r"]),
    alpha=float(own("alpha_pattern", values["lora_alpha"])),
    rslora=bool(values.get("use_rslora")),
  )


def _widened(pair, rank):
  """A pair of a larger rank: zeros that change nothing and stay zero."""
  more = rank - pair["a"].shape[-1]
  a, b = pair["a"], pair["b"]
  return {
    "a": np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, more)]),
    "b": np.pad(b, [(0, 0), (0, more)] + [(0, 0)] * (b.ndim - 2)),
  }


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


def _module_tensors(parts):
  """{name: tensor} of one module of all layers, from its leaves.

  Of several leaves that share it: their `a` below each other, their `b` in
  blocks, so that each reads its own, and the rank is the sum.

  Args:
    parts: [(ArraySpec, {"a", "b"})].
  """
  spec = parts[0][0]
  tensors = {}
  for layer, names in enumerate(zip(*_names(spec), strict=True)):
    a = [_flat(pair["a"][layer], one.inputs).T for one, pair in parts]
    b = [_flat(pair["b"][layer], 1).T for _, pair in parts]
    if spec.shared:
      rank = a[0].shape[0]
      blocks = np.zeros((_outputs(spec), rank * len(parts)), b[0].dtype)
      for i, ((one, _), part) in enumerate(zip(parts, b, strict=True)):
        blocks[_rows(one), i * rank : (i + 1) * rank] = part
      a, b = [np.concatenate(a)], [blocks]
    for name, (tensor,) in zip(names, (a, b), strict=True):
      tensors[name] = np.ascontiguousarray(tensor)
  return tensors


def _flat(array, first):
  """A matrix: the first axes, and the others."""
  array = np.asarray(array)
  return array.reshape(math.prod(array.shape[:first]), -1)


def _peft_config(matrices, modules, adapter, base):
  targets = [name for names in modules.values() for name in names]
  ranks, alphas = {}, {}
  for first, *others in modules.values():
    if others:  # the same scale at a rank that is so many times as large
      module, times = _module(matrices[first]), 1 + len(others)
      ranks[module] = times * adapter.rank
      factor = math.sqrt(times) if adapter.rslora else times
      alphas[module] = adapter.alpha * factor
  alpha = adapter.alpha
  return {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base,
    "r": adapter.rank,
    "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
    "rank_pattern": ranks,
    "alpha_pattern": alphas,
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
      _module(matrices[name]) if short[name] in others else short[name]
      for name in targets
    }
  )
