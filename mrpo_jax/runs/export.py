# SPDX-License-Identifier: Apache-2.0
"""Export of a checkpoint as a Hugging Face folder."""

import functools
import logging

import jax

from mrpo_jax import files, hub
from mrpo_jax.data.templates import DEFAULT
from mrpo_jax.data.tokenizer import load_tokenizer, with_template
from mrpo_jax.errors import InputError
from mrpo_jax.hub import peft
from mrpo_jax.hub.card import card_text
from mrpo_jax.hub.folder import generation_config
from mrpo_jax.models import lora, parameters
from mrpo_jax.models.config import VALUED
from mrpo_jax.models.families.read import with_scalar_head
from mrpo_jax.runs.config.models import POLICY
from mrpo_jax.runs.inference.policy import (
  adapted_params,
  read_checkpoint,
  tokenizer_of,
)
from mrpo_jax.runs.rounds.labels import SILVER
from mrpo_jax.snapshots import folder_of
from mrpo_jax.training import checkpoints
from mrpo_jax.training.log import metrics_until
from mrpo_jax.training.trackers.samples import SAMPLES

logger = logging.getLogger(__name__)


def export(workdir, to, *, step="newest", merge=False, dtype=None):
  """A checkpoint of a run as a Hugging Face folder; see `checkpoints.find`.

  Of a run that trained an adapter, that adapter as PEFT writes it; with
  `merge` the whole model, the adapter added to its base.  `dtype` is that of
  the files; None keeps the one that was trained.  A value head is left out.

  Returns:
    The step of the checkpoint.
  """
  found = read_checkpoint(workdir, step)
  workdir, step, model = found.workdir, found.step, found.model
  params, adapter = found.params, found.adapter
  if model.head == VALUED:
    logger.info(
      "the value head is left out: model folders have no place for it; the "
      "checkpoint keeps it"
    )
  beside = dict(tokenizer=_tokenizer(found), dtype=dtype)
  card = functools.partial(
    card_text, found.content, step, _metrics(workdir, step)
  )
  if adapter is not None and not merge:
    if found.origin is None:
      logger.warning(
        "warning: the adapter's base was made in this run and is written "
        "nowhere, so the adapter alone cannot be used; --merge-adapters writes "
        "a whole model"
      )
    about = dict(base=found.origin, card=card(library="peft"))
    model, params = parameters.language_model(model, params)
    peft.save(to, model, adapter, params, **about, **beside)
  else:
    if adapter is not None:
      params = lora.merge(adapted_params(found))
    model, params = parameters.language_model(model, params)
    text = card(library="transformers")
    generation = _generation(found.origin, params, dtype)
    hub.save(to, model, params, card=text, generation=generation, **beside)
  return step


def export_discriminator(workdir, to, *, step="newest", dtype=None):
  """The discriminator of an online run as the folder of a reward model.

  Returns:
    The step of the checkpoint.

  Raises:
    InputError: the run has none.
  """
  found = read_checkpoint(workdir, step)
  path = found.config.online.discriminator.path
  if not found.config.online.prompts or not path:
    raise InputError(
      f"--discriminator: {workdir} has none (its config names no "
      "online.discriminator.path)"
    )
  if path == POLICY:
    model, tokenizer = with_scalar_head(found.model), _tokenizer(found)
  else:
    model, tokenizer = hub.read_config(path), load_tokenizer(path)
  kept, _ = checkpoints.field(found.workdir, found.step, "online")
  params = kept[SILVER]["params"]
  metrics = _metrics(found.workdir, found.step)
  card = card_text(found.content, found.step, metrics, library="transformers")
  hub.save(to, model, params, tokenizer=tokenizer, dtype=dtype, card=card)
  return found.step


def _metrics(workdir, step):
  """Of each figure the newest up to that step."""
  return {
    key: value
    for line in metrics_until(workdir, step)
    for key, value in line.items()
    if key != SAMPLES
  }


def _tokenizer(found):
  """The policy's tokenizer with a chat template in any case."""
  tokenizer = tokenizer_of(found)
  if not tokenizer.chat_template:
    logger.info(
      f"the tokenizer has no chat template: the export has {DEFAULT!r}, in "
      "which the run gives conversations"
    )
  return with_template(tokenizer, "" if tokenizer.chat_template else DEFAULT)


def _generation(folder, params, dtype):
  """The source's generation_config.json; None where there is no source.

  Says where the source has another type of weights than the export.
  """
  if folder is None:
    return None
  file = folder_of(folder) / "config.json"
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
