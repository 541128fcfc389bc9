# SPDX-License-Identifier: Apache-2.0
"""Whole runs are slow: one of each kind is quick, --all adds the others."""

import pathlib

import pytest

RUNS = ("adapter_runs", "configs", "every_method", "looks", "meshes", "resume")
RUNS += ("online_runs", "runs", "scoring")
FILES = {pathlib.Path(__file__).with_name(f"test_{name}.py") for name in RUNS}


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marks
def pytest_collection_modifyitems(items):
  for item in items:
    if item.path in FILES and not item.get_closest_marker("quick"):
      item.add_marker("slow")
