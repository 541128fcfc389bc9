# SPDX-License-Identifier: Apache-2.0
"""Upload of a model's folder to the Hugging Face hub, by huggingface_hub."""

import contextlib
import logging

import huggingface_hub

from mrpo_jax.errors import InputError, in_one_line
from mrpo_jax.snapshots import NAME

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
  with _refused(f"--push={name}", "see `hf auth login`, or set HF_TOKEN"):
    huggingface_hub.HfApi().whoami()


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
  again = f"{folder} is whole; `hf upload {name} {folder}` sends it again"
  with _refused(f"--push={name}", again):
    # One that is there keeps who may read it.
    api.create_repo(name, private=not public, exist_ok=True)
    made = api.upload_folder(
      repo_id=name,
      folder_path=folder,
      commit_message=message,
      delete_patterns=[*STALE],
    )
  logger.info(f"{folder} is now {name} at commit {made.oid}")


@contextlib.contextmanager
def _refused(what, advice):
  try:
    yield
  except Exception as error:  # It raises many kinds, and wraps the network's.
    raise InputError(f"{what}: {in_one_line(error)}; {advice}") from None
