# SPDX-License-Identifier: Apache-2.0
"""A step compiled before its weights are loaded: its time is said."""

import jax

from mrpo_jax.progress import stage


class Ahead:
  """A jitted step that is compiled for abstract arguments, and then called.

  A call with arguments that differ from them, in shape or in where they lie,
  compiles again and says so.
  """

  def __init__(self, what, jitted, arguments):
    """Args: words for the step; jax.jit's; tree of jax.ShapeDtypeStruct."""
    self._what, self._jitted, self._arguments = what, jitted, arguments
    with stage(f"compiling {what}"):
      self.compiled = jitted.lower(*arguments).compile()
    self._run = None

  def __call__(self, *arguments):
    if self._run is None:
      self._run = self._fitting(arguments)
    return self._run(*arguments)

  def _fitting(self, arguments):
    if alike(self._arguments, arguments):
      return self.compiled
    with stage(f"compiling {self._what} again, for arguments that lie apart"):
      return self._jitted.lower(*arguments).compile()


def alike(one, other):
  """Are two trees of arrays alike in shapes, dtypes and where they lie?"""

  def same(a, b):
    return (a.shape, a.dtype) == (b.shape, b.dtype) and (
      a.sharding.is_equivalent_to(b.sharding, a.ndim)
    )

  if jax.tree.structure(one) != jax.tree.structure(other):
    return False
  return all(jax.tree.leaves(jax.tree.map(same, one, other)))
