# SPDX-License-Identifier: Apache-2.0
"""Config of a run: read from a file, completed and checked at once."""

import functools
import logging

import pydantic

from mrpo_jax.errors import InputError, blames
from mrpo_jax.runs.config import sources
from mrpo_jax.runs.config.bandit import BanditConfig
from mrpo_jax.runs.config.data import Data
from mrpo_jax.runs.config.diffusion import DiffusionConfig
from mrpo_jax.runs.config.models import (
  POLICY,
  is_of_policy,
  models_of,
)
from mrpo_jax.runs.config.online import Online, check_online
from mrpo_jax.runs.config.section import (
  Count,
  NotNegative,
  Section,
  Whole,
  Whole32,
  key,
  lists_as,
  place_text,
)
from mrpo_jax.runs.config.sections import (
  Checkpoints,
  Evaluation,
  Loss,
  Mesh,
  Optimizer,
  Policy,
  References,
  ReferenceUpdate,
  Rounds,
  Samples,
  Tracking,
  tracking_key,
)

logger = logging.getLogger(__name__)

RENAMED = {"optimizer.end_lr": "optimizer.end_lr_share"}  # old key: its name
KINDS = {"bandit": BanditConfig, "denoiser": DiffusionConfig}  # by a section


class Config(Section):
  """A run that trains a model."""

  seed: Whole32 = key("of new weights, the order of pairs, and dropout", 0)
  steps: Whole32 = key("optimizer steps of the whole run; 0: by epochs", 0)
  epochs: NotNegative = key(
    "passes over data.train, in place of steps",
    0.0,
    exclude_if=lambda one: not one,
  )
  batch: Count = key("pairs in one optimizer step, over all hosts")
  log_every: Count = key("steps between lines of metrics.jsonl", 1)
  eval_every: Whole = key("steps between evaluations; 0: at the end", 0)
  checkpoint_every: Whole = key("steps between checkpoints; 0: at the end", 0)
  checkpoints: Checkpoints
  data: Data
  # Runs of before have no such sections.
  evaluation: Evaluation = key("", exclude_if=lambda one: not one.tasks)
  samples: Samples = key("", exclude_if=lambda one: not one.prompts)
  online: Online = key("", exclude_if=lambda one: not one.prompts)
  tracking: Tracking = tracking_key()
  mesh: Mesh
  reference_update: ReferenceUpdate
  rounds: Rounds
  optimizer: Optimizer
  policy: Policy
  references: References
  loss: Loss

  def checked(self):
    """Itself, where its sections agree; with what a reference inherits."""
    named = self.references.items()
    sections = {f"references.{name}": one for name, one in named}
    for where, model in {"policy": self.policy, **sections}.items():
      if not model.path and model.new is None:
        raise InputError(
          f"config.{where}.path is empty: name a Hugging Face folder, or "
          f"describe a new model in config.{where}.new"
        )
      new = model.new
      if new and not new.experts and new.experts_per_token != 2:  # its default
        raise InputError(
          f"config.{where}.new.experts_per_token={new.experts_per_token} of no "
          f"experts: give config.{where}.new.experts, too"
        )
    if POLICY in self.references.names:
      raise InputError(
        "config.references.names: 'policy' is the policy; name the reference "
        "otherwise"
      )
    kind = self.policy.quantize
    if kind and not self.policy.adapter:
      raise InputError(
        f"config.policy.quantize={kind!r} needs config.policy.adapter: "
        "integers are not trained"
      )
    self._check_steps()
    whole = self._inherited()
    whole.loss.check("config.loss")
    whole._check_moves()
    check_online(whole)
    return whole

  def _inherited(self):
    """With what each reference takes from the policy where that is its path."""
    policy, inherited = self.policy, {}
    for name, one in self.references.items():
      is_policy = is_of_policy(one)
      dtype = one.dtype or (policy.dtype if is_policy else "float32")
      taken = {"dtype": dtype}
      if is_policy and policy.quantize:
        if one.quantize not in ("", policy.quantize):
          raise InputError(
            f"config.references.{name}.quantize={one.quantize!r}, but the "
            f"policy is {policy.quantize}; name its folder instead of "
            "path='policy'"
          )
        taken["quantize"] = policy.quantize
        taken["quantize_group"] = policy.quantize_group
      inherited[name] = one.model_copy(update=taken)
    references = self.references.model_copy(update=inherited)
    return self.model_copy(update={"references": references})

  def _check_steps(self):
    """Raises InputError where the length of the run is not given once."""
    if not (self.steps or self.epochs):
      raise InputError(
        "config.steps must be positive, or config.epochs be given in its place"
      )
    if self.steps and self.epochs:
      raise InputError(
        f"config.steps={self.steps} and config.epochs={self.epochs:g} both say "
        "how long the run is; give one (the other as 0)"
      )
    if self.epochs and (self.online.prompts or self.rounds.count > 1):
      raise InputError(
        "config.epochs are passes over config.data.train; of a run by rounds "
        "give config.steps"
      )

  def over(self, count):
    """The Config whose epochs are steps over that many pairs.

    The last batch of all epochs together is left out where it is not full.

    Raises:
      InputError: they are fewer than a batch.
    """
    if not self.epochs:
      return self
    steps = int(round(self.epochs * count / self.batch, 6))
    if not steps:
      raise InputError(
        f"config.epochs={self.epochs:g} of {count:,} pairs are less than a "
        f"batch of config.batch={self.batch}"
      )
    return self.changed({"steps": steps, "epochs": 0.0})

  def _check_moves(self):
    """Raises InputError where reference 0 is to move, but cannot."""
    every, rounds = self.reference_update.every, self.rounds.count
    if self.steps % rounds:
      raise InputError(
        f"config.rounds.count={rounds} does not divide config.steps="
        f"{self.steps}"
      )
    if not every and rounds == 1:
      return
    moves = f"config.{'reference_update.every' if every else 'rounds.count'}"
    policy, names = self.policy, self.references.names
    if not names or self.references[names[0]].path != POLICY:
      raise InputError(
        f"{moves} moves the first reference, whose path must be 'policy'"
      )
    where, base = f"references.{names[0]}", self.references[names[0]]
    wanted = {"mode": "online", "adapter": "", "rules": {}}
    wanted |= {"dtype": policy.dtype, "quantize": policy.quantize}
    for name, want in wanted.items():
      if getattr(base, name) != want:
        raise InputError(
          f"{moves} moves the first reference: config.{where}.{name} must be "
          f"{want!r}, got {getattr(base, name)!r}"
        )

  def models(self):
    """{"policy" or name of a reference: ModelSection}, the policy first."""
    return models_of(self)

  def changed(self, values):
    """The Config with other values at dotted keys."""
    whole = self.to_dict()
    for place, value in values.items():
      *parents, name = place.split(".")
      functools.reduce(dict.__getitem__, parents, whole)[name] = value
    return read(whole)


