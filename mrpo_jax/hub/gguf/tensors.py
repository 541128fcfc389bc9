# SPDX-License-Identifier: Apache-2.0
"""Tensors of a GGUF file as those of a model folder.

llama.cpp's converters change some: here each is undone.
"""

import dataclasses
import re
from collections.abc import Callable

import gguf
import jax
import numpy as np

from mrpo_jax.errors import InputError
from mrpo_jax.hub.folder import refuse_names, stored
from mrpo_jax.hub.gguf.architectures import EMBEDDING, HEAD
from mrpo_jax.hub.gguf.read import StoredTensor
from mrpo_jax.hub.gguf.rope import FACTORS, FREQUENCIES
from mrpo_jax.models.families.family import UnsupportedModel

IN_CONFIG = {FREQUENCIES, *FACTORS.values()}  # read into the config.json
NORM_OF_HEAD = re.compile(r"(.+_layernorm)\.norms\.(\d+)")
PAIRED = re.compile(r"\.(q|k)_proj$")
MATRIX = re.compile(r"\.c_(attn|proj|fc)$")
FUSED = re.compile(r"\.query_key_value$")


@dataclasses.dataclass(frozen=True)
class TensorPlan:
  """One tensor of the folder: where it comes from."""

  source: StoredTensor
  shape: tuple[int, ...]  # in the folder
  shift: float = 0.0  # to take off
  undo: Callable = staticmethod(lambda array: array)  # of its layout

  def read(self, dtype):
    """The array, in a NumPy dtype; InputError where a number is not finite."""
    return self.undo(self.source.read(dtype, self.shift))


def is_tied(tensors):
  """Is the head the embedding, or a copy of it?"""
  head, embedding = tensors.get(HEAD), tensors.get(EMBEDDING)
  if head is None or embedding is None:
    return head is None
  return (head.kind, head.shape) == (embedding.kind, embedding.shape) and all(
    np.array_equal(*pair)
    for pair in zip(_pieces(head), _pieces(embedding), strict=True)
  )


def _pieces(tensor, step=2**24):
  """Its bytes in the file, some at a time."""
  for start in range(0, tensor.size, step):
    yield tensor.raw(start, min(step, tensor.size - start))


def tensor_plans(tensors, config, architecture, where):
  """{name in the folder: TensorPlan} of a whole model.

  Args:
    tensors: {name: StoredTensor} of the file.
    config: ModelConfig.
    architecture: Architecture.
    where: the file, for errors.

  Raises:
    InputError: names tensors that are missing, left over or of another shape.
  """
  if config.layers > len(tensors):  # before names are listed for them all
    raise InputError(
      f"{where}: {config.layers} layers, but only {len(tensors)} tensors"
    )
  shapes = {
    name: one.shape
    for one in jax.tree.leaves(stored(config))
    for _, name in one.tensors()
  }
  names = _Names(config)
  sources = {name: names.of(name) for name in shapes}
  known = {*sources.values(), *IN_CONFIG, *([HEAD] if config.tied else [])}
  refuse_names(
    where,
    missing=[name for name in sources.values() if name not in tensors],
    unexpected=[name for name in tensors if name not in known],
  )
  return {
    name: _plan(tensors[sources[name]], name, shape, config, architecture)
    for name, shape in shapes.items()
  }


class _Names:
  """Names of tensors in a folder -> in a GGUF file, by the package's table."""

  def __init__(self, config):
    self._kind = {"gemma3_text": "gemma3", "gpt_neox": "gptneox"}.get(
      config.family, config.family
    )
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    self._map = gguf.get_tensor_name_map(kinds[self._kind], config.layers)

  def of(self, name):
    module, _, kind = name.rpartition(".")
    if match := NORM_OF_HEAD.fullmatch(module):  # one for each head: stacked
      module = match[1]
    found = self._map.get_name(module)
    if found is None:  # of a Gemma whose head is not its embedding, say
      raise UnsupportedModel(f"a {self._kind} of llama.cpp has no {module}")
    return f"{found}.{kind}"


def _plan(source, name, shape, config, architecture):
  module, _, kind = name.rpartition(".")
  shift = architecture.shift if module.endswith("norm") else 0.0
  plan = TensorPlan(source, shape, shift)
  stored_shape, heads = shape, config.heads
  if match := NORM_OF_HEAD.fullmatch(module):
    heads = config.heads if "q_" in match[1] else config.kv_heads
    head, stored_shape = int(match[2]), (heads, *shape)
    plan = dataclasses.replace(plan, undo=lambda array: array[head])
  elif architecture.paired and (match := PAIRED.search(module)):
    heads = config.heads if match[1] == "q" else config.kv_heads
    plan = dataclasses.replace(plan, undo=lambda array: halves(array, heads))
  elif architecture.unlike == "by_kind" and FUSED.search(module):
    plan = dataclasses.replace(plan, undo=lambda array: by_head(array, heads))
  elif architecture.unlike == "transposed" and MATRIX.search(module):
    stored_shape = shape[::-1]  # which is itself for a bias
    plan = dataclasses.replace(plan, undo=np.transpose)
  if source.shape != stored_shape:
    raise InputError(
      f"{source.path}: {source.name} has shape {source.shape}; its metadata "
      f"asks for {stored_shape}"
    )
  return plan


def halves(array, heads):
  """Rows of each head from RoPE's pairs side by side to its two halves.

  [heads * E, ...], the i-th pair in rows 2i, 2i + 1 of a head -> in i, i + E/2.
  """
  pairs = array.reshape(heads, -1, 2, *array.shape[1:])
  return pairs.swapaxes(1, 2).reshape(array.shape)


def by_head(array, heads):
  """Rows of q of all heads, then k, then v -> q, k, v of each head in turn."""
  kinds = array.reshape(3, heads, -1, *array.shape[1:])
  return kinds.swapaxes(0, 1).reshape(array.shape)
