# SPDX-License-Identifier: Apache-2.0
"""Ranks and alphas of a LoRA by module: rank_pattern, alpha_pattern of PEFT.

A pattern is, as a regular expression, the whole name of a module or its end
from a dot on; of several the first counts, as in PEFT's get_pattern_key.
"""

import collections
import dataclasses
import itertools
import math
import re

from mrpo_jax.errors import InputError
from mrpo_jax.models import lora

KEYS = {"r": "rank_pattern", "lora_alpha": "alpha_pattern"}


def adapters(values, modules):
  """{leaf: [Adapter of each layer]}, each with its own rank and alpha.

  Args:
    values: the content of adapter_config.json.
    modules: {leaf: [whole name of its module in each layer]}.

  Raises:
    InputError: a pattern that is none, or of which no module is.
  """
  every = {*itertools.chain(*modules.values())}
  own = {key: _matched(values, one, every) for key, one in KEYS.items()}

  def adapter(module):
    rank, alpha = (own[key].get(module, values[key]) for key in KEYS)
    rslora = bool(values.get("use_rslora"))
    return lora.Adapter(rank, float(alpha), rslora=rslora)

  return {leaf: [*map(adapter, names)] for leaf, names in modules.items()}


def joined(own):
  """The Adapter of all leaves: the widest rank, and scales where they differ.

  `own` is {leaf: [Adapter of each layer]}.
  """
  every = [*itertools.chain(*own.values())]
  count = collections.Counter(one.scale for one in every)
  whole = max(every, key=lambda one: (one.rank, count[one.scale]))
  scales = {name: tuple(one.scale for one in own[name]) for name in own}
  return dataclasses.replace(
    whole,
    scales=tuple(
      (name, layers)
      for name, layers in scales.items()
      if not all(math.isclose(scale, whole.scale) for scale in layers)
    ),
  )


def tell_layers_apart(values, modules):
  """Is a pattern of a whole name that is none of the name within its layer?"""
  within = {
    name: re.split(r"\.\d+\.", name, maxsplit=1)[-1] for name in modules
  }
  matchers = [
    _matcher(key, pattern)
    for key in KEYS.values()
    for pattern in values.get(key) or {}
  ]
  return any(
    bool(matches(name)) != bool(matches(inner))
    for matches in matchers
    for name, inner in within.items()
  )


def _matched(values, key, modules):
  """{module: the value that the first pattern of its name gives it}."""
  found = {}
  for pattern, value in (values.get(key) or {}).items():
    matches = _matcher(key, pattern)
    named = [module for module in modules if matches(module)]
    if not named:
      raise InputError(
        f"{key}.{pattern} is no module of this adapter; want the end of a name "
        f"like {min(modules)}"
      )
    for module in named:
      found.setdefault(module, value)
  return found


def _matcher(key, pattern):
  """Whether the pattern is a name or its end: get_pattern_key of PEFT."""
  try:
    return re.compile(rf"(.*\.)?({pattern})$").match
  except re.error as error:
    raise InputError(
      f"{key}.{pattern} is no regular expression ({error})"
    ) from None
