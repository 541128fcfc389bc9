# SPDX-License-Identifier: Apache-2.0
"""Eight CPU devices, no network, no silent rank promotion."""

import importlib.metadata
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"
# Tests compile more than they compute: without optimizations by LLVM, and with
# the older emitters where they are known to be, it takes far less time.
OLDER = ["--xla_cpu_use_fusion_emitters=false"]
if not importlib.metadata.version("jaxlib").startswith("0.10."):
  OLDER = []  # XLA refuses flags that it does not know
os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    *OLDER,
  ]
)

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def rng():
  return np.random.default_rng(0)
