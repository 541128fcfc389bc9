# SPDX-License-Identifier: Apache-2.0
"""Work of a compiled program, from its text: operations, bytes, collectives.

XLA's own analysis counts the body of a loop once.  Here it counts as often as
it runs: the compiler writes the number where it knows it; where it follows
from the data, the caller says it.  All figures are of one device.
"""

import dataclasses
import math
import re

import numpy as np

from mrpo_jax.performance import hlo_text, hlo_traffic

# Of attention, or of somebody's own, as parts of a custom call's target: Pallas
# on TPUs, cuDNN, Pallas on GPUs.
KERNELS = "tpu_custom_call", "__cudnn$fmha", "mosaic_gpu", "triton"
# A TPU's products by group, see `models.grouped`, and how many rows they have.
RAGGED = re.compile(
  r"(rows_of_experts_(?P<rows>\d+)/\S*)?ragged-dot-(none|metadata)"
)
COLLECTIVES = (
  *("all-reduce", "all-gather", "reduce-scatter", "all-to-all"),
  *("collective-permute", "ragged-all-to-all", "collective-broadcast"),
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """One exchange between devices, and how often it happens."""

  kind: str
  axes: tuple[str, ...]  # of the mesh
  bytes: float  # that each device sends in one exchange, at least
  away: float  # of these, to devices of other nodes
  times: float
  scope: str
  shapes: tuple  # of the result, see Instruction


@dataclasses.dataclass
class Work:
  """Operations, bytes and exchanges of one device in one run of a program."""

  flops: float = 0.0  # of products of matrices
  bytes: float = 0.0  # read from and written to its memory
  collectives: list = dataclasses.field(default_factory=list)
  kernels: dict = dataclasses.field(default_factory=dict)  # target -> calls
  # Of what is called by name too: attention whose shapes tell its operations,
  # and what nothing is known of but the bytes that it is given and gives.
  whole_kernels: dict = dataclasses.field(default_factory=dict)
  unknown_calls: dict = dataclasses.field(default_factory=dict)
  unknown_loops: set = dataclasses.field(default_factory=set)


def work(text, mesh_shape, trips=None, nodes=None):
  """The Work of a compiled program.

  Args:
    text: of the compiled program (`compiled.as_text()`).
    mesh_shape: {axis: size} in the order of the devices.
    trips: what the data decide, called with the name of a scope: how often a
      loop runs, of packed attention the share of its products that lengths
      leave.  None where nobody knows: then a loop runs once.
    nodes: the node of each device, in the order of the mesh; one by default.
  """
  computations, entry = hlo_text.parse(text)
  done = Work()
  count = math.prod(mesh_shape.values())
  nodes = np.zeros(count, int) if nodes is None else np.asarray(nodes)
  place = mesh_shape, nodes
  _walk(computations, entry, 1.0, place, trips or (lambda _: None), done)
  return done


def _walk(computations, name, times, place, trips, done, fused=False):
  here = computations[name]
  for one in here.values():
    done.flops += times * _flops(one, here, trips)
    if one.opcode == "custom-call":
      _note_call(one, times, computations, trips, done)
    kind = one.opcode.removesuffix("-start")
    if kind == "all-reduce" and "all-reduce-scatter" in name:
      kind = "reduce-scatter"  # as a TPU writes it
    if kind in COLLECTIVES:
      exchange = _collective(one, here, kind, times, *place)
      done.collectives += [exchange] if exchange.bytes else []
    if not fused:
      done.bytes += times * hlo_traffic.traffic(one, here, computations)
    runs = times
    if one.opcode == "while":
      count = _known_trips(one, computations)
      if count is None:
        count = trips(one.scope)
      if count is None:
        done.unknown_loops.add(one.scope)
        count = 1
      runs = times * count
    in_fusion = fused or not hlo_traffic.runs(one, computations)
    for called in one.called:
      _walk(computations, called, runs, place, trips, done, in_fusion)


def _known_trips(one, computations):
  """Trip count of a loop from 0 on, where the program says it; else None."""
  found = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', one.rest)
  if found:
    return int(found.group(1))
  condition = re.search(r"\bcondition=%?([\w.-]+)", one.rest).group(1)
  here = computations[condition]
  root = compared = hlo_text.root_of(here)
  if root.opcode == "fusion":  # of the comparison alone
    compared = hlo_text.root_of(computations[root.called[0]])
  bounds = [i for i in here.values() if i.opcode == "constant"]
  if "direction=LT" not in compared.rest or len(bounds) != 1:
    return None
  (bound,) = bounds[0].operands
  if not bound.isdecimal() or bounds[0].name not in root.operands:
    return None
  counter = next(name for name in root.operands if name != bounds[0].name)
  step = _step(one.called[0], here[counter].part, computations)
  return math.ceil(int(bound) / step) if step else None


def _step(body, part, computations):
  """The number that a loop's body adds to that part of its state, or None.

  More than 1 where the compiler has unrolled it.
  """
  here = computations[body]
  one, outer = here[hlo_text.root_of(here).operands[part]], None
  while one.opcode in ("copy", "bitcast", "get-tuple-element", "fusion"):
    if one.opcode == "fusion":
      outer = here, one
      here = computations[one.called[0]]
      one = hlo_text.root_of(here)
      if one.opcode == "tuple":
        one = here[one.operands[part]]
      continue
    if one.opcode == "get-tuple-element":
      part = one.part
    one = here[one.operands[0]]
  if one.opcode != "add":
    return None
  for name in one.operands:
    added = here[name]
    if added.opcode == "parameter" and outer is not None:
      around, fusion = outer
      added = around[fusion.operands[int(added.operands[0])]]
    if added.opcode == "constant" and added.operands[0].isdecimal():
      return int(added.operands[0])
  return None


# Products of matrices.


def _note_call(one, times, computations, trips, done):
  """Writes down what a program calls by name, where it is not seen into."""
  target = one.target
  if RAGGED.search(one.scope):
    return  # counted as a product
  if "__cudnn$fmha" in target and _share_seen(one, trips) is not None:
    found = done.whole_kernels
  elif any(part in target for part in KERNELS):
    found = done.kernels
  elif (
    target in hlo_traffic.FREE_TARGETS
    or "__cublas" in target
    or hlo_traffic.runs(one, computations)
  ):
    return
  else:
    found = done.unknown_calls
  found[target] = found.get(target, 0) + times


def _flops(one, here, trips):
  """Operations of one product of matrices; 0 of all else."""
  if one.opcode == "dot":
    left = here[one.operands[0]].shapes[0][1]
    summed = _numbers(r"lhs_contracting_dims=\{([\d,]*)\}", one.rest)
  elif one.opcode == "convolution":
    return _convolution_flops(one, here)
  elif "__cublas" in one.rest and '"dot_dimension_numbers"' in one.rest:
    left = here[one.operands[0]].shapes[0][1]
    summed = _numbers(r'"lhs_contracting_dimensions": ?\[([^\]]*)\]', one.rest)
  elif "__cudnn$fmha" in one.target:
    share = _share_seen(one, trips)
    return _attention_flops(one, here) * share if share else 0.0
  elif "ragged_dot_tiling" in one.rest:
    return _ragged_flops(one, here)
  else:
    return 0.0
  out = one.shapes[0][1]
  return 2.0 * math.prod(out) * math.prod(left[axis] for axis in summed)


def _ragged_flops(one, here):
  """A TPU's product by group: of the rows that are expected to have a group.

  Its last operands are what it multiplies: rows, and a matrix for each group
  or, for the gradient of these, other rows.
  """
  rows, width = here[one.operands[-2]].shapes[0][1]
  expected = RAGGED.search(one.scope)
  if expected and expected["rows"]:
    rows = min(rows, int(expected["rows"]))
  out = one.shapes[0][1]
  return 2.0 * rows * width * out[-1]


def _share_seen(one, trips):
  """The share of queries with keys that cuDNN's attention computes, or None.

  A mask that is an array (a bias) hides keys, and saves nothing; of packed
  sequences what is causal within each is computed, to its blocks.  Of others
  that skip blocks nobody knows.
  """
  if re.search(r'"sliding_window_length": ?"?[1-9]', one.rest):
    return None
  is_packed = re.search(r'"max_seg_per_batch": ?"?([2-9]|1\d)', one.rest)
  if is_packed and re.search(r'"mask_type": ?"PADDING_CAUSAL"', one.rest):
    return trips(one.scope)
  is_whole = re.search(r'"mask_type": ?"NO_MASK"', one.rest) and not is_packed
  return 1.0 if is_whole else None


def _attention_flops(one, here):
  """Two products forward; backward the scores again, and four gradients."""
  B, H, T, S = _numbers(
    r'"intermediate_tensor_shape": ?\{.*?"dimensions": ?\[([^\]]*)\]', one.rest
  )
  head_dim = hlo_text.size(here[one.operands[0]].shapes[0]) / (B * H * T)
  products = 5 if "Backward" in one.target else 2
  return products * 2.0 * B * H * T * S * head_dim


def _numbers(pattern, text):
  found = re.search(pattern, text)
  return [int(n) for n in re.findall(r"\d+", found.group(1))] if found else []


def _convolution_flops(one, here):
  """A TPU writes products as convolutions; of padding nothing is counted."""
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.rest)
  left, right, out = labels.groups()
  sizes = [here[name].shapes[0][1] for name in one.operands[:2]]
  out_size = dict(zip(out, one.shapes[0][1], strict=True))
  left_size = dict(zip(left, sizes[0], strict=True))
  right_size = dict(zip(right, sizes[1], strict=True))
  total = 2.0 * out_size["b"] * out_size["f"] * right_size["i"]
  window = re.search(r"window=\{([^}]*)\}", one.rest)
  given = dict(
    part.split("=") for part in (window.group(1).split() if window else [])
  )

  def of_window(key, axis, default):
    return given[key].split("x")[axis] if key in given else default

  for axis in range(len(left) - 2):
    name = str(axis)
    low = int(of_window("pad", axis, "0_0").split("_")[0])
    step = int(of_window("stride", axis, 1))
    spread = int(of_window("lhs_dilate", axis, 1))
    reach = int(of_window("rhs_dilate", axis, 1))
    at = (
      np.arange(out_size[name])[:, None] * step
      - low
      + np.arange(right_size[name])[None] * reach
    )
    last = (left_size[name] - 1) * spread
    total *= int(((at >= 0) & (at <= last) & (at % spread == 0)).sum())
  return total


