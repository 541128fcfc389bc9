# SPDX-License-Identifier: Apache-2.0
"""Keys of a GGUF file's metadata, each checked as it is asked for.

A key of the architecture that nobody asks for may change the mathematics, and
is refused by name.
"""

import math

import numpy as np

from mrpo_jax.errors import InputError
from mrpo_jax.models.families.family import UnsupportedModel

REQUIRED = object()
# Of the architecture, and without a part in the model's mathematics.
IDLE = {"vocab_size", "rope.scaling.finetuned"}
# Of features that a zero switches off.
ZERO = {"expert_count", "expert_used_count", "attention.clamp_kqv"}
KINDS = {  # kind -> what a value must be
  "size": ("a positive integer", lambda v: type(v) is int and v > 0),
  "count": ("an integer from 0 on", lambda v: type(v) is int and v >= 0),
  "number": (
    "a positive number",
    lambda v: type(v) in (int, float) and 0 < v < math.inf,
  ),
  "flag": ("true or false", lambda v: type(v) is bool),
  "text": ("a text", lambda v: type(v) is str),
  "token": ("a token id", lambda v: type(v) is int and v >= 0),
}


class Keys:
  """The metadata of a file, and which keys of its architecture were read."""

  def __init__(self, metadata):
    self.metadata, self._read = metadata, set()
    self.architecture = self.general("text", "general.architecture")

  def general(self, kind, key, default=REQUIRED):
    """The value of a whole key, of this kind of KINDS."""
    value = self.metadata.get(key, default)
    if value is REQUIRED:
      raise InputError(f"{key} is missing")
    if value is default:
      return default
    if isinstance(value, list):  # one for each layer
      if not value or value.count(value[0]) < len(value):
        raise UnsupportedModel(f"{key}: layers that differ in it")
      value = value[0]
    want, fits = KINDS[kind]
    if not fits(value):
      raise InputError(f"{key}={value!r}; want {want}")
    return shortest(value) if kind == "number" else value

  def own(self, kind, key, default=REQUIRED):
    """The value of a key of the architecture, named without that."""
    self._read.add(key)
    return self.general(kind, f"{self.architecture}.{key}", default)

  def refuse_unread(self):
    """UnsupportedModel for a key of the architecture that nobody asked for."""
    start = f"{self.architecture}."
    for whole, value in self.metadata.items():
      key = whole.removeprefix(start)
      idle = key in IDLE or (key in ZERO and not value)
      if whole.startswith(start) and key not in self._read and not idle:
        raise UnsupportedModel(
          f"{whole}={str(value)[:40]} is not computed here"
        )


def shortest(value):
  """A number of a file, a float32, as the shortest decimal that rounds to it.

  1e-05, not 9.999999747378752e-06, which is what float64 makes of it.
  """
  return float(str(np.float32(value)))
