# SPDX-License-Identifier: Apache-2.0
"""ModelSection: one model of a run, as its config says, resolved."""

import dataclasses

from mrpo_jax import parallel
from mrpo_jax.runs.config.sections import ImportedAdapter, New, NewAdapter

POLICY = "policy"  # its name among the models; a path that means its start
POLICY_BASE = "policy-base"  # a path: the same without an imported adapter


@dataclasses.dataclass(frozen=True)
class Folder:
  """Weights in a Hugging Face folder."""

  path: str


@dataclasses.dataclass(frozen=True)
class NewWeights:
  """Weights that are made here, of the model of that name."""

  name: str
  new: New
  seed: int

  @property
  def key(self):
    return key_of(self.name)


@dataclasses.dataclass(frozen=True)
class Base:
  """Weights without adapters: equal ones are the same arrays in a run."""

  weights: Folder | NewWeights
  dtype: str
  quantize: str
  group: int | None
  rules: tuple  # (logical axis, mesh axes): how they are split
  head: str = "tokens"  # see models.config.ModelConfig


@dataclasses.dataclass(frozen=True)
class TokenizerSource:
  """Where a tokenizer is from: a folder, or trained for the model of a name."""

  folder: str  # "": trained on the pairs of the run
  name: str
  new: New | None  # where the model is new
  template: str

  @property
  def key(self):
    return key_of(self.name)


@dataclasses.dataclass(frozen=True)
class ModelSection:
  """A model of the run; what it has of the policy is resolved."""

  name: str  # "policy", or that of the reference
  base: Base
  tokenizer: TokenizerSource
  adapter: NewAdapter | ImportedAdapter | None
  seed: int
  scored: bool = False  # is it read from the store?

  @property
  def key(self):
    """Its place in the config."""
    return key_of(self.name)

  @property
  def is_policy(self):
    return self.name == POLICY


def key_of(name):
  return name if name == POLICY else f"references.{name}"


def is_of_policy(reference):
  """Has it the weights of the policy's start?"""
  return reference.path in (POLICY, POLICY_BASE)


def adapter_of_start(policy, reference):
  """The folder of the adapter that it has of the policy's start, or ""."""
  if reference.path == POLICY and isinstance(policy.adapter, ImportedAdapter):
    return policy.adapter.path
  return ""


def models_of(config):
  """{name: ModelSection} of a Config, the policy first."""
  rules = parallel.rules_of(config.mesh.rules, "config.mesh.rules")
  policy = ModelSection(
    POLICY,
    _base(config.policy, _weights(POLICY, config.policy, config.seed), rules),
    _tokenizer(POLICY, config.policy),
    config.policy.adapter,
    config.seed,
  )
  found = {POLICY: policy}
  for name, one in config.references.items():
    weights = policy.base.weights
    if not is_of_policy(one):
      weights = _weights(name, one, config.seed)
    own = parallel.rules_of(
      rules | one.rules, f"config.references.{name}.rules"
    )
    tokenizer = _tokenizer(name, one)
    if tokenizer.folder in (POLICY, POLICY_BASE):
      template = one.template or policy.tokenizer.template
      tokenizer = dataclasses.replace(policy.tokenizer, template=template)
    adapter = one.adapter or adapter_of_start(config.policy, one)
    found[name] = ModelSection(
      name,
      _base(one, weights, own),
      tokenizer,
      ImportedAdapter(path=adapter) if adapter else None,
      config.seed,
      scored=one.mode == "scored",
    )
  return found


def _weights(name, model, seed):
  return Folder(model.path) if model.path else NewWeights(name, model.new, seed)


def _base(model, weights, rules):
  group = model.quantize_group if model.quantize == "int4" else None
  rules = tuple(rules.items())
  head = getattr(model, "head", "tokens")  # that of references is no choice
  return Base(weights, model.dtype, model.quantize, group, rules, head)


def _tokenizer(name, model):
  folder = model.tokenizer or model.path
  return TokenizerSource(folder, name, model.new, model.template)
