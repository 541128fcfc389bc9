# SPDX-License-Identifier: Apache-2.0
"""Weights of references in a column of rows: which one a pair leans on."""

import dataclasses

from mrpo_jax import files
from mrpo_jax.errors import InputError, did_you_mean


@dataclasses.dataclass(frozen=True)
class WeightColumn:
  """A column that holds a weight for each of K references.

  A list of K numbers, in the order of the references, or {name: number}, where
  one that is not named has weight 0.
  """

  name: str
  references: tuple[str, ...]

  def of(self, row, where):
    """The weights in a row, K floats that sum to 1.

    Raises:
      InputError: there are none, or other than non-negative finite numbers
        that are not all 0; begins with `where`.
    """
    given, where = row.get(self.name), f"{where}: {self.name!r}"
    if isinstance(given, dict):
      values = self._by_name(given, where)
    elif isinstance(given, list):
      values = given
    else:
      raise InputError(
        f"{where} must hold weights of the references, a list of "
        f"{len(self.references)} numbers or an object by their names; "
        f"{'it is missing' if given is None else f'it is {given!r:.40}'}"
      )
    if len(values) != len(self.references):
      raise InputError(
        f"{where} holds {len(values)} weights for {len(self.references)} "
        f"references ({', '.join(self.references)})"
      )
    for name, value in zip(self.references, values, strict=True):
      if not files.is_figure(value) or value < 0:
        raise InputError(
          f"{where}: the weight of {name} is {value!r:.40}; want a number, not "
          "negative and finite"
        )
    largest = float(max(values))
    if not largest:
      raise InputError(f"{where}: all weights are 0; want one above it")
    shares = [value / largest for value in values]  # whose sum is finite
    return tuple(share / sum(shares) for share in shares)

  def _by_name(self, given, where):
    for name in given:
      if name not in self.references:
        known = ", ".join(self.references)
        raise InputError(
          f"{where}: {name!r} is no reference of this run;"
          f"{did_you_mean(name, self.references)} they are {known}"
        )
    values = [given.get(name) for name in self.references]
    # In Parquet a field that a row lacks is null.
    return [0 if value is None else value for value in values]
