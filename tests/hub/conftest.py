# SPDX-License-Identifier: Apache-2.0
"""A model folder to damage."""

import shutil

import pytest

from tests.material.folders import GOLDEN


@pytest.fixture
def folder(tmp_path):
  """A copy of the untied golden model, in float32."""
  shutil.copytree(GOLDEN / "llama_theta", tmp_path / "model")
  return tmp_path / "model"
