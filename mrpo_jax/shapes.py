# SPDX-License-Identifier: Apache-2.0
"""Shapes checked at trace time, by the axes in the names of arrays."""

from typing import Any

import jax
import jax.numpy as jnp

CHOSEN, REJECTED = 0, 1  # places on the axis C of a pair


def widen(array: Any) -> jax.Array:
  """float32 or better; an explicit cast, so strict promotion stays happy."""
  array = jnp.asarray(array)
  return array if array.dtype == jnp.float64 else array.astype(jnp.float32)


def axes_of(name: str) -> str:
  """The axes in an array's name: its letters after the last underscore.

  >>> axes_of("ref_logp_BCK")
  'BCK'
  """
  return name.rpartition("_")[2]


def check(**arrays: Any) -> None:
  """Raises ValueError, naming array and axis, unless shapes fit the names.

  Args:
    **arrays: each by a name that ends in its axes: `check(logratio_BC=x)`.  An
      axis has the same size in all of them, and C, which is (chosen, rejected),
      has 2.  A list is no array.
  """
  sizes = {}  # axis -> (its size, the array that had it first)
  for name, array in arrays.items():
    axes = axes_of(name)
    want = f"`{name}` must have axes [{' '.join(axes)}]"
    if not hasattr(array, "shape"):
      kind = type(array).__name__
      raise ValueError(f"{want}, got a {kind}; jnp.asarray makes an array")
    shape = tuple(array.shape)
    if len(shape) != len(axes):
      raise ValueError(f"{want}, got shape {shape}")
    for axis, size in zip(axes, shape, strict=True):
      if axis == "C" and size != 2:
        raise ValueError(
          f"axis C (chosen, rejected) of `{name}` has size {size} and must be 2"
        )
      want, first = sizes.setdefault(axis, (size, name))
      if size != want:
        raise ValueError(
          f"axis {axis} has size {want} in `{first}`, but {size} in `{name}`"
        )
