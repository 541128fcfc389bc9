# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters as PEFT folders: loading, saving, fingerprint.

A folder holds adapter_config.json and adapter_model.safetensors.  Pickled
weights are never opened.  What a config asks for beyond plain LoRA is refused
by name: a wrong number is worse than none.
"""

import dataclasses
import hashlib
import math

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from mrpo_jax import files
from mrpo_jax.errors import InputError, blames
from mrpo_jax.hub import patterns
from mrpo_jax.hub.folder import (
  check_header,
  floating,
  refuse_names,
  stored,
  whole,
)
from mrpo_jax.hub.write import finite, write_beside, write_tensors
from mrpo_jax.models import lora
from mrpo_jax.models.config import VALUED
from mrpo_jax.models.parameters import table
from mrpo_jax.snapshots import folder_of, is_name

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
SAVED = ["score"]  # modules of a reward model that are trained whole
SCORE = f"{PREFIX}score.weight"
# Keys of PEFT's config that do not change what a stored adapter computes.  Any
# other one is refused unless it is null, false, empty or "none".
HARMLESS = set(
  "peft_type task_type auto_mapping base_model_name_or_path revision "
  "peft_version inference_mode r lora_alpha rank_pattern alpha_pattern "
  "lora_dropout use_rslora "
  "target_modules exclude_modules fan_in_fan_out init_lora_weights "
  "megatron_core loftq_config eva_config qalora_group_size "
  "ensure_weight_tying modules_to_save".split()
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
    the host in the shape of `lora.adapter_table`, but without a value head,
    which no folder holds.  Of a module that holds
    several leaves (a fused query, key and value), each gets its own `a`.
    Where modules or layers differ in rank, smaller ones are filled up with
    zeros; where they differ in scale, the adapter has it for each layer.

  Raises:
    InputError or OSError: names the file, the key or the tensor that is wrong.
  """
  folder = folder_of(path)
  values = _read_config(folder)
  file = _weights(folder)
  with whole(file):
    tensors = safetensors.numpy.load_file(file)
  check_header(file)
  score = _score(file, tensors, config, values)
  matrices = _matrices(config)
  targets = tuple(
    name
    for name, one in matrices.items()
    if any(names[0] in tensors for names in _names(one))
  )
  _check_names(file, tensors, [matrices[name] for name in targets])
  with blames(folder / CONFIG, InputError):
    own = patterns.adapters(
      values, {name: _modules(matrices[name]) for name in targets}
    )
  adapter = dataclasses.replace(patterns.joined(own), targets=targets)
  blocks = {
    name: _pair(file, tensors, matrices[name], layers, adapter.rank)
    for name, layers in own.items()
  }
  return adapter, {"blocks": blocks, **score}


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
    base: folder or name of the base model, ORG/NAME@REVISION or without it.
    tokenizer: a transformers tokenizer to put beside the weights.
    card: text of the folder's README.md.
    dtype: floating type of the file; None keeps that of the arrays.

  Raises:
    InputError: the folder is taken, a number is not finite in that dtype, or
      there is a value head.
    OSError: the disk refuses.
  """
  matrices, tensors, modules = _matrices(config), {}, {}
  for name in arrays["blocks"]:
    modules.setdefault(matrices[name].name, []).append(name)
  for names in modules.values():
    parts = [(matrices[name], arrays["blocks"][name]) for name in names]
    tensors |= _module_tensors(parts)
  if config.head == VALUED:
    raise InputError(
      "a value head has no place in an adapter's folder; save what "
      "`parameters.language_model` gives, without it"
    )
  if config.head == "scalar":
    tensors[SCORE] = np.asarray(arrays["score"])
  if dtype is not None:
    with np.errstate(over="ignore"):  # refused by `finite`
      tensors = {k: one.astype(floating(dtype)) for k, one in tensors.items()}
  tensors = {name: finite(name, one) for name, one in tensors.items()}
  values = _peft_config(matrices, modules, adapter, base)
  if config.head == "scalar":
    values |= {"task_type": "SEQ_CLS", "modules_to_save": SAVED}
  with files.new_folder(path) as partial:
    files.write_json(partial / CONFIG, values, sort_keys=False)
    write_tensors(partial / WEIGHTS, tensors, like=partial / CONFIG)
    write_beside(partial, tokenizer, card)


def fingerprint(path):
  """SHA-256, in hex, over the contents of both files.

  A pattern that tells layers apart once counted for none of them, and what
  was scored then is not what the folder says: it has another fingerprint.
  """
  folder = folder_of(path)
  values = _read_config(folder)
  found = [files.sha256_of(folder / name) for name in (CONFIG, WEIGHTS)]
  with blames(folder / CONFIG, InputError):
    apart = patterns.tell_layers_apart(values, _adapted(folder))
  if apart:
    found.append(hashlib.sha256(b"patterns of whole names").hexdigest())
  return hashlib.sha256(bytes.fromhex("".join(found))).hexdigest()


def _matrices(config):
  """{leaf: Stored} of the matrices that a LoRA may change."""
  blocks = stored(config)["blocks"]
  return {leaf: blocks[leaf] for leaf in lora.adaptable(table(config))}


# Reading.


def _score(file, tensors, config, values):
  """{"score": array} of a reward model, taken out of the tensors; else {}."""
  saved = values.get("modules_to_save") or []
  wanted = SAVED if config.head == "scalar" else []
  # PEFT itself also writes "classifier", which none of these models has.
  found = [name for name in saved if name != "classifier" or not wanted]
  if sorted(set(found)) != wanted:
    raise InputError(
      f"{file.with_name(CONFIG)}: modules_to_save={saved!r}; want {wanted} "
      f"of a model whose head is {config.head!r}"
    )
  if not wanted:
    return {}
  if SCORE not in tensors:
    raise InputError(f"{file}: missing tensors: {SCORE}")
  score = _tensor(file, tensors, SCORE, (1, config.width))
  del tensors[SCORE]
  return {"score": score}


def _read_config(folder):
  file = folder / CONFIG
  if not file.is_file():
    reason = f"there is no {CONFIG}" if folder.is_dir() else "no such folder"
    raise InputError(f"{folder}: {reason}")
  values = files.read_json(file)
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
  kinds_of = {"r": int, "lora_alpha": (int, float)}
  for key, pattern in patterns.KEYS.items():
    own = values.get(pattern) or {}
    if not isinstance(own, dict):
      raise InputError(f"{file}: {pattern}={own!r}; want an object")
    numbers = {key: values.get(key)}
    numbers |= {f"{pattern}.{module}": value for module, value in own.items()}
    for name, n in numbers.items():
      if (
        isinstance(n, bool)
        or not isinstance(n, kinds_of[key])
        or not 0 < n < 1e38
      ):
        raise InputError(f"{file}: {name}={n!r}; want a positive number")
  return values


def _weights(folder):
  """The file of the tensors."""
  file = folder / WEIGHTS
  if not file.is_file():
    raise InputError(f"{folder}: there is no {WEIGHTS}")
  return file


def _adapted(folder):
  """The names of the modules that the file has tensors for."""
  file = _weights(folder)
  with whole(file), safetensors.safe_open(file, framework="np") as tensors:
    names = {name for name in tensors.keys() if name != SCORE}
    names = {name.rpartition(".lora_")[0] for name in names}
  return [name.removeprefix(PREFIX) for name in names]


def _names(one):
  """(names of `a`, names of `b`) of the tensors of all layers."""
  return tuple(
    [f"{PREFIX}{module}.lora_{kind}.weight" for module in _modules(one)]
    for kind in "AB"
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


def _pair(file, tensors, one, adapters, widest):
  """{"a", "b"} of one leaf, all layers stacked.

  `adapters` has the Adapter of each layer; a smaller rank than the widest is
  filled up with zeros, which change nothing and stay zero.
  """
  inputs, outputs = _sizes(one)
  size, rows = math.prod(inputs), _outputs(one)
  a, b = [], []
  for adapter, *names in zip(adapters, *_names(one), strict=True):
    shapes = (adapter.rank, size), (rows, adapter.rank)
    narrow, wide = map(
      lambda name, shape: _tensor(file, tensors, name, shape), names, shapes
    )
    more = (0, widest - adapter.rank)
    a.append(np.pad(narrow.T, [(0, 0), more]))
    b.append(np.pad(wide[_rows(one)].T, [more, (0, 0)]))
  L = one.spec.shape[0]
  return {
    "a": np.stack(a).reshape(L, *inputs, widest),
    "b": np.stack(b).reshape(L, widest, *outputs),
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


def _modules(one):
  """The whole name of the module of each layer."""
  return [name.removesuffix(".weight") for _, name in one.tensors()]


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
  ranks, alphas, scales = {}, {}, dict(adapter.scales)
  for first, *others in modules.values():
    one, times = matrices[first], 1 + len(others)
    # Of several leaves: the same scale at a rank that is so many times larger.
    factor = math.sqrt(times) if adapter.rslora else times
    if others:
      ranks[_module(one)] = times * adapter.rank
    if first in scales:
      own = [_number(s * adapter.divisor * factor) for s in scales[first]]
      alphas |= dict(zip(_modules(one), own, strict=True))
    elif others:
      alphas[_module(one)] = adapter.alpha * factor
  revision = None
  if base is not None and is_name(base):
    base, _, revision = base.partition("@")
  return {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base,
    **({"revision": revision} if revision else {}),
    "r": adapter.rank,
    "lora_alpha": _number(adapter.alpha),
    "rank_pattern": ranks,
    "alpha_pattern": alphas,
    "use_rslora": adapter.rslora,
    "lora_dropout": adapter.dropout,
    "target_modules": _module_names(matrices, targets),
    "fan_in_fan_out": any(matrices[name].inputs_first for name in targets),
    "bias": "none",
    "inference_mode": True,
  }


def _number(value):
  """An integer as JSON has it, else the float."""
  return int(value) if float(value).is_integer() else value


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
