# SPDX-License-Identifier: Apache-2.0
"""Every weight declared once: its shape, the meaning of each axis, its start.

From the table of a model follow its abstract shapes, its initialisation and
its shardings (`parallel.py`); `hub.folder` joins it to the names in files.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from mrpo_jax.models.config import VALUED

# Heads of one number: trained whole beside an adapter, and never quantised.
NUMBERS = ("score", "value_head")
# Chooses experts: neither adapted nor quantised, since it would choose others.
ROUTER = "router"


@dataclasses.dataclass(frozen=True)
class ArraySpec:
  """One weight, or the same weight of all L layers stacked on axis 0."""

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]  # logical; `parallel.RULES` maps them to a mesh
  # Leading axes (after layers and experts) that a product sums over.
  inputs: int = 0
  scale: float | None = None  # standard deviation at the start; None: constant
  start: float = 1.0  # that constant

  @property
  def cut(self):
    """(first, end): the axes that a product of one layer's matrix sums over.

    Before them stand the layers, and where there are some the experts, each
    with a matrix of its own.
    """
    first = 1 + ("experts" in self.axes)
    return first, first + self.inputs


def table(config):
  """The nested dict of ArraySpec that is the model."""
  L, width, vocabulary = config.layers, config.width, config.vocab_size
  tokens = ArraySpec((vocabulary, width), ("vocab", "embed"), scale=0.02)
  branch = expert_weights if config.experts else mlp_weights
  layer = attention_weights(config) | branch(config)
  specs = {"embed": tokens}
  if config.learned_positions:
    places = (config.max_positions, width)
    specs["positions"] = ArraySpec(places, (None, "embed"), scale=0.02)
  specs["blocks"] = {
    name: dataclasses.replace(
      spec, shape=(L, *spec.shape), axes=("layers", *spec.axes)
    )
    for name, spec in layer.items()
  }
  specs |= norm_weights(config, "norm")
  if config.head == "scalar":
    # From zero, so that no response is better than another at the start.
    specs["score"] = ArraySpec((1, width), (None, "embed"), start=0.0)
  elif not config.tied:
    specs["head"] = tokens
  if config.head == VALUED:
    # From zero: the first advantages are of rewards alone.
    specs["value_head"] = ArraySpec((1, width), (None, "embed"), start=0.0)
  return specs


def attention_weights(config):
  """{name: ArraySpec} of one layer's attention, its norms among them."""
  width = (config.width,), ("embed",)
  heads = (config.heads, config.head_dim), ("heads", None)
  groups = (config.kv_heads, config.head_dim), ("kv_heads", None)
  specs = {}
  if config.norms != "after":
    specs |= norm_weights(config, "attention_norm")
  for name, of in dict(query=heads, key=groups, value=groups).items():
    specs |= _matrix(name, width, of, config.qkv_bias)
  for name, (shape, axes) in dict(query_norm=heads, key_norm=groups).items():
    if config.qk_norm == "head":  # one norm, for every head
      shape, axes = shape[1:], axes[1:]
    if config.qk_norm:
      specs[name] = ArraySpec(shape, axes, start=1.0 - config.norm_shift)
  specs |= _matrix("out", heads, width, config.out_bias, _branch(config))
  if config.norms != "before":
    specs |= norm_weights(config, "attention_out_norm")
  return specs


def mlp_weights(config):
  """{name: ArraySpec} of one layer's MLP, its norms among them."""
  width = (config.width,), ("embed",)
  inner = (config.mlp_width,), ("mlp",)
  specs = {}
  for name in ("gate", "up") if config.gated else ("up",):
    specs |= _matrix(name, width, inner, config.mlp_bias)
  specs |= _matrix("down", inner, width, config.mlp_bias, _branch(config))
  return _between_norms(config, specs)


def expert_weights(config):
  """{name: ArraySpec} of one layer's experts and their router, norms too."""
  width = (config.width,), ("embed",)
  inner = (config.mlp_width,), ("expert_mlp",)
  each = _matrix("expert_gate", width, inner, False)
  each |= _matrix("expert_up", width, inner, False)
  each |= _matrix("expert_down", inner, width, False, _branch(config))
  specs = _matrix(ROUTER, width, ((config.experts,), (None,)), False)
  for name, spec in each.items():
    specs[name] = dataclasses.replace(
      spec,
      shape=(config.experts, *spec.shape),
      axes=("experts", *spec.axes),
    )
  return _between_norms(config, specs)


def _between_norms(config, specs):
  """The ArraySpecs of an MLP with the norms before and after it."""
  before, after = {}, {}
  if config.norms != "after" and config.parallel != "one":
    before = norm_weights(config, "mlp_norm")
  if config.norms != "before":
    after = norm_weights(config, "mlp_out_norm")
  return before | specs | after


def norm_weights(config, name):
  """{name: ArraySpec} of one norm over the width."""
  shape, axes = (config.width,), ("embed",)
  specs = {name: ArraySpec(shape, axes, start=1.0 - config.norm_shift)}
  if config.norm == "layer":
    specs[f"{name}_bias"] = ArraySpec(shape, axes, start=0.0)
  return specs


def _branch(config):
  """Branches end in small weights, so that depth does not scale the stream."""
  return 1.0 / math.sqrt(2 * config.layers)


def _matrix(name, inputs, outputs, has_bias, factor=1.0):
  """{name: ArraySpec} of a matrix and its bias.

  Args:
    name: of the matrix.
    inputs, outputs: (sizes, axes) of each side.
    has_bias: is there one?
    factor: of its standard deviation at the start.
  """
  (ins, in_axes), (outs, out_axes) = inputs, outputs
  scale = factor / math.sqrt(math.prod(ins))
  axes = in_axes + out_axes
  specs = {name: ArraySpec(ins + outs, axes, len(ins), scale)}
  if has_bias:
    specs[f"{name}_bias"] = ArraySpec(outs, out_axes, start=0.0)
  return specs


def numbers(tree):
  """The heads of one number of a tree, {} where it has none."""
  return {name: tree[name] for name in NUMBERS if name in tree}


def language_model(config, params):
  """(config, params) without the value head; as they are without one.

  `params` are a model's, or those of an adapter.
  """
  if config.head != VALUED:
    return config, params
  config = dataclasses.replace(config, head="tokens")
  return config, {k: one for k, one in params.items() if k != "value_head"}


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
  return init_table(table(config), key, dtype)


def init_table(specs, key, dtype=jnp.float32):
  """The same of a tree of ArraySpec."""
  specs, treedef = jax.tree.flatten(specs, is_leaf=is_spec)
  keys = jax.random.split(key, len(specs))

  def random(spec, key):
    normal = jax.random.normal(key, spec.shape, jnp.float32)
    return (spec.scale * normal).astype(dtype)

  arrays = [
    jnp.full(spec.shape, spec.start, dtype)
    if spec.scale is None
    else random(spec, key)
    for spec, key in zip(specs, keys, strict=True)
  ]
  return jax.tree.unflatten(treedef, arrays)


def count_parameters(config):
  """Number of weights, the embedding counted once where it is tied."""
  specs = jax.tree.leaves(table(config), is_leaf=is_spec)
  return sum(math.prod(spec.shape) for spec in specs)


def count_active(config, specs=None):
  """The same of those that one token meets: of experts, its own.

  `specs` are some of the table's; None is all of them.
  """

  def active(spec):
    size = math.prod(spec.shape)
    if "experts" in spec.axes:
      return size // config.experts * config.experts_per_token
    return size

  if specs is None:
    specs = jax.tree.leaves(table(config), is_leaf=is_spec)
  return sum(map(active, specs))
