# SPDX-License-Identifier: Apache-2.0
"""Sections of a config that trains models: every key, default and bound."""

import math
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
  BeforeValidator,
  field_validator,
  model_serializer,
  model_validator,
)

from mrpo_jax.errors import InputError
from mrpo_jax.runs.config.section import (
  Count,
  Named,
  NotNegative,
  Positive,
  Section,
  Whole,
  key,
  said,
)

# Figures of an evaluation that can say which checkpoint is the best: 1 where
# more of it is better, -1 where less is.
BEST = {
  "eval/loss": -1,
  "eval/rewards/accuracies": 1,  # against reference 0
  "eval/rewards/margins": 1,
  "eval/virtual/rewards/accuracies": 1,  # against the mixture
  "eval/policy/rewards/accuracies": 1,  # against none
  "eval/policy_mean/rewards/accuracies": 1,  # against none, per token
}


def _names(given):
  """A tuple of names."""
  if isinstance(given, tuple) and all(isinstance(one, str) for one in given):
    return given
  raise said(f"must be a tuple of names, got {given!r}")


def _targets(given):
  """A tuple of names, or text with commas, as a flag has it."""
  given = tuple(given.split(",")) if isinstance(given, str) else _names(given)
  if not given:
    raise said(f"must be a tuple of names, got {given!r}")
  return given


def axes_text(given):
  """Mesh axes as text with commas; what is neither stays as it is."""
  if given is None:
    return ""
  is_tuple = isinstance(given, tuple)
  if is_tuple and all(isinstance(name, str) for name in given):
    return ",".join(given)
  return given


def _axes(given):
  given = axes_text(given)
  if not isinstance(given, str):
    raise said(f"must be names of mesh axes, got {given!r}")
  return given


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
Targets = Annotated[tuple[str, ...], BeforeValidator(_targets)]
Rules = dict[str, Annotated[str, BeforeValidator(_axes)]]


class Ruled(Section):
  """A section with `rules`, kept as text, so that flags can change them."""

  @classmethod
  def filled(cls, values):
    values = super().filled(values)
    if isinstance(values, dict):
      rules = values["rules"] or {}
      if isinstance(rules, dict):
        rules = {axis: axes_text(one) for axis, one in rules.items()}
      values["rules"] = rules
    return values


class Checkpoints(Section):
  """Which checkpoints are kept."""

  keep: Count = key("so many of the newest", 2)
  best: Literal["", *BEST] = key("and the best by this figure", "")


class Data(Section):
  """Preference pairs: files, prepared TFDS directories or hub names."""

  train: str = key("pairs to train on")
  eval: str = key("held-out pairs, for evaluations", "")
  validation: str = key("pairs that weights of references measure", "")
  max_prompt: Count = key("tokens of a prompt; keeps its end", 512)
  max_response: Count = key("tokens of a response; keeps its start", 512)
  row_length: Count = key("tokens of a packed row", 2048)
  rows: Whole = key("rows of a micro-batch; 0: one per shard of the mesh", 0)


class Mesh(Ruled):
  """Devices along each axis of the mesh; -1 takes what the others leave."""

  data: int = key("splits rows", -1)
  fsdp: int = key("splits rows, and the weights' width", 1)
  context: int = key("splits positions of a row", 1)
  model: int = key("splits heads, MLP and vocabulary", 1)
  rules: Rules = key("mesh axes of a weight's axis: docs/sharding.md", {})


class ReferenceUpdate(Section):
  """TR-DPO: reference 0 moves towards the policy as it trains."""

  every: Whole = key("so many steps; 0: never", 0)
  rate: Annotated[float, Gt(0), Le(1)] = key("so far; 1: all the way", 1.0)


class Rounds(Section):
  """APO: runs one after the other, each from where the last one ended."""

  count: Count = key("so many; the steps are divided among them", 1)
  alpha: NotNegative = key("each starts so many times as far again", 0.0)


class Optimizer(Section):
  """AdamW; the learning rate rises linearly, then falls as a cosine."""

  peak_lr: Positive = key("learning rate after the warm-up")
  warmup: Annotated[float, Ge(0), Le(1)] = key("share of steps that rise", 0.1)
  end_lr: NotNegative = key("where it ends, as a share of peak_lr", 0.0)
  clip_norm: Positive = key("gradient norm above which it is scaled", 1.0)
  weight_decay: NotNegative = key("of matrices, decoupled", 0.0)
  b1: NotNegative = key("decay of the first moment", 0.9)
  b2: NotNegative = key("decay of the second moment", 0.999)


class New(Section):
  """A model made here, where `path` is empty."""

  layers: Count = key("blocks")
  width: Count = key("of the residual stream; a multiple of heads")
  heads: Count = key("of queries")
  kv_heads: Count = key("of keys and values")
  mlp_width: Count = key("of the MLP")
  tokenizer: Literal["bpe", "unigram"] = key("trained on the pairs", "bpe")
  vocab_size: Count = key("of its tokenizer")


