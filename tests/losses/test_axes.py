# SPDX-License-Identifier: Apache-2.0
"""Every public loss refuses an array of the wrong axes, by its name."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import losses
from mrpo_jax.shapes import axes_of, check

SIZES = dict(B=4, C=2, K=3, N=5, T=6, V=7, Y=8)
FEWER = {"scale_B", "weight_BK"}  # may have an axis less
# What else a function has to be given.
OTHERS = dict(p=-1, mean=1.0, running_margin=0.5, weight=np.ones(3))
TYPES = {"length_BC": np.int32, "desirable_B": bool, "valid_B": bool}
TYPES["targets_BT"] = np.int32


def parameters_of(function):
  found = inspect.signature(function).parameters
  return {k: p for k, p in found.items() if p.kind is not p.VAR_KEYWORD}


def arrays_of(function):
  """{name: shape} of the arrays whose names carry axes."""
  return {
    name: tuple(SIZES[axis] for axis in axes_of(name))
    for name in parameters_of(function)
    if re.search(r"_[A-Z]+$", name)
  }


PUBLIC = {
  name: value
  for name, value in vars(losses).items()
  if inspect.isfunction(value)
}
FUNCTIONS = {
  name: function for name, function in PUBLIC.items() if arrays_of(function)
}


def called(function, shapes):
  """The function on arrays of these shapes, traced alone."""
  others = {
    key: OTHERS[key]
    for key, parameter in parameters_of(function).items()
    if key not in shapes and parameter.default is parameter.empty
  }
  arrays = {
    name: jax.ShapeDtypeStruct(shape, TYPES.get(name, np.float32))
    for name, shape in shapes.items()
  }
  return jax.eval_shape(lambda arrays: function(**arrays, **others), arrays)


def refusals(function):
  """(message, shapes) for every way in which one array can be wrong."""
  right = arrays_of(function)
  for name, shape in right.items():
    axes = axes_of(name)
    for wrong in ((*shape, 1), shape[:-1]):
      told = f"`{name}` must have axes [{' '.join(axes)}], got shape {wrong}"
      if len(wrong) > len(shape) or name not in FEWER:
        yield told, {**right, name: wrong}
    for place, axis in enumerate(axes):
      others = [other for other in right if other != name]
      shared = [other for other in others if axis in axes_of(other)]
      for size in (1, 3) if axis == "C" else (SIZES[axis] + 1,):
        wrong = {**right, name: (*shape[:place], size, *shape[place + 1 :])}
        if axis == "C":
          yield f"axis C (chosen, rejected) of `{name}` has size {size}", wrong
          yield "and must be 2", wrong
        elif shared:
          yield f"axis {axis} has size", wrong
          for array, has in ((name, size), (shared[0], SIZES[axis])):
            yield f"{has} in `{array}`", wrong


def test_every_function_of_arrays_is_here():
  assert PUBLIC.keys() - FUNCTIONS.keys() == {
    # Not of arrays.
    *("accelerate", "build", "combine", "ema", "measured", "names"),
    *("sliding_window", "thompson"),
    # Of arrays of any shape.
    *("apa", "awr", "bridged", "down_sample", "expectile"),
    *("length_desensitized", "normalised_entropy", "ppo_clip"),
    *("temporal_decay", "value_loss"),
  }


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_right_axes_are_taken(name):
  found = jax.tree.leaves(called(FUNCTIONS[name], arrays_of(FUNCTIONS[name])))
  assert found and {leaf.dtype.kind for leaf in found} == {"f"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_wrong_axis_is_refused_by_the_name_of_its_array(name):
  found = list(refusals(FUNCTIONS[name]))
  assert found
  for message, shapes in found:
    with pytest.raises(ValueError, match=re.escape(message)):
      called(FUNCTIONS[name], shapes)


@pytest.mark.parametrize("K", [1, 2, 4])
def test_weights_of_other_references_are_refused_by_name(K):
  ref_BCK = jnp.zeros((4, 2, 3))
  message = re.escape(f"axis K has size 3 in `ref_logp_BCK`, but {K} in `weig")
  for function in (
    lambda weight: losses.virtual_reference(ref_BCK, weight=weight),
    lambda weight: losses.multi_dpo(ref_BCK[..., 0], ref_BCK, weight=weight),
    lambda weight: losses.reference_metrics(ref_BCK, weight),
    lambda weight: losses.reference_relations(ref_BCK, weight),
    lambda weight: losses.power_mean(ref_BCK, weight, p=1),
  ):
    for shape in ((K,), (4, K)):
      with pytest.raises(ValueError, match=message):
        function(jnp.ones(shape))


def test_the_message_says_array_axis_and_sizes():
  for arrays, message in (
    (
      dict(logratio_BC=np.zeros((4, 3))),
      "axis C (chosen, rejected) of `logratio_BC` has size 3 and must be 2",
    ),
    (
      dict(logratio_BC=np.zeros(4)),
      "`logratio_BC` must have axes [B C], got shape (4,)",
    ),
    (
      dict(one_BK=np.zeros((4, 3)), other_KB=np.zeros((2, 4))),
      "axis K has size 3 in `one_BK`, but 2 in `other_KB`",
    ),
    (
      dict(alike_BB=np.zeros((4, 3))),
      "axis B has size 4 in `alike_BB`, but 3 in `alike_BB`",
    ),
  ):
    with pytest.raises(ValueError) as caught:
      check(**arrays)
    assert str(caught.value) == message
  check(one_BK=np.zeros((4, 3)), other_KB=np.zeros((3, 4)), none_B=np.ones(4))
