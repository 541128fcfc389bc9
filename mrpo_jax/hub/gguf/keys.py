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
IDLE = {"rope.scaling.finetuned"}
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
    self._read.add(key)
    value = self.metadata.get(key, default)
    if value is REQUIRED:
      raise InputError(f"{key} is missing")
    if value is default:
      return default
    return _checked(kind, key, value)

  def own(self, kind, key, default=REQUIRED):
    """The value of a key of the architecture, named without that."""
    whole = f"{self.architecture}.{key}"
    value = self.metadata.get(whole)
    if not isinstance(value, list):
      return self.general(kind, whole, default)
    self._read.add(whole)
    layers = self.metadata.get(f"{self.architecture}.block_count")
    if len(value) != layers or value.count(value[0]) < layers:
      raise UnsupportedModel(f"{whole}: layers that differ in it")
    return _checked(kind, whole, value[0])

  def has(self, key):
    """Is there such a key of the architecture?"""
    return f"{self.architecture}.{key}" in self.metadata

  def refuse_unread(self, start, is_idle):
    """UnsupportedModel for a key that nobody asked for.

    Args:
      start: of the keys that are looked at.
      is_idle: (the rest of a key, its value) -> may nobody ask for it?
    """
    for key, value in self.metadata.items():
      rest = key.removeprefix(start)
      asked = key in self._read or rest == key
      if not asked and not is_idle(rest, value):
        raise UnsupportedModel(f"{key}={str(value)[:40]} is not computed here")


def _checked(kind, key, value):
  want, fits = KINDS[kind]
  if not fits(value):
    raise InputError(f"{key}={repr(value)[:40]}; want {want}")
  return shortest(value) if kind == "number" else value


def is_idle(key, value):
  """Has a key of the architecture no part in the mathematics?"""
  return key in IDLE or (key in ZERO and not value)


def shortest(value):
  """A number of a file, a float32, as the shortest decimal that rounds to it.

  1e-05, not 9.999999747378752e-06, which is what float64 makes of it.
  """
  return float(str(np.float32(value)))
