# SPDX-License-Identifier: Apache-2.0
"""Numbers as people read them."""

import pytest

from mrpo_jax.evaluation.statistics import paired_interval
from mrpo_jax.text import with_interval


@pytest.mark.parametrize(
  "items,said",
  [
    ([1, 0], "0.50 [0.00, 1.00]"),
    ([0, 0, 0], "0.00 [all agree]"),
    ([0.1, 0.1, 0.1], "0.10 [all agree]"),
    ([0.1, 0.1001], "0.10 [0.10, 0.10]"),  # narrow, but not without width
  ],
)
def test_an_interval_without_width_is_none(items, said):
  mean = sum(items) / len(items)
  assert with_interval(mean, paired_interval(items), ".2f") == said
