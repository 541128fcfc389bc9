# SPDX-License-Identifier: Apache-2.0
"""Sections of a config that trains models: every key, default and bound."""

import math
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
  BeforeValidator,
  field_validator,
  model_serializer,
  model_validator,
)

from mrpo_jax import parallel
from mrpo_jax.errors import InputError
from mrpo_jax.runs.config.section import (
  MOST,
  Count,
  Count32,
  Named,
  NotNegative,
  Place,
  Places,
  Positive,
  Section,
  Shown,
  Whole,
  Whole32,
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
Targets = Annotated[
  tuple[str, ...], BeforeValidator(_targets), Shown("str or tuple of str")
]
Rules = dict[str, Annotated[str, BeforeValidator(_axes)]]


def joined(values):
  """The values of a section, lists of texts as text that flags can change."""
  if not isinstance(values, dict):
    return values
  return {
    name: ",".join(one) if _are_texts(one) else one
    for name, one in values.items()
  }


def _are_texts(given):
  is_list = isinstance(given, tuple) and given
  return is_list and all(isinstance(one, str) for one in given)


class Listed(Section):
  """A section whose lists of texts are kept as text for flags to change."""

  @classmethod
  def filled(cls, values):
    return joined(super().filled(values))


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
  """Checkpoints that are kept."""

  keep: Count = key("how many of the newest", 2)
  best: Literal["", *BEST] = key("figure by which the best one is kept too", "")


class Evaluation(Listed):
  """Benchmarks before training, on the way and at its end; extra eval."""

  tasks: Places = key(
    "tasks of mrpo evaluate, or files .yaml that describe one; empty: none", ""
  )
  data: Place = key(
    "folder of their files; empty: what the harness loads from the hub", ""
  )
  every: Whole = key("steps between them; 0: at the start and the end", 0)
  limit: Whole32 = key("documents of each task, at most; 0: all", 0)
  num_fewshot: Annotated[int, Ge(-1), Le(MOST)] = key(
    "shots before each document where a task fixes none; -1: as it says",
    -1,
    exclude_if=lambda shots: shots == -1,  # runs of before have no such key
  )
  apply_chat_template: bool = key(
    "are prompts conversations?",
    False,
    exclude_if=lambda applies: not applies,  # as above
  )


class Samples(Section):
  """What the policy says, before training, on the way and at its end."""

  prompts: Place = key(
    "file of prompts, as mrpo generate takes them; empty: none", ""
  )
  every: Whole = key("steps between samples; 0: at the start and the end", 0)
  max_new_tokens: Count32 = key("tokens of a sample, at most", 128)
  temperature: NotNegative = key("of what is drawn; 0: greedy", 0.0)


class Tracking(Section):
  """Who is told the lines of metrics.jsonl, besides that file."""

  tensorboard: bool = key("event files in the workdir", True)
  wandb: str = key(
    "project, or entity/project, of Weights & Biases; empty: none", ""
  )
  trackio: str = key("project of Trackio; empty: none", "")
  mlflow: str = key("experiment of MLflow; empty: none", "")


def tracking_key():
  """The section `tracking`, which runs of before do not have."""
  return key("", exclude_if=lambda one: one == Tracking())


class Mesh(Ruled):
  """The mesh of devices, by axis; -1 takes what the others leave."""

  data: int = key("devices that share rows", -1)
  fsdp: int = key("devices that share rows, and the width of weights", 1)
  context: int = key("devices that share the positions of a row", 1)
  model: int = key("devices that share heads, MLP and vocabulary", 1)
  rules: Rules = key(
    f"mesh axes (of {', '.join(parallel.AXES)}) over which an axis of weights "
    f"(of {', '.join(parallel.RULES)}) is split",
    {},
  )


class ReferenceUpdate(Section):
  """TR-DPO: reference 0 moves towards the policy as it trains."""

  every: Whole32 = key("steps between its moves; 0: it never moves", 0)
  rate: Annotated[float, Gt(0), Le(1)] = key("share of the way there", 1.0)


class Rounds(Section):
  """APO: runs one after the other, each from where the last one ended."""

  count: Count = key("how many; they share the steps", 1)
  alpha: NotNegative = key("how many times as far again a round starts", 0.0)


class Optimizer(Section):
  """AdamW; the learning rate rises linearly, then falls as a cosine."""

  peak_lr: Positive = key("learning rate after the warm-up")
  warmup: Annotated[float, Ge(0), Le(1)] = key("share of rising steps", 0.1)
  end_lr_share: NotNegative = key(
    "share of peak_lr that is left at the end", 0.0
  )
  clip_norm: Positive = key("norm above which gradients are scaled down", 1.0)
  weight_decay: NotNegative = key("of matrices, not of norms and biases", 0.0)
  b1: Annotated[float, Ge(0), Lt(1)] = key("decay of the first moment", 0.9)
  b2: Annotated[float, Ge(0), Lt(1)] = key("decay of the second moment", 0.999)


class New(Section):
  """A model that is made here; used where `path` is empty."""

  layers: Count = key("number of blocks")
  width: Count = key("size of a hidden state, a multiple of heads")
  heads: Count = key("heads of queries")
  kv_heads: Count = key("heads of keys and values")
  mlp_width: Count = key("size of the MLP's hidden layer")
  experts: Whole = key(
    "MLPs of that size, of which a token takes some; 0 for one MLP",
    0,
    exclude_if=lambda count: not count,  # runs of before have no such key
  )
  experts_per_token: Count = key(
    "how many of the experts a token takes",
    2,
    exclude_if=lambda count: count == 2,  # as above
  )
  tokenizer: Literal["bpe", "unigram"] = key(
    "bpe: trained on the pairs; unigram: in a folder, `tokenizer`", "bpe"
  )
  vocab_size: Count = key("tokens of its tokenizer")


class ModelKeys(Section):
  """A model of the run."""

  path: Place = key("Hugging Face folder; empty: a model as in `new`", "")
  tokenizer: Place = key(
    "folder of its tokenizer; empty: that of the model", ""
  )
  template: Place = key("chat template, a name or a file; empty: its own", "")
  dtype: Literal["float32", "bfloat16", "float16"] = key(
    "type of the weights", "float32"
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
  """LoRA: only the adapter is trained."""

  rank: Count = key("columns of its factors")
  alpha: Positive = key("the adapter is scaled by alpha / rank")
  targets: Targets = key(
    "matrices of the blocks that it changes",
    "all",
    validate_default=True,
  )
  rslora: bool = key("is it scaled by alpha / sqrt(rank)?", False)
  dropout: Annotated[float, Ge(0), Lt(1)] = key(
    "of the adapter's input, in training alone", 0.0
  )
  path: Literal[""] = key("empty: made here", "", exclude=True)


class ImportedAdapter(Section):
  """An adapter that is trained on; the rest stands in its folder."""

  path: Place = key("folder of PEFT to go on from; empty: a new one", "")
  dropout: Annotated[float, Ge(0), Lt(1)] = key(
    "of the adapter's input, in training alone", 0.0
  )


def _adapter_kind(given):
  return ImportedAdapter if given.get("path") else NewAdapter


class Policy(ModelKeys):
  """The model that is trained."""

  head: Literal["tokens", "scalar", "tokens+value"] = key(
    "tokens: a language model; scalar: a reward model, by bradley_terry; "
    "tokens+value: with a value of every token, for apa, awr and ppo",
    "tokens",
    exclude_if=lambda head: head == "tokens",  # runs of before have no such key
  )
  compute: Literal["", "float32", "bfloat16"] = key(
    "type of all models' activations; empty: as stored", ""
  )
  kernel: Literal[
    "auto", "xla", "blockwise", "cudnn", "cudnn_packed", "splash"
  ] = key("how all models compute attention", "auto")
  remat: Literal["none", "dots", "full"] = key(
    "none keeps all for the backward pass, full nothing", "dots"
  )
  chunk: Whole = key("positions of a row that are scored at once; 0: chosen", 0)
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


class Reference(ModelKeys, Ruled):
  """One of them; path "policy": its start, "policy-base": without adapter."""

  dtype: Literal["", "float32", "bfloat16", "float16"] = key(
    "type of the weights; empty: the policy's, or float32", ""
  )
  mode: Literal["online", "scored"] = key(
    "run in every step, or once before", "online"
  )
  beta: NotNegative = key("beta of this reference; 0: that of the loss", 0.0)
  adapter: Place = key("folder of PEFT, an adapter on top of `path`", "")
  new: New | None = _new()
  rules: Rules = key("changes of mesh.rules for this reference", {})


class References(Named):
  """Frozen models by name, what the policy is compared with."""

  each = Reference
  __pydantic_extra__: dict[str, Reference]
  names: Names = key("their order; the first is the base", ())


class Loss(Section, extra="allow"):
  """A loss by name and its keywords: docs/guide/losses.md lists them."""

  name: str = key("loss or published method")

  @property
  def keywords(self):
    """Keywords of `losses.build`."""
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
