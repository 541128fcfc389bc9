# SPDX-License-Identifier: Apache-2.0
"""Export of a checkpoint as a Hugging Face folder."""

import functools
import os
import pathlib

from mrpo_jax import files, hub
from mrpo_jax.data.tokenizer import (
  load_tokenizer,
  tokenizer_fingerprint,
  with_template,
)
from mrpo_jax.errors import InputError
from mrpo_jax.hub import peft
from mrpo_jax.hub.card import card_text
from mrpo_jax.models import lora
from mrpo_jax.runs.config import BanditConfig, Folder
from mrpo_jax.runs.data import trained_folder
from mrpo_jax.runs.models import base_params
from mrpo_jax.runs.setup import best
from mrpo_jax.runs.workdir import CONFIG, recorded_config
from mrpo_jax.training import checkpoints
from mrpo_jax.training.log import metrics_until


def export(workdir, to, *, step="newest", merge=False):
  """A checkpoint of a run as a Hugging Face folder; see `checkpoints.find`.

  Of a run that trained an adapter, that adapter as PEFT writes it; with
  `merge` the whole model, the adapter added to its base.
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
  weights = section.base.weights
  tokenizer = _tokenizer(workdir, section, meta["config"].get("identity", {}))
  metrics = {
    key: value
    for line in metrics_until(workdir, step)
    for key, value in line.items()  # of each figure the newest
  }
  text = functools.partial(card_text, meta["config"], step, metrics)
  beside = dict(tokenizer=tokenizer, card=text(library="transformers"))
  if adapter is None:
    hub.save(to, model, params, **beside)
  elif merge:
    base = base_params(section.base, model)
    whole = lora.merge(lora.attach(base, params, adapter))
    hub.save(to, model, whole, **beside)
  else:
    peft.save(
      to,
      model,
      adapter,
      params,
      base=os.path.abspath(weights.path)
      if isinstance(weights, Folder)
      else None,
      tokenizer=tokenizer,
      card=text(library="peft"),
    )
  print(f"step {step} of {workdir} is now {to}")


def _tokenizer(workdir, section, identity):
  """The one that the policy was trained with, or InputError."""
  given = section.tokenizer
  folder = given.folder or trained_folder(workdir, given.key)
  tokenizer = with_template(load_tokenizer(folder), given.template)
  mark = tokenizer_fingerprint(tokenizer)
  if identity.get(f"{section.key}.tokenizer", mark) != mark:
    advice = (
      "put that one back" if given.folder else "mrpo train makes it again"
    )
    raise InputError(
      f"{folder}: not the tokenizer that {workdir} was trained with; {advice}"
    )
  return tokenizer
