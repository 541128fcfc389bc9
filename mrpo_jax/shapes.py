# SPDX-License-Identifier: Apache-2.0
"""Trace-time contracts: `check("B C", x, "B C K", y)` binds each name once."""

import jax.numpy as jnp

CHOSEN, REJECTED = 0, 1  # places on the axis C of a pair


def widen(array):
  """float32 or better; an explicit cast, so strict promotion stays happy."""
  array = jnp.asarray(array)
  return array if array.dtype == jnp.float64 else array.astype(jnp.float32)


def check(*pairs):
  """Raises ValueError, naming the axis, unless every array fits its spec.

  Args:
    *pairs: alternating specs and arrays.  A spec is a string of axis names or
      literal sizes, e.g. "B 2 K"; the same name must mean the same size.

  Returns:
    A dict from axis name to size.
  """
  sizes = {}
  for spec, array in zip(pairs[::2], pairs[1::2], strict=True):
    names = spec.split()
    if array.ndim != len(names):
      raise ValueError(f"want axes [{spec}], got shape {tuple(array.shape)}")
    for name, size in zip(names, array.shape, strict=True):
      want = int(name) if name.isdigit() else sizes.setdefault(name, size)
      if size != want:
        raise ValueError(
          f"want axes [{spec}] with {name}={want}, got {tuple(array.shape)}"
        )
  return sizes
