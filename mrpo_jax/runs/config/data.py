# SPDX-License-Identifier: Apache-2.0
"""Sections of a config about its pairs: files, lengths, weights, rewards."""

from typing import Annotated, Any, Literal

from annotated_types import Gt, Le
from pydantic import BeforeValidator

from mrpo_jax.errors import InputError
from mrpo_jax.external import TIMEOUT
from mrpo_jax.runs.config.section import (
  Count,
  Named,
  Place,
  Places,
  Positive,
  Section,
  Shown,
  Whole,
  key,
  said,
)
from mrpo_jax.runs.config.sections import Listed, Names

BUFFER = 16_384  # rows; of preference pairs some 30 MB


def _numbers(given):
  """A tuple of numbers, or text with commas, as a flag has it."""
  if not isinstance(given, str):
    return given
  try:
    return tuple(float(one) for one in given.split(",")) if given else ()
  except ValueError:
    raise said(f"must be numbers with commas, got {given!r}") from None


Weights = Annotated[
  tuple[Positive, ...], BeforeValidator(_numbers), Shown("tuple of float")
]


class AuxiliaryReward(Section):
  """A reward of every response; `loss` reads their weighted sum."""

  reward: Place = key(
    "module:name, command:WORDS, the folder of a reward model, or "
    "difference:DIR,DIR"
  )
  weight: float = key("of it in the sum", 1.0)
  options: dict[str, Any] = key("keywords of its function", {})


class AuxiliaryRewards(Named):
  """Rewards by name, scored once into the store."""

  each = AuxiliaryReward
  __pydantic_extra__: dict[str, AuxiliaryReward]
  names: Names = key("which of them are summed", ())


def _in_parts(values):
  """Sections `train` and `weights` of the same names as text and a tuple."""
  train, weights = (values.get(name) for name in ("train", "weights"))
  if not isinstance(train, dict) or not train:
    return values
  names = {*train} if isinstance(weights, dict) else None
  if weights and names != {*weights}:
    raise InputError(
      f"config.data.weights must name what config.data.train does, "
      f"{', '.join(train)}; got {weights!r}"
    )
  for name, one in train.items():
    if not isinstance(one, str) or "," in one:
      raise InputError(f"config.data.train.{name}: name one file, got {one!r}")
  found = {"train": tuple(train.values())}
  if weights:
    found["weights"] = tuple(weights[name] for name in train)
  return values | found


class Data(Listed):
  """Preference pairs: files, folders or globs of them, TFDS, hub names.

  Several have commas between them, or are a list; those of `train` may be a
  section, name: file, and `weights` one of the same names.
  """

  @classmethod
  def filled(cls, values):
    return super().filled(
      _in_parts(values) if isinstance(values, dict) else values
    )

  train: Places = key("pairs to train on; empty with online.prompts", "")
  eval: Places = key("held-out pairs to evaluate on", "")
  validation: Places = key(
    "held-out pairs that weights of references measure", ""
  )
  max_prompt: Count = key("tokens of a prompt, which keeps its end", 512)
  max_response: Count = key("tokens of a response, which keeps its start", 512)
  row_length: Count = key("tokens of a packed row", 2048)
  rows: Whole = key("rows of a micro-batch; 0: one per shard of the mesh", 0)
  date: str = key(
    "day that chat templates write, 2024-07-26; empty: that of the run's start",
    "",
    exclude_if=lambda date: not date,  # runs of before have no such key
  )
  conversations: Literal["", "hh"] = key(
    'what makes turns of plain text: "hh", Human: and Assistant:',
    "",
    exclude_if=lambda kind: not kind,  # as above
  )
  unpair: bool = key(
    "make two rows of a pair, its responses with labels, for losses of single "
    "responses",
    False,
    exclude_if=lambda unpair: not unpair,  # as above
  )
  reference_weights: str = key(
    "column of the pairs' rows that holds the weights of their references, a "
    "list or an object by name; empty: loss.weights is for all pairs",
    "",
    exclude_if=lambda column: not column,  # as above
  )
  fraction: Annotated[float, Gt(0), Le(1)] = key(
    "share of the training pairs; the seed says which, a smaller share lies in "
    "a larger one",
    1.0,
    exclude_if=lambda share: share == 1,  # as above
  )
  limit: Whole = key(
    "training pairs at most, the first of the same sequence; 0: all",
    0,
    exclude_if=lambda limit: not limit,  # as above
  )
  streaming: bool = key(
    "read the training pairs as they are reached: Parquet, JSON lines or TFDS, "
    "more than memory holds",
    False,
    exclude_if=lambda streams: not streams,  # as above
  )
  shuffle_buffer: Count = key(
    "rows that streaming shuffles together",
    BUFFER,
    exclude_if=lambda rows: rows == BUFFER,  # as above
  )
  weights: Weights = key(
    "of each file of train, by which their pairs are mixed; empty: all pairs "
    "are trained on equally often",
    (),
    exclude_if=lambda weights: not weights,  # as above
  )
  rewards: AuxiliaryRewards = key(
    "",
    exclude_if=lambda one: not one.names,  # as above
  )
  reward_timeout: Positive = key(
    "seconds that a reward's command may take for an answer",
    float(TIMEOUT),
    exclude_if=lambda seconds: seconds == TIMEOUT,  # as above
  )
