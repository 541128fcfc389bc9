# SPDX-License-Identifier: Apache-2.0
"""Parser of HLO, the text of a compiled XLA program."""

import dataclasses
import functools
import math
import re

BYTES = {  # of a dtype, as HLO names it
  "pred": 1,
  "s4": 0.5,
  "u4": 0.5,
  "bf16": 2,
  "c64": 8,
  "c128": 16,
  "token": 0,
}
SHAPE = re.compile(r"\b([a-z]+\d*[a-z\d]*)\[([\d,]*)\](\{[^}]*\})?")
LINE = re.compile(r"^\s*(ROOT )?%?([\w.-]+) = (.*)$")
HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
CALLED = re.compile(
  r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.-]+)"
)
BRANCHES = re.compile(r"(?:branch|called)_computations=\{([^}]*)\}")
CALLS = ("fusion", "call", "async", "conditional", "custom-call")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation."""

  name: str
  type: str  # "f32[8,16]{1,0}", or a tuple of such
  opcode: str
  operands: tuple[str, ...]
  rest: str  # attributes, metadata
  is_root: bool

  @functools.cached_property
  def shapes(self):
    """[(dtype, sizes, layout)] of its results."""
    return [
      (dtype, tuple(map(int, filter(None, sizes.split(",")))), layout)
      for dtype, sizes, layout in SHAPE.findall(self.type)
    ]

  @property
  def all_bytes(self):
    """Of its results, wherever they lie."""
    return sum(_width(shape[0]) * size(shape) for shape in self.shapes)

  @property
  def called(self):
    """Names of the computations that run when it does."""
    if self.opcode == "while":
      return [re.search(r"\bbody=%?([\w.-]+)", self.rest).group(1)]
    if branches := BRANCHES.search(self.rest):
      return re.findall(r"%?([\w.-]+)", branches.group(1))
    if self.opcode.removesuffix("-start") in CALLS:
      return CALLED.findall(self.rest)
    return []

  @property
  def part(self):
    """Index of the part of a tuple that it takes; None where it is all."""
    found = re.search(r"\bindex=(\d+)", self.rest)
    return int(found.group(1)) if found else None

  @property
  def target(self):
    """What a custom call runs; "" of all else."""
    found = re.search(r'custom_call_target="([^"]*)"', self.rest)
    return found.group(1) if found else ""

  @property
  def scope(self):
    """The name scopes of jax that it comes from."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found.group(1) if found else ""


def parse(text):
  """({name: {instruction's name: Instruction}}, name of the entry)."""
  computations, entry, here = {}, None, None
  for line in text.split("\n"):
    if head := HEAD.match(line):
      here = computations[head.group(2)] = {}
      entry = head.group(2) if head.group(1) else entry
    elif here is not None and (found := LINE.match(line)):
      one = _instruction(*found.groups())
      here[one.name] = one
  return computations, entry


def root_of(computation):
  """The Instruction whose result is that of the computation."""
  return next(one for one in computation.values() if one.is_root)


def _instruction(root, name, rest):
  rest = re.sub(r"/\*.*?\*/", "", rest)
  if rest.startswith("("):
    end = _closing(rest, 0)
    kind, rest = rest[: end + 1], rest[end + 1 :].lstrip()
  else:
    kind, _, rest = rest.partition(" ")
  opcode, _, _ = rest.partition("(")
  end = _closing(rest, len(opcode))
  inside = rest[len(opcode) + 1 : end]
  operands = tuple(re.findall(r"%([\w.-]+)", inside))
  if opcode in ("parameter", "constant"):
    operands = (inside,)
  return Instruction(
    name, kind, opcode, operands, rest[end + 1 :], root is not None
  )


def _closing(text, start):
  """The index at which the parenthesis that opens at `start` closes."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == "(") - (text[i] == ")")
    if not depth:
      return i
  return len(text)


def size(shape):
  """Elements of one of an instruction's `shapes`."""
  return math.prod(shape[1])


def bytes_of(shape, elements=None):
  """Bytes of all elements, or so many, in the large memory.

  S(1), S(6), ... are memories on the chip: what lies there does not count.
  """
  dtype, _, layout = shape
  if "S(" in layout:
    return 0.0
  return _width(dtype) * (size(shape) if elements is None else elements)


def _width(dtype):
  """Bytes of one number."""
  if dtype in BYTES:
    return BYTES[dtype]
  digits = re.match(r"[a-z]+(\d+)", dtype)
  return int(digits.group(1)) / 8 if digits else 0
