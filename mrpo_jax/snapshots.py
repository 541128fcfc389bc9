# SPDX-License-Identifier: Apache-2.0
"""Folders of models by name: on this machine, or on the Hugging Face hub."""

import functools
import logging
import os
import pathlib
import re

from mrpo_jax.errors import InputError, in_one_line

logger = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
# Safetensors, configs, tokenizers and templates: no pickles, no code.
PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


def folder_of(path):
  """The folder of a model, an adapter or a tokenizer, as a pathlib.Path.

  A path that is not here and reads like a name of the hub, ORG/NAME or
  ORG/NAME@REVISION, is a snapshot of it in the cache of huggingface_hub, which
  fetches what the cache lacks, and knows of HF_TOKEN, HF_HOME and
  HF_HUB_OFFLINE.

  Raises:
    InputError: it is neither here nor to be had from the hub; says why.
  """
  return _snapshot(str(path)) if is_name(path) else pathlib.Path(path)


def is_name(path):
  """Is it a name of the hub, and nothing that is here?"""
  is_like = NAME.fullmatch(str(path)) is not None
  return is_like and not os.path.exists(path)  # which raises nothing


def wherever(path):
  """The path as it is named from any folder; a name of the hub stays one."""
  return str(path) if is_name(path) else os.path.abspath(path)


@functools.cache
def _snapshot(name):
  import huggingface_hub

  repository, _, revision = name.partition("@")
  try:
    folder = huggingface_hub.snapshot_download(
      repository, revision=revision or None, allow_patterns=[*PATTERNS]
    )
  except huggingface_hub.errors.GatedRepoError:
    reason = "it is gated; ask for access there, and set HF_TOKEN"
  except Exception as error:  # It raises many kinds, and wraps the network's.
    reason = in_one_line(error)
  else:
    folder = pathlib.Path(folder)
    logger.info(f"{name}: commit {folder.name} of the Hugging Face hub")
    return folder
  raise InputError(
    f"{name}: no such folder, and not to be had from the Hugging Face hub: "
    f"{reason}"
  ) from None