# Exchanges.


def _collective(one, here, kind, times, mesh_shape, nodes):
  groups, axes = _axes(one.rest, mesh_shape)
  if groups is None:
    groups = np.arange(len(nodes))[None]
  n = groups.shape[1]
  given = sum(here[name].all_bytes for name in one.operands if name in here)
  share = (n - 1) / n
  sent = {
    "all-reduce": 2 * share * given,
    "all-gather": (n - 1) * given,
    "reduce-scatter": share * given,
    "collective-permute": given,
  }.get(kind, share * given)
  away = sent * _share_away(kind, nodes[groups])
  return Collective(
    kind, axes, sent, away, times, one.scope, tuple(map(tuple, one.shapes))
  )


def _share_away(kind, node_NG):
  """Of what a device sends, what goes to other nodes: the most of any group.

  Where all of a group are to have the same, or add to it, a piece enters each
  node once, by one of its devices, which hands it on there: of the G - 1 pieces
  that a device gets as many come from outside as there are other nodes.  Of an
  all-to-all those for the devices of other nodes do; a permutation waits for
  the device that sends all it has to another.
  """
  most, G = 0.0, node_NG.shape[1]
  for node_G in node_NG:
    _, counts = np.unique(node_G, return_counts=True)
    if len(counts) == 1:
      continue
    if kind == "collective-permute":
      return 1.0
    others = G - counts.min() if "all-to-all" in kind else len(counts) - 1
    most = max(most, others / (G - 1))
  return most


