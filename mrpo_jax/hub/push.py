# SPDX-License-Identifier: Apache-2.0
"""Upload of a model's folder to the Hugging Face hub, by huggingface_hub."""

import contextlib
import filecmp
import fnmatch
import logging
import os
import pathlib
import shutil

import huggingface_hub
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from mrpo_jax import files
from mrpo_jax.errors import InputError
from mrpo_jax.snapshots import NAME, in_one_line_of_hub

logger = logging.getLogger(__name__)

# What another model may have left in the repository, and would be read in the
# place of this one.
STALE = (
  *("*.safetensors", "*.safetensors.index.json"),
  *("config.json", "adapter_config.json", "generation_config.json"),
  *("chat_template.jinja", "added_tokens.json", "special_tokens_map.json"),
  "tokenizer.model",
)


def check(name):
  """Refuses what `push` could not do, before anything is written.

  Args:
    name: ORG/NAME of a repository.

  Raises:
    InputError: that is no such name, or the hub knows no token or cannot be
      reached.
  """
  if not NAME.fullmatch(name) or "@" in name:
    raise InputError(f"--push={name}: name a repository as ORG/NAME")
  try:
    validate_repo_id(name)
  except HFValidationError as error:
    raise InputError(f"--push={name}: {error}") from None
  advice = "where it is the token, see `hf auth login`, or set HF_TOKEN"
  with _refused(f"--push={name}", advice):
    huggingface_hub.HfApi().whoami()


def is_filled(folder):
  """Is it a folder that has something in it, as a stopped push leaves one?"""
  return os.path.isdir(folder) and bool(os.listdir(folder))


def refuse_other(folder, export):
  """Refuses a folder that is not what a command exports, byte for byte.

  One whose push was stopped is, where nothing has changed since.

  Args:
    folder: that is there.
    export: function of a folder that writes it; called for one beside that.

  Raises:
    InputError: it is another one, or another command makes it.
  """
  folder = files.absolute(folder)
  again = folder.with_name(f".{folder.name}.partial-again")
  logger.info(f"{folder} exists: exporting again, to tell if it is the same")
  with files.alone(folder):
    shutil.rmtree(again, ignore_errors=True)  # of a command that was killed
    try:
      export(again)
      is_same = _are_same(again, folder)
    finally:
      shutil.rmtree(again, ignore_errors=True)
  if not is_same:
    raise InputError(
      f"{folder} exists, and is not what this command exports; remove it or "
      "name another folder"
    )


def _are_same(one, other):
  named = [
    {path.relative_to(folder): path for path in files.below(folder)}
    for folder in (one, other)
  ]
  return named[0].keys() == named[1].keys() and all(
    filecmp.cmp(path, named[1][name], shallow=False)
    for name, path in named[0].items()
    if path.is_file()
  )


def push(folder, name, *, public=False, message):
  """Uploads a folder as one commit to a repository, made if there is none.

  What another model has left there of STALE is removed by the same commit.

  Args:
    folder: of a model or an adapter.
    name: ORG/NAME.
    public: may everybody read a repository that is made here?
    message: of the commit.

  Raises:
    InputError: the hub takes it not; the folder stays.
  """
  api = huggingface_hub.HfApi()
  advice = f"{folder} is whole; the same command sends it again"
  with _refused(f"--push={name}", advice):
    # One that is there keeps who may read it.
    api.create_repo(name, private=not public, exist_ok=True)
    # `upload_folder` may make several commits, of which the first is no model.
    made = api.create_commit(
      name, _operations(api, folder, name), commit_message=message
    )
  logger.info(f"{folder} is now {name} at commit {made.oid}")


def _operations(api, folder, name):
  """What one commit has: all files of a folder, and no STALE ones beside."""
  added = {
    path.relative_to(folder).as_posix(): path
    for path in sorted(pathlib.Path(folder).rglob("*"))
    if path.is_file()
  }
  stale = [
    there
    for there in api.list_repo_files(name)
    if there not in added
    and any(fnmatch.fnmatch(there, pattern) for pattern in STALE)
  ]
  return [
    *(huggingface_hub.CommitOperationDelete(there) for there in stale),
    *(
      huggingface_hub.CommitOperationAdd(there, str(path))
      for there, path in added.items()
    ),
  ]


@contextlib.contextmanager
def _refused(what, advice):
  try:
    yield
  except Exception as error:  # It raises many kinds, and wraps the network's.
    said = in_one_line_of_hub(error)
    raise InputError(f"{what}: {said}; {advice}") from None
