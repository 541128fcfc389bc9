# SPDX-License-Identifier: Apache-2.0
"""Eight CPU devices, no network, no silent rank promotion; shared folders."""

import importlib.metadata
import os
import shutil
import signal

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"
# Tests compile more than they compute: without optimizations by LLVM, with the
# older emitters and in one piece it takes far less time.
KNOWN = [
  "--xla_cpu_use_fusion_emitters=false",
  "--xla_cpu_parallel_codegen_split_count=1",
]
if not importlib.metadata.version("jaxlib").startswith("0.10."):
  KNOWN = []  # XLA refuses flags that it does not know
os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    *KNOWN,
  ]
)

# Where `JAX_COMPILATION_CACHE_DIR` names a folder, a program that two tests or
# workers share is compiled once; jax keeps none below a second otherwise.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

# Also in the background, where shells have programs ignore it, tests and what
# they start hear Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

import filelock  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from tests.material import inputs as material  # noqa: E402
from tests.material.runs import on_one_device  # noqa: E402

SHARED = {}  # {folder of `shared`: what `written` told when it was filled}
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def rng():
  return np.random.default_rng(0)


@pytest.fixture
def one_device():
  """What is the same on eight devices compiles faster for one."""
  with on_one_device():
    yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
  """shared(name, fill): a folder that one worker fills, and all may read."""
  root = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    root = root.parent

  def folder_of(name, fill):
    folder, filled = root / name, root / f"{name}.filled"
    with filelock.FileLock(root / f"{name}.lock"):
      if not filled.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        fill(folder)
        filled.write_text(written(folder))
      SHARED[folder] = filled.read_text()
    return folder

  return folder_of


def written(folder):
  """When a name was last made or removed in it and in each folder below."""
  stamps = [(path, os.stat(path).st_mtime_ns) for path, *_ in os.walk(folder)]
  return repr(sorted(stamps))


@pytest.fixture(scope="module", autouse=True)
def only_read():
  """What workers share stays as it was, also for a moment.

  A run's lease in it, say, is copied by the test beside, whose copy then looks
  like a run that lives.
  """
  yield
  for folder, stamps in SHARED.items():
    assert written(folder) == stamps, f"{folder} was written to; take a copy"


@pytest.fixture(scope="session")
def inputs(shared):
  """What `tests/material/config.py` reads."""
  return shared("inputs", material.make_inputs)
