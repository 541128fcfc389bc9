# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters: made, attached, split off and merged."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import qwix

from mrpo_jax.models import parameters, weights


@dataclasses.dataclass(frozen=True)
class Adapter:
  """A LoRA: the matrices that it changes, its rank and its scale."""

  rank: int
  alpha: float
  targets: tuple[str, ...] = ("all",)  # leaves of the blocks
  rslora: bool = False
  dropout: float = 0.0  # of the adapters' input, in training alone
  # (leaf, its scale in each layer) of those that have scales of their own.
  scales: tuple[tuple[str, tuple[float, ...]], ...] = ()

  @property
  def scale(self):
    """alpha / rank, or alpha / sqrt(rank): rsLoRA, arXiv:2312.03732."""
    return self.alpha / self.divisor

  @property
  def divisor(self):
    """What an alpha is divided by."""
    return math.sqrt(self.rank) if self.rslora else self.rank

  def to_json(self):
    """A dict for json.dump; `scales` where there are some."""
    values = dataclasses.asdict(self)
    values["scales"] = dict(self.scales)
    return {k: one for k, one in values.items() if k != "scales" or one}

  @classmethod
  def of_json(cls, values):
    """The Adapter that `to_json` wrote."""
    scales = values.get("scales", {}).items()
    scales = tuple((leaf, tuple(own)) for leaf, own in scales)
    targets = tuple(values["targets"])
    return cls(**{**values, "targets": targets, "scales": scales})


def is_lora(node):
  return isinstance(node, weights.LoRA)


def map_weights(function, params):
  """`function` of every LoRA, the other leaves as they are."""
  return jax.tree.map(
    lambda leaf: function(leaf) if is_lora(leaf) else leaf,
    params,
    is_leaf=is_lora,
  )


def adapter_table(table, adapter):
  """The tree of ArraySpec that an adapter adds to a model: what is trained.

  Args:
    table: `parameters.table` of the model.
    adapter: Adapter.

  Returns:
    {"blocks": {target: {"a": ArraySpec, "b": ArraySpec}}}, and the model's
    "score" or "value_head" where it has such a head, which is trained whole.

  Raises:
    ValueError: a target that is no matrix of the blocks or one of experts, or
      a rank that is larger than a matrix.
  """
  known = adaptable(table)
  fixed = {parameters.ROUTER, *weights.matrices(table)} - known.keys()
  targets = tuple(known) if "all" in adapter.targets else adapter.targets
  for target in targets:
    if target in fixed:
      raise ValueError(
        f"targets: no adapter of {target!r} is computed here; known of this "
        f"model: {', '.join(known)}"
      )
    if target not in known:
      raise ValueError(
        f"targets: {target!r} is no matrix of this model; known: all, "
        f"{', '.join(known)}"
      )
  pairs = {name: _pair(known[name], name, adapter.rank) for name in targets}
  return {"blocks": pairs, **parameters.numbers(table)}


def adaptable(table):
  """{name: ArraySpec} of the matrices that an adapter may change.

  Those of experts stay: what their adapters are called in a folder, and
  whether all share one, differs between versions of PEFT.
  """
  return {
    name: spec
    for name, spec in weights.matrices(table).items()
    if "experts" not in spec.axes
  }


def _pair(spec, name, rank):
  first, cut = spec.cut
  inputs, outputs = spec.shape[first:cut], spec.shape[cut:]
  smaller = min(math.prod(inputs), math.prod(outputs))
  if rank > smaller:
    raise ValueError(f"rank={rank} is larger than {name}, of rank {smaller}")
  L = spec.shape[:1]
  return {
    "a": parameters.ArraySpec(
      (*L, *inputs, rank),
      (*spec.axes[:cut], None),
      inputs=spec.inputs,
      scale=math.prod(inputs) ** -0.5,
    ),
    "b": parameters.ArraySpec(
      (*L, rank, *outputs),
      ("layers", None, *spec.axes[cut:]),
      inputs=1,
      start=0.0,
    ),
  }


