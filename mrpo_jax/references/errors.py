# SPDX-License-Identifier: Apache-2.0
"""Errors of denoisers under fixed noises: a column of the store for each."""

import dataclasses
import pathlib

import numpy as np
import pyarrow as pa

from mrpo_jax import files
from mrpo_jax.references.store import (
  CHOICES,
  ERROR,
  ERROR_COLUMNS,
  ERRORS,
  LAYOUTS,
  begin_table,
  key_of,
  known_pairs,
  lists_of,
  rows_of,
  write_table,
)


@dataclasses.dataclass(frozen=True)
class ErrorColumn:
  """Errors of one denoiser in pairs of images, M noises of each.

  A pair's noises follow from its place in the data, so that rows are found by
  that.  Nothing is made on disk before `begin` or `write`.
  """

  root: str | pathlib.Path
  material: dict  # the denoiser, the pairs in their order, the noises

  @property
  def folder(self):
    return files.path_of(self.root) / key_of(self.material)

  def known(self):
    """The places of all pairs that `read` would find."""
    return set(map(int, known_pairs(self.folder, ERRORS)))

  def begin(self):
    """See `store.begin_table`."""
    begin_table(self.folder, self.material, ERROR_COLUMNS)

  def write(self, place_P, error_MPC):
    """Adds one file, of the pairs at these places.

    Raises:
      ValueError: an error that is not finite, or arrays of other shapes.
    """
    error_MPC = np.asarray(error_MPC, np.float32)
    if error_MPC.shape[1:] != (len(place_P), len(CHOICES)):
      raise ValueError(f"{len(place_P)} pairs, errors {error_MPC.shape}")
    if not np.isfinite(error_MPC).all():
      raise ValueError("an error is not finite")
    columns = {"pair": _names(place_P)} | {
      f"{ERROR}_{choice}": list(error_MPC[:, :, c].T)
      for c, choice in enumerate(CHOICES)
    }
    table = pa.table(columns, schema=LAYOUTS[ERRORS])
    write_table(self.folder, self.material, ERROR_COLUMNS, table)

  def read(self, count):
    """error_MNC, float32, of all of so many pairs.

    Raises:
      MissingRows: not all of them are here.
    """
    table = rows_of(self.folder, ERRORS, _names(range(count)))
    columns = [
      np.stack([*lists_of(table[f"{ERROR}_{choice}"])]) for choice in CHOICES
    ]
    return np.stack(columns, axis=-1).swapaxes(0, 1)


def _names(places):
  """Places as the column `pair` has them, which sort as they do."""
  return [f"{place:010d}" for place in places]
