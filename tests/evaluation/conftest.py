# SPDX-License-Identifier: Apache-2.0
"""A model for the harness, and rows of benchmarks in files."""

import pytest

from mrpo_jax import hub
from mrpo_jax.data.tokenizer import load_tokenizer
from mrpo_jax.evaluation import HarnessLM
from tests.material.benchmarks import write_benchmarks


@pytest.fixture(scope="session")
def benchmarks(shared):
  return shared("benchmarks", write_benchmarks)


@pytest.fixture(scope="session")
def lm(inputs):
  config, params = hub.load(inputs / "base", dtype="float32")
  return HarnessLM(config, params, load_tokenizer(inputs / "base"))
