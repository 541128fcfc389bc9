# SPDX-License-Identifier: Apache-2.0
"""Memory traffic of HLO instructions: what each reads and writes.

A fusion reads of an operand what its results need: of a stack of weights the
layer that is sliced, however deep in the fusion the slice stands.  A result
that is an operand with some places written anew (dynamic-update-slice,
scatter) shares its buffer: the other places are neither read nor written.  So
what is needed is followed from the results to the operands.
"""

import collections
import dataclasses

from mrpo_jax.performance import hlo_text

# Opcodes that move no bytes by themselves.
FREE = {
  *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
  *("while", "conditional", "call", "after-all", "partition-id", "iota"),
  *("optimization-barrier", "opt-barrier", "replica-id", "get-dimension-size"),
  *("add-dependency", "async-start", "async-update", "async-done"),
}
FREE_TARGETS = ("AllocateBuffer", "AssumeGatherIndicesInBound")
# Each element of the result is one of an operand, or none.
MOVES = {
  *("bitcast", "copy", "reshape", "transpose", "reverse", "broadcast", "pad"),
  *("concatenate", "slice"),
}
# Of the same sizes as an operand or not: an element may need all of it.
WHOLE = {
  *("dot", "convolution", "custom-call", "sort", "fft", "reduce-window"),
  *("select-and-scatter", "cholesky", "triangular-solve"),
}


@dataclasses.dataclass(frozen=True)
class Need:
  """What is wanted of an array."""

  elements: float = 0  # whose values are read
  is_place: bool = False  # its buffer is written into

  def __add__(self, other):
    return Need(self.elements + other.elements, self.is_place or other.is_place)


@dataclasses.dataclass(frozen=True)
class Update:
  """Where a result is an operand's buffer, and how much of it is new."""

  operand: int
  elements: float


def traffic(one, here, computations):
  """Bytes that an instruction reads and writes, beside what it calls.

  Args:
    one: Instruction that is not within a fusion.
    here: the computation that it stands in.
    computations: all of them, see `hlo_text.parse`.
  """
  if one.opcode in FREE or one.target in FREE_TARGETS:
    return 0.0
  if one.opcode.endswith("-start") or runs(one, computations):
    return 0.0  # counted where it is done, and where it runs
  if one.opcode.endswith("-done"):
    done, one = one, _begun(one, here)
    if one is None:
      return done.all_bytes  # moved once at least
  results, total = [], 0.0
  taken = _taken(one, here)
  for part, shape in enumerate(one.shapes):
    update = _update(one, part, here, computations)
    if part not in taken:
      results.append(Need())
    elif update is None or not update.elements:
      results.append(Need(hlo_text.size(shape)))
      total += hlo_text.bytes_of(shape)
    else:
      results.append(Need(is_place=True))
      total += hlo_text.bytes_of(shape, update.elements)
  wanted = collections.defaultdict(Need)
  needs = _needs(one, results, here, computations)
  for name, need in zip(one.operands, needs, strict=True):
    wanted[name] += need
  for name, need in wanted.items():
    share = min(1, need.elements / max(1, _size(name, here)))
    for shape in here[name].shapes:
      total += hlo_text.bytes_of(shape, share * hlo_text.size(shape))
  return total


def runs(one, computations):
  """Does what it calls move the bytes?  Then they are counted there.

  Not so what a fusion calls.  A custom call may hand on its operands, as a
  TPU's gather on its sparse cores does; what it only compares or adds with
  takes single numbers.
  """
  opcode = one.opcode.removesuffix("-start")
  if opcode != "custom-call":
    return opcode in ("while", "conditional", "call", "async")
  return any(
    hlo_text.size(i.shapes[0]) > 1
    for name in one.called
    for i in computations[name].values()
    if i.opcode == "parameter"
  )


def _begun(done, here):
  """The instruction that a `-done` ends, as if it were not asynchronous.

  None where it began elsewhere, as in the turn of a loop before.
  """
  start = here[done.operands[0]]
  opcode = done.opcode.removesuffix("-done")
  if start.opcode != f"{opcode}-start":
    return None
  return dataclasses.replace(start, opcode=opcode, type=done.type)


def _taken(one, here):
  """Numbers of its results that something takes: a kernel's scratch is not.

  cuDNN's attention writes what it was asked for, taken or not: its scratch is
  bytes.
  """
  parts = set(range(len(one.shapes)))
  if "__cudnn$fmha" in one.target:
    return {part for part in parts if one.shapes[part][0] != "u8"}
  if one.opcode != "custom-call" or one.is_root or len(parts) == 1:
    return parts
  users = [user for user in here.values() if one.name in user.operands]
  if any(user.opcode != "get-tuple-element" for user in users):
    return parts
  return {user.part for user in users}


