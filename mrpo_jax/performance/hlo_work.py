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
  unknown_loops: set = dataclasses.field(default_factory=set)


def work(text, mesh_shape, trips=None):
  """The Work of a compiled program.

  Args:
    text: of the compiled program (`compiled.as_text()`).
    mesh_shape: {axis: size} in the order of the devices.
    trips: scope of a loop -> how often it runs, where the data decide; called
      with the name of the scope, None where nobody knows: then once.
  """
  computations, entry = hlo_text.parse(text)
  done = Work()
  _walk(computations, entry, 1.0, mesh_shape, trips or (lambda _: None), done)
  return done


def _walk(computations, name, times, mesh_shape, trips, done, fused=False):
  here = computations[name]
  for one in here.values():
    done.flops += times * _flops(one, here)
    if _is_kernel(one.target):
      done.kernels[one.target] = done.kernels.get(one.target, 0) + times
    kind = one.opcode.removesuffix("-start")
    if kind == "all-reduce" and "all-reduce-scatter" in name:
      kind = "reduce-scatter"  # as a TPU writes it
    if kind in COLLECTIVES:
      exchange = _collective(one, here, kind, times, mesh_shape)
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
      _walk(computations, called, runs, mesh_shape, trips, done, in_fusion)


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


def _is_kernel(target):
  return target == "tpu_custom_call" or "fmha" in target.lower()


def _flops(one, here):
  """Operations of one product of matrices; 0 of all else."""
  if one.opcode == "dot":
    left = here[one.operands[0]].shapes[0][1]
    summed = _numbers(r"lhs_contracting_dims=\{([\d,]*)\}", one.rest)
  elif one.opcode == "convolution":
    return _convolution_flops(one, here)
  elif "__cublas" in one.rest and '"dot_dimension_numbers"' in one.rest:
    left = here[one.operands[0]].shapes[0][1]
    summed = _numbers(r'"lhs_contracting_dimensions":\[([^\]]*)\]', one.rest)
  else:
    return 0.0
  out = one.shapes[0][1]
  return 2.0 * math.prod(out) * math.prod(left[axis] for axis in summed)


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


def _collective(one, here, kind, times, mesh_shape):
  groups, axes = _axes(one.rest, mesh_shape)
  n = groups.shape[1] if groups is not None else math.prod(mesh_shape.values())
  given = sum(here[name].all_bytes for name in one.operands if name in here)
  share = (n - 1) / n
  sent = {
    "all-reduce": 2 * share * given,
    "all-gather": (n - 1) * given,
    "reduce-scatter": share * given,
    "collective-permute": given,
  }.get(kind, share * given)
  return Collective(
    kind, axes, sent, times, one.scope, tuple(map(tuple, one.shapes))
  )


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
