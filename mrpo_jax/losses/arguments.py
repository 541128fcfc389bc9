# SPDX-License-Identifier: Apache-2.0
"""Arguments of losses: their types, and what is refused by its name."""

import functools
import inspect
import math
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mrpo_jax.shapes import check

P = ParamSpec("P")
R = TypeVar("R")
Weights = ArrayLike | Sequence[float]  # [K] or [B, K], or numbers for [K]
PairLoss = Callable[..., jax.Array]  # called as loss(logratio_BC, beta=beta)

# Numbers that would divide by zero or turn a loss around.
POSITIVE = {"beta", "temperature", "beta_prime", "eta", "std", "epsilon"}
POSITIVE |= {"cap", "prior", "window", "vocab_size", "lam", "cliprange"}
NOT_NEGATIVE = {"desirable_weight", "undesirable_weight", "epsilon_max"}
NOT_NEGATIVE |= {"value_weight"}
SHARES = {"label_smoothing", "win_rate", "phi", "mixing", "rate", "tau"}
# Of names that mean other things elsewhere, of one function alone.
POSITIVE |= {"temporal_decay.gamma"}
NOT_NEGATIVE |= {"focal_dpo.gamma"}
SHARES |= {"length_desensitized.alpha"}
INFINITE = {"p"}  # may be
OPTIONAL = {"adaptive_beta", "running"}
# What functions of arrays call a choice -> its name in a config.
CHOICE_OF = {"p": "mixture", "weight": "weights"}
CHOICE_OF |= {"epsilon_max": "clip", "adaptive_epsilon": "clip"}
AXES = re.compile("_[A-Z]+$")  # of an array's name
NUMBERS = {"nll", *OPTIONAL, *POSITIVE, *NOT_NEGATIVE, *SHARES}


def arrays_of(function):
  """Names of the arrays that a function takes."""
  return _parameters(function, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def keywords_of(function):
  """Its hyper-parameters: {name: default}."""
  return _parameters(function, inspect.Parameter.KEYWORD_ONLY)


def _parameters(function, kind):
  parameters = inspect.signature(function).parameters.values()
  return {p.name: p.default for p in parameters if p.kind is kind}


def checked(function: Callable[P, R]) -> Callable[P, R]:
  """A loss that refuses what its keywords cannot be, each by its name.

  Raises:
    TypeError: a keyword that is given by position.
    ValueError: a number out of its range, where its value is known: not
      inside `jax.jit` if it is an argument there.

  >>> @checked
  ... def scaled(logratio_BC, *, beta=0.1):
  ...   return beta * logratio_BC
  >>> scaled(1.0, 0.1)
  Traceback (most recent call last):
    ...
  TypeError: scaled takes beta by name: scaled(logratio_BC, beta=0.1)
  >>> scaled(1.0, beta=-0.1)
  Traceback (most recent call last):
    ...
  ValueError: scaled: beta must be positive, got -0.1
  """
  arrays, keywords = arrays_of(function), keywords_of(function)
  called, defaults = by_name(function), {**arrays, **keywords}

  @functools.wraps(function)
  def call(*args: P.args, **given: P.kwargs) -> R:
    named = {**dict(zip(arrays, args, strict=False)), **given}
    name = function.__name__
    check_numbers(name, named, defaults, {"epsilon_max"}, of=name)
    return called(*args, **given)

  return call


def by_name(function: Callable[P, R]) -> Callable[P, R]:
  """A function that refuses its keywords by position, and says their names.

  Raises:
    TypeError: a keyword that is given by position.
  """
  arrays, keywords = [*arrays_of(function)], [*keywords_of(function)]
  rest = _parameters(function, inspect.Parameter.VAR_KEYWORD)
  name = function.__qualname__.removesuffix(".__call__").split(".")[-1]
  shown = ", ".join(key for key in arrays if key != "self")
  known = ", ".join([*keywords, *(f"**{key}" for key in rest)])

  @functools.wraps(function)
  def call(*args: P.args, **given: P.kwargs) -> R:
    if keywords and len(args) > len(arrays):
      value = args[len(arrays)]
      value = repr(value) if isinstance(value, int | float | str) else "..."
      raise TypeError(
        f"{name} takes {known} by name: {name}({shown}, {keywords[0]}={value})"
      )
    return function(*args, **given)

  return call


def check_numbers(
  what: str,
  given: dict[str, Any],
  defaults: dict[str, Any],
  optional: Collection[str] = OPTIONAL,
  of: str = "",
) -> None:
  """A ValueError that names the first value which its keyword cannot be.

  What is a number by default, or is known here alone, has to be one.

  Args:
    what: whose keywords they are, in words.
    given: {keyword: value}.
    defaults: {keyword: default}.
    optional: keywords that may be None.
    of: name of the function that takes them, which may have ranges of its own.
  """
  for key, value in given.items():
    default = defaults.get(key, inspect.Parameter.empty)
    if value is None and (key in optional or default is None):
      continue
    if isinstance(default, bool):
      if not isinstance(value, bool):
        raise ValueError(f"{what}: {key} must be True or False, got {value!r}")
    elif isinstance(default, int | float) or key in NUMBERS:
      if AXES.search(key) and isinstance(value, list | tuple):
        check(**{key: value})
      if value is None or isinstance(value, bool | str | dict | list | tuple):
        raise ValueError(f"{what}: {key} must be a number, got {value!r}")
      _check_range(what, of, key, value)


def _check_range(what, of, key, value):
  """Refuses a number out of its range; arrays and traced ones pass."""
  if isinstance(value, jax.core.Tracer) or jnp.ndim(value):
    return
  names = {key, f"{of}.{key}"}
  if names & POSITIVE and not value > 0:
    raise ValueError(f"{what}: {key} must be positive, got {value!r}")
  if names & NOT_NEGATIVE and not value >= 0:
    raise ValueError(f"{what}: {key} must be from 0 up, got {value!r}")
  if names & SHARES and not 0 <= value <= 1:
    raise ValueError(f"{what}: {key} must be from 0 to 1, got {value!r}")
  if key not in INFINITE and not math.isfinite(value):
    raise ValueError(f"{what}: {key} must be a finite number, got {value!r}")
