# SPDX-License-Identifier: Apache-2.0
"""A step compiled before its weights are read: its time and memory are said."""

import logging

import jax

from mrpo_jax.errors import InputError
from mrpo_jax.progress import stage
from mrpo_jax.runs import memory
from mrpo_jax.runs.setup import resized
from mrpo_jax.text import sized_bytes

logger = logging.getLogger(__name__)


class Ahead:
  """A jitted step that was compiled for abstract arguments, to be called.

  A first call with arguments that differ from them, in shape or in where and
  how they lie, compiles again and says so.  Integers of 4 bits always do: what
  is compiled ahead refuses the layout that JAX itself gives them.
  """

  def __init__(self, what, jitted, arguments, compiled):
    """Args: words for the step; then as of `compile_within`."""
    self._what, self._jitted, self._arguments = what, jitted, arguments
    self._compiled, self._run = compiled, None

  def __call__(self, *arguments):
    if self._run is not None:
      return self._run(*arguments)
    takes, self._arguments = self._takes(arguments), None
    self._run = self._compiled if takes else self._jitted
    if takes:
      return self._run(*arguments)
    with stage(f"compiling {self._what} again, for arguments that lie apart"):
      return self._run(*arguments)

  def _takes(self, arguments):
    formats, _ = self._compiled.input_formats
    return alike(self._arguments, arguments) and all(
      jax.tree.leaves(jax.tree.map(_in_format, arguments, formats))
    )


def compile_to_fit(what, step_of, setup, *, scored=""):
  """Ahead of a step of a run, once its memory is said and found to be there.

  Args:
    what: words for the step.
    step_of: Setup -> (jitted step, its abstract arguments).
    setup: setup.Setup.
    scored: the reference whose scoring step it is; "" is the train step.

  Raises:
    InputError: the devices cannot hold it; names the flags of what they can.
  """
  free = memory.free_bytes(setup.mesh)
  step, arguments = step_of(setup)
  compiled, sizes = compile_within(free, what, step, arguments)
  takes = _takes(what, sizes, free)
  logger.info(takes)
  if compiled is not None:
    return Ahead(what, step, arguments, compiled)

  def judge(config):
    smaller = step_of(resized(setup, config))
    compiled, sizes = compile_within(free, what, *smaller)
    return sizes["peak"], compiled is not None, None

  candidates = memory.changes(setup.config, setup.mesh.size, scored)
  flags, _ = memory.first_that_fits(setup.config, candidates, judge)
  if flags is None:
    raise InputError(f"{takes}; use more devices or a smaller model")
  raise InputError(f"{takes}; it fits with {memory.as_flags(flags)}")


def compile_within(free, what, jitted, arguments):
  """(compiled step, its bytes); None in place of one that does not fit.

  Args:
    free: bytes of a device; None where nobody knows.
    what: words for the step.
    jitted: jax.jit's.
    arguments: tree of jax.ShapeDtypeStruct.

  Returns:
    See `memory.compiled_bytes`; of what is not compiled, as its arguments
    alone are too large, those are the peak, and nothing else is there.
  """
  size, _ = memory.argument_bytes(arguments)
  if free is not None and size > free:
    return None, {"argument": size, "peak": size}
  with stage(f"compiling {what}"):
    compiled, sizes = _compiled(jitted, arguments)
  if free is not None and sizes["peak"] > free:
    return None, sizes
  return compiled, sizes


def _compiled(jitted, arguments):
  """(compiled step, its bytes); (None, bytes) where its compiler gave up."""
  try:
    compiled = jitted.lower(*arguments).compile()
  except jax.errors.JaxRuntimeError as error:
    return None, memory.bytes_of_failure(error, arguments)
  return compiled, memory.compiled_bytes(compiled, arguments)


def _takes(what, sizes, free):
  """What a step takes, as a sentence."""
  peak, argument = (sized_bytes(sizes[name]) for name in ("peak", "argument"))
  beside = sizes["peak"] - sizes["argument"]
  parts = f"{argument} of weights, state and rows"
  if beside:
    parts += f", {sized_bytes(beside)} beside them"
  least = "" if beside else "at least "
  there = "" if free is None else f"; {sized_bytes(free)} are free"
  return f"{what} takes {least}{peak} of each device ({parts}){there}"


def _in_format(array, form):
  """Does it lie as a compiled step wants it?  None stands for anyhow."""
  return form.layout in (None, array.format.layout)


def alike(one, other):
  """Are two trees of arrays alike in shapes, dtypes and where they lie?"""

  def same(a, b):
    return (a.shape, a.dtype) == (b.shape, b.dtype) and (
      a.sharding.is_equivalent_to(b.sharding, a.ndim)
    )

  if jax.tree.structure(one) != jax.tree.structure(other):
    return False
  return all(jax.tree.leaves(jax.tree.map(same, one, other)))
