# SPDX-License-Identifier: Apache-2.0
"""Commands of a run, and what it leaves."""

import contextlib
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mrpo_jax import cli, files, parallel

ROOT = pathlib.Path(__file__).parents[2]
QUICKSTART = f"{ROOT}/configs/quickstart.py"


def mrpo(*argv):
  """Exit code of the command."""
  return cli.main([str(word) for word in argv])


def train_debug(workdir, *overrides, run="mrpo"):
  config = f"--config={QUICKSTART}:{run},debug"
  return mrpo("train", config, f"--workdir={workdir}", *overrides)


@contextlib.contextmanager
def on_one_device():
  """Commands here see one of the devices."""
  make, one = parallel.make_mesh, jax.devices()[:1]

  def mesh(*, devices=None, **sizes):
    return make(devices=devices or one, **sizes)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(parallel, "make_mesh", mesh)
    yield


def lines_of(workdir):
  return files.read_lines(pathlib.Path(workdir) / "metrics.jsonl")


def untimed(workdir):
  """The metrics of every step, without what a clock says."""
  return [
    {name: value for name, value in line.items() if "seconds" not in name}
    for line in lines_of(workdir)
  ]


def state_of(workdir, step):
  """The tree of a checkpoint."""
  with ocp.PyTreeCheckpointer() as checkpointer:
    return checkpointer.restore(workdir / "checkpoints" / str(step) / "state")


def files_of(folder):
  """{path: when it was written} of every file."""
  return {
    path.relative_to(folder): path.stat().st_mtime_ns
    for path in folder.rglob("*")
    if path.is_file()
  }


def assert_equal_runs(one, two, step):
  """Metrics and the state at that step, bit by bit."""
  assert untimed(one) == untimed(two)
  a, b = (jax.tree.leaves(state_of(run, step)) for run in (one, two))
  for x, y in zip(a, b, strict=True):
    np.testing.assert_array_equal(x, y)