class Model(Section):
  """A model of the run."""

  path: str = key("Hugging Face folder; empty: as `new` says", "")
  tokenizer: str = key("folder of its tokenizer, if it is another", "")
  template: str = key("a name, or a file with a chat template", "")
  dtype: Literal["float32", "bfloat16", "float16"] = key(
    "of the weights", "float32"
  )
  quantize: Literal["", "int8", "int4"] = key("weights as integers", "")
  quantize_group: Count = key("inputs that share a scale in int4", 32)

  @model_validator(mode="before")
  @classmethod
  def _new_is_unused(cls, values):
    if isinstance(values, dict) and values.get("path"):
      values = {name: one for name, one in values.items() if name != "new"}
    return values


def _new():
  return key("", None, exclude_if=lambda new: new is None)


class NewAdapter(Section):
  """LoRA made here: only the adapter is trained."""

  rank: Count = key("of both factors")
  alpha: Positive = key("its scale is alpha / rank")
  targets: Targets = key(
    "matrices of the blocks that it changes", "all", validate_default=True
  )
  rslora: bool = key("scale alpha / sqrt(rank)", False)
  dropout: Annotated[float, Ge(0), Lt(1)] = key(
    "of the adapter's input, in training", 0.0
  )
  path: Literal[""] = key("empty: made here", "", exclude=True)


class ImportedAdapter(Section):
  """An adapter that is trained on; the rest stands in its folder."""

  path: str = key("folder of PEFT to train on; empty: made here")
  dropout: Annotated[float, Ge(0), Lt(1)] = key(
    "of the adapter's input, in training", 0.0
  )


def _adapter_kind(given):
  return ImportedAdapter if given.get("path") else NewAdapter


class Policy(Model):
  """The model that is trained; reference 0 is mostly its start."""

  compute: Literal["", "float32", "bfloat16"] = key(
    "activations of all models; empty: as stored", ""
  )
  kernel: Literal["auto", "xla", "blockwise", "cudnn", "splash"] = key(
    "attention of all models", "auto"
  )
  remat: Literal["none", "dots", "full"] = key(
    "what the backward pass computes anew", "dots"
  )
  chunk: Whole = key("scored positions of a row at a time; 0: chosen", 0)
  new: New | None = _new()
  adapter: NewAdapter | ImportedAdapter | None = key("", None)

  @classmethod
  def filled(cls, values):
    values = super().filled(values)
    if isinstance(values, dict):
      # A section even where it is empty, so that flags can fill it.
      given = values.get("adapter") or {}
      if given and isinstance(given, dict):
        given = _adapter_kind(given).filled(given)
      values["adapter"] = given
    return values

  @field_validator("adapter", mode="before")
  @classmethod
  def _adapter(cls, given):
    if not given:
      return None
    is_section = isinstance(given, dict)
    kind = _adapter_kind(given) if is_section else NewAdapter
    return kind.model_validate(given)


class Reference(Model, Ruled):
  """A frozen model; path "policy" is the policy's start."""

  dtype: Literal["", "float32", "bfloat16", "float16"] = key(
    "of the weights; empty: the policy's if that is its path, or float32", ""
  )
  mode: Literal["online", "scored"] = key(
    "runs beside, or once before", "online"
  )
  beta: NotNegative = key("of this reference; 0: loss.beta", 0.0)
  adapter: str = key("folder of PEFT, on top of `path`", "")
  new: New | None = _new()
  rules: Rules = key("changes of mesh.rules", {})


class References(Named):
  """Frozen models, by name."""

  each = Reference
  __pydantic_extra__: dict[str, Reference]
  names: Names = key("their order; the first is the base", ())


class Loss(Section, extra="allow"):
  """A loss by name; the other keys are its keywords: docs/losses.md."""

  ABOUT: ClassVar = {
    "beta": "per nat; smaller lets the policy move further",
    "mixture": "how references become one",
    "clip": "how far a reference may be from the first",
    "weights": "trust in each reference",
    "token_weight": "weights of tokens",
    "dispersion": "factor on a pair's margin",
    "nll": "weight of an added likelihood of the chosen response",
    "scale": "unit of log-probabilities",
  }
  name: str = key("a loss or a published method")

  @property
  def keywords(self):
    """What `losses.build` is given besides the name."""
    return dict(self.model_extra)

  @model_serializer(mode="wrap")
  def _sorted(self, dump):
    return dict(sorted(dump(self).items()))

  def check(self, where):
    """Raises InputError for what no loss takes; `losses.build` knows more."""
    _check_finite(where, self.keywords)
    beta = self.keywords.get("beta", 1.0)
    is_number = isinstance(beta, int | float) and not isinstance(beta, bool)
    if not is_number or beta <= 0:
      raise InputError(f"{where}.beta must be positive, got {beta!r}")


def _check_finite(where, value):
  """Refuses a number that is not finite, at any depth."""
  if isinstance(value, dict | tuple):
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for name, one in inner:
      _check_finite(f"{where}.{name}", one)
  elif isinstance(value, float) and not math.isfinite(value):
    raise InputError(f"{where} must be a finite number, got {value!r}")
