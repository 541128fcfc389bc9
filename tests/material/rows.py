# SPDX-License-Identifier: Apache-2.0
"""Messages of rows, and the one pair that a row holds."""

from mrpo_jax.data import formats


def user(text):
  return {"role": "user", "content": text}


def bot(text):
  return {"role": "assistant", "content": text}


def system(text):
  return {"role": "system", "content": text}


def only(row=None, **keys):
  """The pair of a row that holds one, given as a dict or by its keys."""
  (pair,) = formats.pairs_of({**(row or {}), **keys}, "row 1")
  return pair
