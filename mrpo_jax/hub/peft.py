# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters as PEFT folders: loading, saving, fingerprint.

A folder holds adapter_config.json and adapter_model.safetensors.  Pickled
weights are never opened.  What a config asks for beyond plain LoRA is refused
by name: a wrong number is worse than none.
"""

import dataclasses
import hashlib
import math
import pathlib
import re

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from mrpo_jax import files
from mrpo_jax.errors import InputError
from mrpo_jax.hub.folder import floating, read_object, refuse_names, stored
from mrpo_jax.hub.write import finite, write_beside, write_tensors
from mrpo_jax.models import lora

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


def load(path, config):
  """Reads a LoRA from a folder of PEFT.

  Args:
    path: folder with adapter_config.json and adapter_model.safetensors.
    config: ModelConfig of the base model.

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
    tensors = safetensors.numpy.load_file(file)
  except safetensors.SafetensorError as error:
    raise InputError(
      f"{file}: not a whole safetensors file ({error})"
    ) from None
  matrices = _matrices(config)
  targets = tuple(
    name
    for name, one in matrices.items()
    if any(names[0] in tensors for names in _names(one))
  )
  _check_names(file, tensors, [matrices[name] for name in targets])
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
      _pair(file, tensors, matrices[name], adapter.rank), widest.rank
    )
    for name, adapter in own.items()
  }
  return dataclasses.replace(widest, targets=targets), {"blocks": blocks}


def save(
  path,
  config,
  adapter,
  arrays,
  *,
  base=None,
  tokenizer=None,
  card=None,
  dtype=None,
):
  """Writes a folder that `load` and PEFT read, or nothing at all.

  Args:
    path: the folder to make; it must not exist, or be empty.
    config: ModelConfig of the base model.
    adapter: lora.Adapter.
    arrays: tree in the shape of `lora.adapter_table`.
    base: folder or name of the base model.
    tokenizer: a transformers tokenizer to put beside the weights.
    card: text of the folder's README.md.
    dtype: floating type of the file; None keeps that of the arrays.

  Raises:
    InputError: the folder is taken, or a number is not finite in that dtype.
    OSError: the disk refuses.
  """
  matrices, tensors, modules = _matrices(config), {}, {}
  for name in arrays["blocks"]:
    modules.setdefault(matrices[name].name, []).append(name)
  for names in modules.values():
    parts = [(matrices[name], arrays["blocks"][name]) for name in names]
    tensors |= _module_tensors(parts)
  if dtype is not None:
    with np.errstate(over="ignore"):  # refused by `finite`
      tensors = {k: one.astype(floating(dtype)) for k, one in tensors.items()}
  tensors = {name: finite(name, one) for name, one in tensors.items()}
  values = _peft_config(matrices, modules, adapter, base)
  with files.new_folder(path) as partial:
    files.write_json(partial / CONFIG, values, sort_keys=False)
    write_tensors(partial / WEIGHTS, tensors, like=partial / CONFIG)
    write_beside(partial, tokenizer, card)


def fingerprint(path):
  """SHA-256, in hex, over the contents of both files."""
  folder = pathlib.Path(path)
  _read_config(folder)
  found = [files.sha256_of(folder / name) for name in (CONFIG, WEIGHTS)]
  return hashlib.sha256(bytes.fromhex("".join(found))).hexdigest()


def _matrices(config):
  """{leaf: Stored} of the matrices that a LoRA may change."""
  blocks = stored(config)["blocks"]
  return {leaf: one for leaf, one in blocks.items() if one.spec.inputs}


# Reading.


def _read_config(folder):
  file = folder / CONFIG
  if not file.is_file():
    reason = f"there is no {CONFIG}" if folder.is_dir() else "no such folder"
    raise InputError(f"{folder}: {reason}")
  values = read_object(file)
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


def _names(one):
  """(names of `a`, names of `b`) of the tensors of all layers."""
  modules = [PREFIX + name.removesuffix(".weight") for _, name in one.tensors()]
  return tuple(
    [f"{module}.lora_{kind}.weight" for module in modules] for kind in "AB"
  )


def _check_names(file, tensors, matrices):
  known = {name for one in matrices for names in _names(one) for name in names}
  refuse_names(
    file,
    missing=[name for name in sorted(known) if name not in tensors],
    unexpected=[name for name in tensors if name not in known],
  )
  if not tensors:
    raise InputError(f"{file}: holds no tensor")


def _pair(file, tensors, one, rank):
  """{"a", "b"} of one leaf, all layers stacked."""
  inputs, outputs = _sizes(one)
  rows = _outputs(one)
  a_names, b_names = _names(one)
  shape = (rank, math.prod(inputs))
  a = [_tensor(file, tensors, name, shape).T for name in a_names]
  b = [
    _tensor(file, tensors, name, (rows, rank))[_rows(one)].T for name in b_names
  ]
  L = one.spec.shape[0]
  return {
    "a": np.stack(a).reshape(L, *inputs, rank),
    "b": np.stack(b).reshape(L, rank, *outputs),
  }


def _sizes(one):
  """(sizes of the inputs, sizes of the outputs) of one layer."""
  n = one.spec.inputs
  return one.layer[:n], one.layer[n:]


def _outputs(one):
  """Outputs of the stored module."""
  return math.prod(one.shape) // math.prod(_sizes(one)[0])


def _rows(one):
  """The outputs of the stored module that are this leaf's."""
  if not one.whole:
    return slice(None)
  if one.inputs_first:
    return one.part[-1]
  rows = np.arange(_outputs(one)).reshape(one.split[: -one.spec.inputs])
  return rows[one.part].reshape(-1)


def _module(one):
  """The name of the module within a layer."""
  return one.name.partition("{}.")[2].removesuffix(".weight")


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


def _tensor(file, tensors, name, shape):
  tensor = tensors[name]
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
    parts: [(Stored, {"a", "b"})].
  """
  first = parts[0][0]
  tensors = {}
  for layer, names in enumerate(zip(*_names(first), strict=True)):
    a = [_flat(pair["a"][layer], one.spec.inputs).T for one, pair in parts]
    b = [_flat(pair["b"][layer], 1).T for _, pair in parts]
    if first.whole:
      rank = a[0].shape[0]
      blocks = np.zeros((_outputs(first), rank * len(parts)), b[0].dtype)
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
  short = {name: one.name.split(".")[-2] for name, one in matrices.items()}
  others = {short[name] for name in matrices if name not in targets}
  return sorted(
    {
      _module(matrices[name]) if short[name] in others else short[name]
      for name in targets
    }
  )
