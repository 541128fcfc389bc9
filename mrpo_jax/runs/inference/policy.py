# SPDX-License-Identifier: Apache-2.0
"""The policy of a checkpoint: its weights and the tokenizer it had."""

import dataclasses
import hashlib
import json
import logging
import pathlib

from mrpo_jax import files, hub
from mrpo_jax.data.tokenizer import load_tokenizer, with_template
from mrpo_jax.errors import InputError
from mrpo_jax.models import lora
from mrpo_jax.models.config import ModelConfig
from mrpo_jax.runs.config import Config, Folder, ModelSection
from mrpo_jax.runs.data import fingerprint_of, trained_folder
from mrpo_jax.runs.models import ADAPTED, base_params
from mrpo_jax.runs.setup import best
from mrpo_jax.runs.workdir import CONFIG, recorded_config
from mrpo_jax.snapshots import wherever
from mrpo_jax.training import checkpoints

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """What a checkpoint holds of its policy; parameters are on the host."""

  workdir: pathlib.Path
  step: int
  content: dict  # of the config.json of that step
  config: Config
  model: ModelConfig
  params: dict  # of the adapter, where one was trained
  adapter: lora.Adapter | None
  mark: str  # by which the parameters are known

  @property
  def section(self) -> ModelSection:
    return self.config.models()["policy"]

  @property
  def identity(self):
    """What data, tokenizers and models of the run were."""
    return self.content.get("identity", {})

  @property
  def origin(self):
    """The folder of the policy's start; None where its weights were made."""
    weights = self.section.base.weights
    return wherever(weights.path) if isinstance(weights, Folder) else None


def find_step(workdir, step):
  """The step of a run that is meant; see `checkpoints.find`.

  Raises:
    InputError: the folder holds no run with a model, or no such step.
  """
  workdir = files.path_of(workdir)
  if not (workdir / CONFIG).exists():
    raise InputError(f"--workdir {workdir} holds no run (no {CONFIG})")
  config = recorded_config(workdir / CONFIG, files.read_json(workdir / CONFIG))
  if not isinstance(config, Config):
    raise InputError(f"--workdir {workdir} holds no language model")
  return checkpoints.find(workdir, step, best(config))


def read_checkpoint(workdir, step):
  """The Checkpoint of a run that is meant; see `find_step`."""
  workdir = files.path_of(workdir)
  step = find_step(workdir, step)
  params, model, adapter, meta = checkpoints.policy(workdir, step)
  content = meta["config"]
  config = recorded_config(f"{workdir} step {step}", content)
  start = content.get("identity", {}).get("policy")
  text = json.dumps([start, meta["checksum"]["params"]])
  mark = hashlib.sha256(text.encode()).hexdigest()
  return Checkpoint(
    workdir, step, content, config, model, params, adapter, mark
  )


def tokenizer_of(checkpoint):
  """The policy's tokenizer with the chat template that it was trained with."""
  given, identity = checkpoint.section.tokenizer, checkpoint.identity
  workdir = checkpoint.workdir
  folder = given.folder or trained_folder(workdir, given.key)
  tokenizer = load_tokenizer(folder)
  mark = fingerprint_of(tokenizer, given.template, identity)
  tokenizer = with_template(tokenizer, given.template)
  if identity.get("policy.tokenizer", mark) != mark:
    if not given.folder:
      raise InputError(
        f"{folder}: not the tokenizer that {workdir} was trained with; mrpo "
        "train makes it again"
      )
    logger.warning(
      f"warning: the tokenizer of {folder}, or its chat template, is not the "
      "one that was trained with; here it is as it is now"
    )
  return tokenizer


def adapted_params(checkpoint, base=None, place=None, mesh=None):
  """The base of a trained adapter with that adapter on.

  Args:
    checkpoint: Checkpoint with an adapter.
    base: config.models.Base to read; None is that of the run.
    place: of the adapter's arrays to where they are used; None leaves them.
    mesh: of the base; None is the default device.

  Raises:
    InputError: the base is not the one that was trained on.
  """
  section, folder = checkpoint.section, checkpoint.origin
  known = checkpoint.identity.get("policy", "").partition(ADAPTED)[0]
  known = known.split(" ")[0]
  if folder and known and hub.fingerprint(folder) != known:
    raise InputError(
      f"{folder} is not the model that the adapter was trained on: its "
      "config.json or its weights have changed; put them back"
    )
  arrays = place(checkpoint.params) if place else checkpoint.params
  params = base_params(base or section.base, checkpoint.model, mesh)
  return lora.attach(params, arrays, checkpoint.adapter)