def read(values):
  """The Config of a nested dict, or one of KINDS; complete and checked.

  Raises:
    InputError: an unknown key (the known ones are listed), a missing one, a
      wrong type, a number out of range or not finite.
  """
  values, _ = renamed(values)
  try:
    config = _kind(values).model_validate(with_defaults(values))
  except pydantic.ValidationError as found:
    error = found.errors()[0]
    raise InputError(
      f"config.{place_text(error['loc'])} {error['ctx']['sentence']}"
    ) from None
  return config.checked()


def renamed(values):
  """(the nested dict with old keys under their names, [those old keys]).

  Raises:
    InputError: a key stands there under both names.
  """
  found = []
  for old, new in RENAMED.items():
    (section, old_name), (_, name) = old.split("."), new.split(".")
    given = values.get(section)
    if not isinstance(given, dict) or old_name not in given:
      continue
    if given.get(name) is not None:
      raise InputError(
        f"config.{old} is the old name of config.{new}: give one"
      )
    kept = {k: one for k, one in given.items() if k != old_name}
    values = {**values, section: {**kept, name: given[old_name]}}
    found.append(old)
  return values, found


def say_renamed(keys):
  """A line for each old key that was given."""
  for old in keys:
    logger.warning(f"config.{old} is called config.{RENAMED[old]} now")


def with_defaults(values):
  """A config's nested dict with every default that it leaves out.

  What is wrong in it stays wrong: `read` says so.
  """
  return _kind(values).filled(lists_as(tuple, values))


def _kind(values):
  return next((kind for name, kind in KINDS.items() if name in values), Config)


def load(given):
  """The Config of FILE[:args]; see `read`."""
  return read(values_of(given))


def values_of(given):
  """The nested dict of what --config names, old keys under their names."""
  values = sources.values_of(given)
  with blames(f"--config {given}", InputError):
    values, old = renamed(values)
  say_renamed(old)
  return values
