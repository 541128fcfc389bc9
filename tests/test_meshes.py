# SPDX-License-Identifier: Apache-2.0
"""Training is the same on every mesh; benchmarks/meshes.py has all of them."""

import functools

import jax
import pytest

from benchmarks import meshes


@functools.cache
def alone(adapter):
  return meshes.curve(meshes.ALONE, adapter)[0]


@pytest.mark.parametrize(
  "name,adapter",
  [
    ("fsdp 4 x model 2", None),
    ("data 2 x context 2 x model 2", None),
    ("whole policy, split references", None),
    ("data 2 x fsdp 2 x model 2", meshes.ADAPTER),
  ],
)
def test_eight_devices_equal_one(name, adapter):
  case = meshes.CASES[name]
  found, state = meshes.curve(case, adapter)
  assert found[0]["loss"] - found[-1]["loss"] > 0.01
  for figure, value in meshes.apart(found, alone(adapter)).items():
    assert value < 1e-5, figure
  # The state is still split as it was, none of it on every device.
  leaf = jax.tree.leaves(state.params)[0]
  assert len(leaf.sharding.device_set) == 8
