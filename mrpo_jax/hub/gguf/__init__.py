# SPDX-License-Identifier: Apache-2.0
"""GGUF files of llama.cpp: their models as Hugging Face folders."""

import importlib.util

from mrpo_jax.errors import InputError


def import_gguf(path, folder, *, dtype="bfloat16"):
  """Writes the model of a GGUF file as a folder, or nothing at all.

  Args:
    path: the file; of a split one, any part.
    folder: to make; it must not exist, or be empty.
    dtype: floating type of the weights, which are dequantised.

  Raises:
    UnsupportedModel: names what the file asks for and is not computed here.
    InputError: the file is not whole, a number of it is not finite, the folder
      is taken, or the package gguf is missing.
    OSError: the disk refuses.
  """
  if importlib.util.find_spec("gguf") is None:
    raise InputError(
      "GGUF files need the package gguf: pip install 'mrpo-jax[gguf]'"
    )
  from mrpo_jax.hub.gguf import convert

  convert.convert(path, folder, dtype=dtype)
