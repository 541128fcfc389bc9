# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: whose it is, and its first file."""

import errno
import json
import os

from mrpo_jax import checkpoints, settings, writer
from mrpo_jax.errors import InputError

CONFIG = "config.json"


def known_run(workdir, config):
  """What the workdir says it is; None if it is new.  Changes nothing."""
  if workdir.exists() and not workdir.is_dir():
    raise InputError(f"--workdir {workdir} is a file; name a folder")
  path = workdir / CONFIG
  if not path.exists():
    if checkpoints.steps(workdir):
      raise InputError(f"{workdir} holds checkpoints but no {CONFIG}")
    return None
  try:
    known = json.loads(path.read_text(encoding="utf-8"))
  except ValueError:
    raise InputError(f"{path} is not JSON; use another --workdir") from None
  refuse_other(workdir, config, known)
  return known


def refuse_other(workdir, here, known):
  """Raises InputError where `known` differs from `here`, naming the key."""
  there = {key: known.get(key) for key in here}
  for difference in settings.differences(here, there):
    raise InputError(
      f"--workdir {workdir} belongs to another run: {difference}; "
      "use another --workdir"
    )


def claim(workdir, values, tokenizers=None):
  """The first thing that a new run leaves behind; config.json comes last.

  Args:
    workdir: folder of the run; made if it does not exist.
    values: content of config.json, unless it is there already.
    tokenizers: {folder: tokenizer} saved beside it.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if not os.access(workdir, os.W_OK):
      raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    if not (workdir / CONFIG).exists():
      for folder, tokenizer in (tokenizers or {}).items():
        tokenizer.save_pretrained(workdir / folder)
      writer.write_json(workdir / CONFIG, values)
  except OSError as error:
    raise InputError(
      f"--workdir {workdir} cannot be written: {error.strerror}"
    ) from None
