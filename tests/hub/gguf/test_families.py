# SPDX-License-Identifier: Apache-2.0
"""Every family through a GGUF file of llama.cpp's layout and back."""

import functools

import jax
import numpy as np
import pytest

from mrpo_jax import hub
from mrpo_jax.hub.gguf import import_gguf
from mrpo_jax.hub.gguf.architectures import ARCHITECTURES
from mrpo_jax.hub.gguf.tensors import by_head, halves
from mrpo_jax.models import transformer
from mrpo_jax.models.families import FAMILIES
from tests.material.folders import assert_identical
from tests.material.gguf_files import MODELS, write_model

TOKENS = np.arange(48).reshape(2, 24) % 7 * 40 + np.arange(24) % 11


@functools.cache
def apply(config):
  return jax.jit(functools.partial(transformer.apply, config))


def test_every_architecture_has_a_model():
  assert {architecture for architecture, _ in MODELS.values()} == {
    *ARCHITECTURES
  }
  families = {one.family for one in ARCHITECTURES.values()}
  assert families <= {*FAMILIES}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_with_the_same_log_probabilities(name, tmp_path):
  config, params = write_model(tmp_path / "m.gguf", name)
  import_gguf(tmp_path / "m.gguf", tmp_path / "back", dtype="float32")
  again, weights = hub.load(tmp_path / "back")
  assert again == config
  assert_identical(weights, jax.tree.map(jax.numpy.asarray, params))
  logps = [
    jax.nn.log_softmax(apply(config)(one, TOKENS)) for one in (params, weights)
  ]
  np.testing.assert_array_equal(*logps)
  assert np.ptp(logps[0]) > 0.3  # the model says something


def test_pairs_of_rope_become_two_halves_by_hand():
  stored = np.array([0, 3, 1, 4, 2, 5, 10, 13, 11, 14, 12, 15])
  want = [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15]
  assert halves(stored, 2).tolist() == want
  rows = np.stack([stored, stored + 100], axis=1)
  assert halves(rows, 2)[:, 1].tolist() == [100 + i for i in want]


def test_fused_rows_go_to_their_heads_by_hand():
  stored = np.array(["q0", "q1", "k0", "k1", "v0", "v1"])
  assert by_head(stored, 2).tolist() == ["q0", "k0", "v0", "q1", "k1", "v1"]
