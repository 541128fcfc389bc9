# SPDX-License-Identifier: Apache-2.0
"""The compilation cache of jax: compiled programs that outlive a command."""

import hashlib
import os
import pathlib
import platform

VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def keep_programs():
  """Has jax keep what it compiles in the user's cache folder; before jax.

  A folder that is named already stays; one that cannot be written is not
  asked for.
  """
  folder = pathlib.Path(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  )
  there = folder
  # pathlib's exists raises within a home of somebody else.
  while not os.path.exists(there) and there != there.parent:
    there = there.parent
  if os.access(there, os.W_OK | os.X_OK):
    name = f"xla-{_processor()}"
    os.environ.setdefault(VARIABLE, str(folder / "mrpo_jax" / name))


def _processor():
  """A mark of this processor: programs for another one must not run here."""
  text = platform.processor()
  try:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
      lines = [line for line in file if line.startswith(("flags", "Features"))]
  except OSError:
    lines = []
  return hashlib.sha256("".join([text, *lines[:1]]).encode()).hexdigest()[:8]