# Updates in place.


def _update(one, part, here, computations):
  """The Update that a result is, None where it is an array of its own."""
  if one.opcode == "bitcast":
    return Update(0, 0)
  if one.opcode == "dynamic-update-slice":
    return Update(0, _size(one.operands[1], here))
  if one.opcode == "scatter":
    count = len(one.operands) // 2
    return Update(part, _size(one.operands[count + 1 + part], here))
  if one.opcode != "fusion":
    return None
  inner, elements = computations[one.called[0]], 0
  one = hlo_text.root_of(inner)
  while one.opcode != "parameter":
    if one.opcode == "tuple":
      one, part = inner[one.operands[part]], 0
    elif one.opcode == "get-tuple-element":
      one, part = inner[one.operands[0]], one.part
    else:
      update = _update(one, part, inner, computations)
      if update is None:
        return None
      elements += update.elements
      one, part = inner[one.operands[update.operand]], 0
  return Update(int(one.operands[0]), elements)


def _size(name, here):
  return sum(map(hlo_text.size, here[name].shapes))


# Needs, from results to operands.


def _needs(one, results, here, computations):
  """[Need] of each operand, from those of the results."""
  if one.opcode == "fusion":
    return _needs_of_fusion(one, results, computations)
  if one.opcode == "tuple":
    return results
  sizes = [_size(name, here) for name in one.operands]
  most = max((need.elements for need in results), default=0)
  if one.opcode == "dynamic-update-slice":
    return _needs_of_update(results[0], sizes)
  if one.opcode == "scatter":
    return _needs_of_scatter(results, sizes)
  if one.opcode == "gather":
    return [Need(most), Need(sizes[1])]
  if one.opcode == "dynamic-slice":  # where it begins is a few scalars
    return [Need(most), *[Need()] * (len(sizes) - 1)]
  if one.opcode in ("bitcast", "bitcast-convert", "reduce"):
    share = most / max(1, hlo_text.size(one.shapes[0]))
    is_place = one.opcode == "bitcast" and results[0].is_place
    return [Need(share * size, is_place) for size in sizes]
  return [
    Need(most if _is_partial(one, here[name]) else size)
    for name, size in zip(one.operands, sizes, strict=True)
  ]


def _is_partial(one, operand):
  """Does an element of the result need one element of the operand?"""
  if one.opcode in WHOLE:
    return False
  return one.opcode in MOVES or _sizes(one) == _sizes(operand)


def _sizes(one):
  return [sizes for _, sizes, _ in one.shapes[:1]]


def _needs_of_update(result, sizes):
  new = sizes[1]
  rest = Need(max(0, result.elements - new), result.is_place)
  written = new if result.is_place else min(new, result.elements)
  return [rest, Need(written), *[Need()] * (len(sizes) - 2)]


def _needs_of_scatter(results, sizes):
  """It reads what it adds to, too."""
  count = len(results)
  indices, new = sizes[count], sizes[count + 1 :]
  arrays = [
    Need(need.elements + (size if need.is_place else 0), need.is_place)
    for need, size in zip(results, new, strict=True)
  ]
  return [*arrays, Need(indices), *map(Need, new)]


def _needs_of_fusion(fusion, results, computations):
  inner = computations[fusion.called[0]]
  root = hlo_text.root_of(inner).name
  wanted = collections.defaultdict(Need)  # of (name, part of a tuple)
  wanted |= {(root, part): need for part, need in enumerate(results)}
  read = [Need()] * len(fusion.operands)
  for one in reversed(inner.values()):  # each after what it takes
    needs = [
      Need(min(need.elements, hlo_text.size(shape)), need.is_place)
      for part, shape in enumerate(one.shapes)
      for need in [wanted[one.name, part]]
    ]
    if one.opcode == "parameter":
      read[int(one.operands[0])] = needs[0]
    elif one.opcode == "get-tuple-element":
      wanted[one.operands[0], one.part] += needs[0]
    elif one.opcode != "constant" and Need() != sum(needs, Need()):
      of_operands = _needs(one, needs, inner, computations)
      for name, need in zip(one.operands, of_operands, strict=True):
        wanted[name, 0] += need
  return read
