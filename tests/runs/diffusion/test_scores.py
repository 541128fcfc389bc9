# SPDX-License-Identifier: Apache-2.0
"""Scoring of references of denoisers: what the store lacks, and no more."""

import jax
import numpy as np
import pytest

from mrpo_jax.data.images.pairs import ImagePairs
from mrpo_jax.diffusion import denoiser
from mrpo_jax.models.parameters import init_table
from mrpo_jax.references.errors import ErrorColumn
from mrpo_jax.runs.diffusion import scores
from mrpo_jax.runs.diffusion.setup import set_up
from tests.runs.diffusion.test_train import config_of

pytest.importorskip("sklearn")


def test_a_gap_is_filled_with_the_same_bits(tmp_path, monkeypatch):
  monkeypatch.setattr(scores, "BLOCK", 8)
  setup = set_up(config_of(draws=2), tmp_path / "w")
  rng = np.random.default_rng(0)
  first, second = rng.uniform(-1, 1, (2, 19, 8, 8, 1)).astype(np.float32)
  pairs = ImagePairs.of(first, second, np.arange(19) % 10)
  params = init_table(denoiser.table(setup.denoiser), jax.random.key(0))
  references = {"start": ("sha256:ab", setup.denoiser, params)}
  store, written = tmp_path / "store", []
  real = ErrorColumn.write

  def write(column, places, error_MPC):
    written.append([*places])
    real(column, places, error_MPC)

  monkeypatch.setattr(ErrorColumn, "write", write)
  found = scores.scored_errors(setup, pairs, references, store)
  assert found.shape == (2, 19, 2, 1)
  blocks = [[*range(8)], [*range(8, 16)], [16, 17, 18]]
  assert written == blocks
  (folder,) = store.iterdir()
  shards = [*folder.glob("*.parquet")]
  assert len(shards) == 3
  shards[0].unlink()
  again = scores.scored_errors(setup, pairs, references, store)
  np.testing.assert_array_equal(again, found)
  assert len(written) == 4 and written[3] in blocks
  scores.scored_errors(setup, pairs, references, store)
  assert len(written) == 4