def init_adapters(table, key):
  """Arrays in the shape of `adapter_table`, float32 whatever the base is.

  As PEFT starts them: `a` is uniform within 1 / sqrt(inputs), its Kaiming
  initialisation with slope sqrt(5); `b` is zero, so nothing changes yet.
  """
  table, treedef = jax.tree.flatten(table, is_leaf=parameters.is_spec)
  keys = jax.random.split(key, len(table))
  arrays = [
    # Without its dtype it would be weakly typed, and the step compile twice.
    jnp.full(spec.shape, spec.start, jnp.float32)
    if spec.scale is None
    else jax.random.uniform(key, spec.shape, jnp.float32, -1.0) * spec.scale
    for spec, key in zip(table, keys, strict=True)
  ]
  return jax.tree.unflatten(treedef, arrays)


def attach(params, arrays, adapter, place=jnp.asarray):
  """The same tree with LoRA leaves: `arrays` beside the matrices they change.

  Args:
    params: tree of a model; its leaves are shared, not copied.
    arrays: tree of arrays in the shape of `adapter_table`.
    adapter: Adapter.
    place: puts the scales [L] of a leaf, as float32, to where it is used.
  """
  blocks, scales = dict(params["blocks"]), dict(adapter.scales)
  for name, pair in arrays["blocks"].items():
    own = scales.get(name)
    blocks[name] = weights.LoRA(
      blocks[name],
      pair["a"],
      pair["b"],
      scale=adapter.scale,
      scales=None if own is None else place(np.asarray(own, np.float32)),
      dropout=adapter.dropout,
    )
  return {**params, "blocks": blocks, **parameters.numbers(arrays)}


def split(params):
  """(frozen, trained): the tree without its adapters, and those.

  `trained` is in the shape of `adapter_table`.  Of a tree without adapters all
  is trained: (None, params).
  """
  pairs = {
    name: {"a": leaf.a, "b": leaf.b}
    for name, leaf in params["blocks"].items()
    if is_lora(leaf)
  }
  if not pairs:
    return None, params
  frozen = map_weights(lambda leaf: leaf.replace(a=None, b=None), params)
  heads = parameters.numbers(params)
  return frozen | dict.fromkeys(heads), {"blocks": pairs, **heads}


def join(frozen, trained, key=None):
  """The tree that `split` took apart.

  Args:
    frozen: tree with holes, or None.
    trained: what fills them, or the whole tree.
    key: of the dropout; None drops nothing.
  """
  if frozen is None:
    return trained
  blocks = dict(frozen["blocks"])
  for i, (name, pair) in enumerate(sorted(trained["blocks"].items())):
    leaf = blocks[name].replace(**pair)
    if key is not None and leaf.dropout:
      layers = pair["a"].shape[0]
      leaf = leaf.replace(
        key=jax.random.split(jax.random.fold_in(key, i), layers)
      )
    blocks[name] = leaf
  return {**frozen, "blocks": blocks, **parameters.numbers(trained)}


def strip(params):
  """The tree with its adapters off: the same arrays, nothing is copied."""
  return map_weights(lambda leaf: leaf.base, params)


def merge(params):
  """The tree as plain arrays, the adapters added to their bases.

  Sums in float32.  An array keeps its dtype; what was quantised gets that of
  the norms, and is the weight that was computed with, not the one before it
  was quantised.
  """
  dtype = params["norm"].dtype

  def merged(leaf):
    base = leaf.base if is_lora(leaf) else leaf
    kind = dtype if isinstance(base, qwix.QArray) else base.dtype
    if not is_lora(leaf):
      return weights.dense(leaf, kind)
    L, rank = base.shape[0], leaf.a.shape[-1]
    change = jnp.matmul(
      leaf.a.astype(jnp.float32).reshape(L, -1, rank),
      leaf.b.astype(jnp.float32).reshape(L, rank, -1),
      precision="highest",
    )
    scale = leaf.scale
    if leaf.scales is not None:
      scale = leaf.scales[:, None, None]
    change = (scale * change).reshape(base.shape)
    return (weights.dense(base, jnp.float32) + change).astype(kind)

  return jax.tree.map(
    merged,
    params,
    is_leaf=lambda node: isinstance(node, weights.LoRA | qwix.QArray),
  )