def _axes(rest, mesh_shape):
  """(groups of devices [N, n], axes of the mesh that they run along)."""
  groups = _groups(rest)
  if groups is None or groups.size == 0:
    return None, tuple(axis for axis, n in mesh_shape.items() if n > 1)
  sizes = tuple(mesh_shape.values())
  places = np.stack(np.unravel_index(groups, sizes), -1)  # [N, n, axes]
  moves = (places != places[:, :1]).any(axis=(0, 1))
  axes = tuple(
    axis for axis, moving in zip(mesh_shape, moves, strict=True) if moving
  )
  return groups, axes


def _groups(rest):
  """Places among the devices that talk to each other [N, n], or None.

  As lists, as strides of a range, or as axes of a mesh of the compiler's own,
  whole ones or (size of what stands before)size parts of them.
  """
  if found := re.search(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]*)\]\))? "
    r"\{([^}]*)\}",
    rest,
  ):
    return _mesh_groups(*found.groups())
  if found := re.search(
    r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest
  ):
    shape, source, order = (
      tuple(map(int, part.split(","))) if part else None
      for part in found.groups()
    )
    ids = np.arange(math.prod(source)).reshape(source)
    return (ids.transpose(order) if order else ids).reshape(shape)
  key = r"(?:replica_groups|source_target_pairs)"
  if found := re.search(key + r"=\{(\{.*?\})\}", rest):
    rows = re.findall(r"\{([\d,]*)\}", found.group(1))
    return np.array([list(map(int, row.split(","))) for row in rows])
  return None


def _mesh_groups(axes, ids, along):
  sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", axes)}
  shape, at = [], {}
  parts = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", along)
  for name, size in sizes.items():
    cuts = sorted(
      (int(before or 1), int(n or size))
      for axis, before, n in parts
      if axis == name
    )
    done = 1
    for before, n in cuts:
      shape.append(before // done)
      at[name, before] = len(shape)
      shape.append(n)
      done = before * n
    shape.append(size // done)
  chosen = [at[axis, int(before or 1)] for axis, before, _ in parts]
  total = math.prod(sizes.values())
  order = np.array(ids.split(","), int) if ids else np.arange(total)
  rest = [axis for axis in range(len(shape)) if axis not in chosen]
  width = math.prod(shape[axis] for axis in chosen)
  return order.reshape(shape).transpose(rest + chosen).reshape(-1, width)
