# SPDX-License-Identifier: Apache-2.0
"""Folders of models by name: on disks, in buckets, on the Hugging Face hub."""

import functools
import hashlib
import logging
import os
import pathlib
import re
import time

from mrpo_jax import buckets, files
from mrpo_jax.buckets import is_bucket
from mrpo_jax.errors import InputError, StoppedRun, in_one_line

logger = logging.getLogger(__name__)

PATIENCE, POLL = 3600.0, 0.2  # seconds, while another process copies
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
# Safetensors, configs, tokenizers and templates: no pickles, no code.
PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


def folder_of(path):
  """The folder of a model, an adapter or a tokenizer, as a pathlib.Path.

  Of a folder in a bucket it is a copy in a cache of this machine; see
  `_copied`.

  A path that is not here and reads like a name of the hub, ORG/NAME or
  ORG/NAME@REVISION, is a snapshot of it in the cache of huggingface_hub, which
  fetches what the cache lacks, and knows of HF_TOKEN, HF_HOME and
  HF_HUB_OFFLINE.

  Raises:
    InputError: it is neither here nor to be had from the hub; says why.
  """
  if is_bucket(path):
    return _copied(str(path))
  return _snapshot(str(path)) if is_name(path) else pathlib.Path(path)


def is_name(path):
  """Is it a name of the hub, and nothing that is here?"""
  is_like = NAME.fullmatch(str(path)) is not None
  return is_like and not os.path.exists(path)  # which raises nothing


def wherever(path):
  """The path as it is named from any folder; a name of the hub stays one."""
  return str(path) if is_name(path) else str(files.absolute(path))


@functools.cache
def _copied(url):
  """The copy of a bucket's folder; made once for all processes of a machine.

  What the service says of its objects is a part of the copy's name: where one
  is put again, the next command makes another copy.

  Raises:
    InputError: the folder is not there, has a name in it that leaves it, or
      another process copies it for long.
    StoppedRun: it was written meanwhile.
  """
  url = str(buckets.path_of(url))  # no slash at its end
  marks = buckets.marks_of(url)
  if not marks:
    raise InputError(f"{url}: no such folder in the bucket")
  digest = hashlib.sha256(f"{url} {marks}".encode()).hexdigest()
  copy = _cache() / digest[:32] / url.rpartition("/")[2]
  end = time.monotonic() + PATIENCE
  while not copy.is_dir():
    try:
      with files.new_folder(copy) as partial:
        logger.info(f"{url}: copying {len(marks)} files to {copy}")
        buckets.fetch_folder(url, partial)
        if buckets.marks_of(url) != marks:
          raise StoppedRun(
            f"{url} was written while it was copied; give the same command "
            "again"
          )
    except InputError:  # another process does so, or has done it
      if not copy.is_dir() and time.monotonic() > end:
        raise
      time.sleep(POLL)
  return copy


def _cache():
  home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  return pathlib.Path(home) / "mrpo_jax" / "buckets"


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
    reason = in_one_line_of_hub(error)
  else:
    folder = pathlib.Path(folder)
    if folder.is_dir():
      logger.info(f"{name}: commit {folder.name} of the Hugging Face hub")
      return folder
    reason = "it holds no file that is read here"
  raise InputError(
    f"{name}: no such folder, and not to be had from the Hugging Face hub: "
    f"{reason}"
  ) from None


def in_one_line_of_hub(error):
  """`in_one_line` of what huggingface_hub raises, and of what that came from.

  Without secrets: servers quote a token that they refuse, and addresses of
  uploads are signed.
  """
  import huggingface_hub

  causes = [error] if error.__cause__ is None else [error, error.__cause__]
  token = huggingface_hub.get_token()
  hidden = {re.escape(token): "***"} if token else {}
  hidden[r"(https?://[^\s?'\"]+\?)[^\s'\"]+"] = r"\1..."
  return ": ".join(in_one_line(one, hidden) for one in causes)[:400]
