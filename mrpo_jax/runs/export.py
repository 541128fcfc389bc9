# SPDX-License-Identifier: Apache-2.0
"""Export of a checkpoint as a Hugging Face folder."""

import functools
import logging
import os
import pathlib

import jax

from mrpo_jax import files, hub
from mrpo_jax.data.templates import DEFAULT
from mrpo_jax.data.tokenizer import load_tokenizer, with_template
from mrpo_jax.errors import InputError
from mrpo_jax.hub import peft
from mrpo_jax.hub.card import card_text
from mrpo_jax.hub.folder import generation_config
from mrpo_jax.models import lora
from mrpo_jax.runs.config import BanditConfig, Folder
from mrpo_jax.runs.data import fingerprint_of, trained_folder
from mrpo_jax.runs.models import ADAPTED, base_params
from mrpo_jax.runs.setup import best
from mrpo_jax.runs.workdir import CONFIG, recorded_config
from mrpo_jax.training import checkpoints
from mrpo_jax.training.log import metrics_until

logger = logging.getLogger(__name__)


def export(workdir, to, *, step="newest", merge=False, dtype=None):
  """A checkpoint of a run as a Hugging Face folder; see `checkpoints.find`.

  Of a run that trained an adapter, that adapter as PEFT writes it; with
  `merge` the whole model, the adapter added to its base.  `dtype` is that of
  the files; None keeps the one that was trained.
  """
  workdir = pathlib.Path(workdir)
  if not (workdir / CONFIG).exists():
    raise InputError(f"--workdir {workdir} holds no run (no {CONFIG})")
  config = recorded_config(workdir / CONFIG, files.read_json(workdir / CONFIG))
  if isinstance(config, BanditConfig):
    raise InputError(f"--workdir {workdir}: a bandit has no model to export")
  step = checkpoints.find(workdir, step, best(config))
  params, model, adapter, meta = checkpoints.policy(workdir, step)
  # The config of that step.
  config = recorded_config(f"{workdir} step {step}", meta["config"])
  section = config.models()["policy"]
  identity = meta["config"].get("identity", {})
  beside = dict(tokenizer=_tokenizer(section, workdir, identity), dtype=dtype)
  card = functools.partial(
    card_text, meta["config"], step, _metrics(workdir, step)
  )
  if adapter is not None and not merge:
    base, text = _origin(section), card(library="peft")
    if base is None:
      logger.warning(
        "warning: the adapter's base was made in this run and is written "
        "nowhere, so the adapter alone cannot be used; --merge-adapters writes "
        "a whole model"
      )
    peft.save(to, model, adapter, params, base=base, card=text, **beside)
  else:
    if adapter is not None:
      _check_base(section, identity)
      base = base_params(section.base, model)
      params = lora.merge(lora.attach(base, params, adapter))
    text = card(library="transformers")
    generation = _generation(section, params, dtype)
    hub.save(to, model, params, card=text, generation=generation, **beside)
  print(f"step {step} of {workdir} is now {to}")


def _metrics(workdir, step):
  """Of each figure the newest up to that step."""
  return {
    key: value
    for line in metrics_until(workdir, step)
    for key, value in line.items()
  }


def _tokenizer(section, workdir, identity):
  """The policy's tokenizer with the chat template that it was trained with."""
  given = section.tokenizer
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
      "one that was trained with; the export has it as it is now"
    )
  if not tokenizer.chat_template:
    logger.info(
      f"{folder} has no chat template: the export has {DEFAULT!r}, in which "
      "the run gives conversations"
    )
  return with_template(tokenizer, "" if tokenizer.chat_template else DEFAULT)


def _origin(section):
  """The folder of the policy's weights; None where they were made here."""
  weights = section.base.weights
  return os.path.abspath(weights.path) if isinstance(weights, Folder) else None


def _check_base(section, identity):
  """Raises InputError where the base is not the one that was trained on."""
  folder = _origin(section)
  known = identity.get("policy", "").partition(ADAPTED)[0].split(" ")[0]
  if folder and known and hub.fingerprint(folder) != known:
    raise InputError(
      f"{folder} is not the model that the adapter was trained on: its "
      "config.json or its weights have changed; put them back, or export "
      "without --merge-adapters"
    )


def _generation(section, params, dtype):
  """The source's generation_config.json; None where there is no source.

  Says where the source has another type of weights than the export.
  """
  folder = _origin(section)
  if folder is None:
    return None
  file = pathlib.Path(folder) / "config.json"
  if not file.is_file():
    logger.warning(
      f"warning: {file} is gone, and what stood beside it: "
      "generation_config.json has the first and the end token alone"
    )
    return None
  values, here = files.read_json(file), jax.tree.leaves(params)[0].dtype.name
  there = values.get("dtype") or values.get("torch_dtype") or here
  if dtype is None and there != here:
    logger.info(
      f"the weights are {here}, as trained; those of {folder} are {there}: "
      f"--dtype={there} writes that"
    )
  return generation_config(folder)
