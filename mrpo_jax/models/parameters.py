# SPDX-License-Identifier: Apache-2.0
"""Every weight declared once: shape, meaning of each axis, Hugging Face name.

From the table of a model follow its abstract shapes, its initialisation, its
shardings (`parallel.py`) and its files (`hub.py`).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from mrpo_jax.models.families.tensor_names import LAYOUTS


@dataclasses.dataclass(frozen=True)
class Shared:
  """Where in a stored tensor one of several weights stands."""

  whole: tuple[int, ...]  # the tensor's shape
  split: tuple[int, ...]  # what to reshape it to
  part: tuple[int | slice, ...]  # what to index that with


@dataclasses.dataclass(frozen=True)
class ArraySpec:
  """One weight, or the same weight of all L layers stacked on axis 0."""

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]  # logical; `parallel.RULES` maps them to a mesh
  name: str  # Hugging Face's; each "{}" stands for an index of a leading axis
  inputs: int = 0  # leading axes (after the stacked) that a product sums over
  scale: float | None = None  # standard deviation at the start; None: constant
  start: float = 1.0  # that constant
  inputs_first: bool = False  # in the file; torch has the outputs first
  shared: "Shared | None" = None  # where the stored tensor holds more

  @property
  def stacked(self):
    """How many leading axes the files keep apart."""
    return self.name.count("{}")


def table(config):
  """The nested dict of ArraySpec that is the model."""
  L, D, V = config.layers, config.width, config.vocab_size
  H, G, E, F = config.heads, config.kv_heads, config.head_dim, config.mlp_width
  layout = LAYOUTS[config.family]
  # Residual branches start small, so that depth does not scale the stream.
  branch = 1.0 / math.sqrt(2 * L)
  specs, blocks = {}, {}

  def weight(name, shape, axes, inputs, factor=1.0):
    scale = factor / math.sqrt(math.prod(shape[:inputs]))
    blocks[name] = ArraySpec(
      (L, *shape),
      ("layers", *axes),
      layout.names[name],
      inputs,
      scale,
      inputs_first=layout.inputs_first,
    )

  def constant(into, name, shape, axes, value):
    if into is blocks:
      shape, axes = (L, *shape), ("layers", *axes)
    into[name] = ArraySpec(shape, axes, layout.names[name], start=value)

  def norm(into, name):
    constant(into, name, (D,), ("embed",), 1.0 - config.norm_shift)
    if config.norm == "layer":
      constant(into, f"{name}_bias", (D,), ("embed",), 0.0)

  def bias(name, shape, axes, exists):
    if exists:
      constant(blocks, f"{name}_bias", shape, axes, 0.0)

  before, after = config.norms != "after", config.norms != "before"
  heads, groups = ("heads", None), ("kv_heads", None)
  if before:
    norm(blocks, "attention_norm")
  for name, N, axes in (
    ("query", H, heads),
    ("key", G, groups),
    ("value", G, groups),
  ):
    weight(name, (D, N, E), ("embed", *axes), 1)
    bias(name, (N, E), axes, config.qkv_bias)
  for name, N, axes in (("query_norm", H, heads), ("key_norm", G, groups)):
    if config.qk_norm == "head":
      constant(blocks, name, (E,), (None,), 1.0 - config.norm_shift)
    elif config.qk_norm:
      constant(blocks, name, (N, E), axes, 1.0 - config.norm_shift)
  weight("out", (H, E, D), (*heads, "embed"), 2, branch)
  bias("out", (D,), ("embed",), config.out_bias)
  if after:
    norm(blocks, "attention_out_norm")
  if before and config.parallel != "one":
    norm(blocks, "mlp_norm")
  for name in ("gate", "up") if config.gated else ("up",):
    weight(name, (D, F), ("embed", "mlp"), 1)
    bias(name, (F,), ("mlp",), config.mlp_bias)
  weight("down", (F, D), ("mlp", "embed"), 1, branch)
  bias("down", (D,), ("embed",), config.mlp_bias)
  if after:
    norm(blocks, "mlp_out_norm")

  vocab = ((V, D), ("vocab", "embed"))
  specs["embed"] = ArraySpec(*vocab, layout.names["embed"], scale=0.02)
  if config.learned_positions:
    specs["positions"] = ArraySpec(
      (config.max_positions, D),
      (None, "embed"),
      layout.names["positions"],
      scale=0.02,
    )
  specs["blocks"] = _shared_tensors(blocks, layout.interleaved, E)
  norm(specs, "norm")
  if not config.tied:
    specs["head"] = ArraySpec(*vocab, layout.names["head"], scale=0.02)
  return specs


def _shared_tensors(blocks, interleaved, E):
  """Tells the weights that share a stored tensor their parts of it."""
  groups = {}
  for key, spec in blocks.items():
    groups.setdefault(spec.name, []).append(key)
  for keys in groups.values():
    if len(keys) == 1:
      continue
    members = [blocks[key] for key in keys]
    sizes = [math.prod(layer_shape(spec)[spec.inputs :]) for spec in members]
    inputs = layer_shape(members[0])[: members[0].inputs]
    start = 0
    for i, (key, size) in enumerate(zip(keys, sizes, strict=True)):
      rows = slice(start, start + size)
      whole = (sum(sizes), *inputs)
      split, part = whole, (rows,)
      if interleaved:  # query, key and value of each head side by side
        split, part = (size // E, len(keys), E, *inputs), (slice(None), i)
      elif members[0].inputs_first:
        whole = split = whole[::-1]
        part = (slice(None), rows)
      shared = Shared(whole, split, part)
      blocks[key] = dataclasses.replace(blocks[key], shared=shared)
      start += size
  return blocks


def layer_shape(spec):
  """The shape of what one stored tensor, or a part of it, gives."""
  return spec.shape[spec.stacked :]


def is_spec(node):
  return isinstance(node, ArraySpec)


def map_specs(function, specs):
  """`function` of every ArraySpec, in the same tree."""
  return jax.tree.map(function, specs, is_leaf=is_spec)


def abstract(config, dtype=jnp.float32):
  """The model's shapes as jax.ShapeDtypeStruct."""
  return map_specs(
    lambda spec: jax.ShapeDtypeStruct(spec.shape, dtype), table(config)
  )


def init(config, key, dtype=jnp.float32):
  """Random parameters; the same key gives the same on every mesh."""
  specs, treedef = jax.tree.flatten(table(config), is_leaf=is_spec)
  keys = jax.random.split(key, len(specs))
  arrays = [
    jnp.full(spec.shape, spec.start, dtype)
    if spec.scale is None
    else (spec.scale * jax.random.normal(key, spec.shape)).astype(dtype)
    for spec, key in zip(specs, keys, strict=True)
  ]
  return jax.tree.unflatten(treedef, arrays)


def count_parameters(config):
  """Number of weights, the embedding counted once where it is tied."""
  specs = jax.tree.leaves(table(config), is_leaf=is_spec)
  return sum(math.prod(spec.shape) for spec in specs)
