# SPDX-License-Identifier: Apache-2.0
"""Runs of a study share what they compile, as its command has it."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="package")
def programs(tmp_path_factory):
  """Programs that were compiled before are read, not compiled again."""
  before = jax.config.jax_compilation_cache_dir
  jax.config.update(
    "jax_compilation_cache_dir", str(tmp_path_factory.mktemp("programs"))
  )
  compilation_cache.reset_cache()
  yield
  jax.config.update("jax_compilation_cache_dir", before)
  compilation_cache.reset_cache()
