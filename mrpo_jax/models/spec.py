# SPDX-License-Identifier: Apache-2.0
"""Every weight declared once: shape, meaning of each axis, Hugging Face name.

From the table of a model follow its abstract shapes, its initialisation, its
shardings (`parallel.py`) and its files (`hub.py`).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder of the Llama family: RMSNorm, RoPE, grouped queries, SwiGLU."""

  vocab_size: int
  width: int  # D
  layers: int  # L
  heads: int  # H
  kv_heads: int  # G, divides H
  head_dim: int  # E, even
  mlp_width: int  # F
  rope_theta: float = 10000.0
  norm_epsilon: float = 1e-5
  tied: bool = False  # the head is the embedding
  max_positions: int = 2048
  bos_id: int | None = None
  eos_id: int | None = None
  family: str = "llama"

  def __post_init__(self):
    if self.heads % self.kv_heads:
      raise ValueError(
        f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}"
      )
    if self.head_dim % 2:
      raise ValueError(f"head_dim={self.head_dim} is odd; RoPE turns pairs")


@dataclasses.dataclass(frozen=True)
class ArraySpec:
  """One weight, or the same weight of all L layers stacked on axis 0."""

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]  # logical; `parallel.RULES` maps them to a mesh
  name: str  # Hugging Face's; "{}" stands for the layer
  inputs: int = 0  # leading axes (after L) that a product sums over
  scale: float | None = None  # standard deviation at the start; None for ones

  @property
  def stacked(self):
    return self.axes[0] == "layers"


def table(config):
  """The nested dict of ArraySpec that is the model."""
  L, D, V = config.layers, config.width, config.vocab_size
  H, G, E, F = config.heads, config.kv_heads, config.head_dim, config.mlp_width
  # Residual branches start small, so that depth does not scale the stream.
  branch = 1.0 / math.sqrt(2 * L)

  def weight(shape, axes, name, inputs, factor=1.0):
    scale = factor / math.sqrt(math.prod(shape[:inputs]))
    name = f"model.layers.{{}}.{name}.weight"
    return ArraySpec((L, *shape), ("layers", *axes), name, inputs, scale)

  def norm(name):
    name = f"model.layers.{{}}.{name}.weight"
    return ArraySpec((L, D), ("layers", "embed"), name)

  heads, groups = ("embed", "heads", None), ("embed", "kv_heads", None)
  blocks = dict(
    attention_norm=norm("input_layernorm"),
    query=weight((D, H, E), heads, "self_attn.q_proj", 1),
    key=weight((D, G, E), groups, "self_attn.k_proj", 1),
    value=weight((D, G, E), groups, "self_attn.v_proj", 1),
    out=weight(
      (H, E, D), ("heads", None, "embed"), "self_attn.o_proj", 2, branch
    ),
    mlp_norm=norm("post_attention_layernorm"),
    gate=weight((D, F), ("embed", "mlp"), "mlp.gate_proj", 1),
    up=weight((D, F), ("embed", "mlp"), "mlp.up_proj", 1),
    down=weight((F, D), ("mlp", "embed"), "mlp.down_proj", 1, branch),
  )
  vocab = ((V, D), ("vocab", "embed"))
  specs = dict(
    embed=ArraySpec(*vocab, "model.embed_tokens.weight", scale=0.02),
    blocks=blocks,
    norm=ArraySpec((D,), ("embed",), "model.norm.weight"),
  )
  if not config.tied:
    specs["head"] = ArraySpec(*vocab, "lm_head.weight", scale=0.02)
  return specs


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
    jnp.ones(spec.shape, dtype)
    if spec.scale is None
    else (spec.scale * jax.random.normal(key, spec.shape)).astype(dtype)
    for spec, key in zip(specs, keys, strict=True)
  ]
  return jax.tree.unflatten(treedef, arrays)


def count_parameters(config):
  """Number of weights, the embedding counted once where it is tied."""
  specs = jax.tree.leaves(table(config), is_leaf=is_spec)
  return sum(math.prod(spec.shape) for spec in specs)
