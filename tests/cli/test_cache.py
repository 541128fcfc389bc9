# SPDX-License-Identifier: Apache-2.0
"""Compiled programs are kept where the user's caches are."""

import os
import subprocess
import sys

import pytest

from mrpo_jax.cli import cache


@pytest.fixture
def unset(monkeypatch, tmp_path):
  monkeypatch.delenv(cache.VARIABLE, raising=False)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
  yield monkeypatch
  monkeypatch.delenv(cache.VARIABLE, raising=False)


def test_it_is_in_the_users_cache_folder_and_made_by_jax(unset, tmp_path):
  cache.keep_programs()
  folder = os.environ[cache.VARIABLE]
  assert folder.startswith(f"{tmp_path}/caches/mrpo_jax/xla-")
  assert not (tmp_path / "caches").exists()
  unset.delenv(cache.VARIABLE)
  unset.delenv("XDG_CACHE_HOME")
  unset.setenv("HOME", str(tmp_path))
  cache.keep_programs()
  assert os.environ[cache.VARIABLE].startswith(f"{tmp_path}/.cache/mrpo_jax/")


def test_a_folder_that_is_named_stays(unset):
  for named in ("/mnt/share/xla", ""):
    unset.setenv(cache.VARIABLE, named)
    cache.keep_programs()
    assert os.environ[cache.VARIABLE] == named


def test_a_folder_that_cannot_be_written_is_not_asked_for(unset):
  unset.setattr(os, "access", lambda *_: False)
  cache.keep_programs()
  assert cache.VARIABLE not in os.environ


def test_a_home_of_somebody_else_is_not_asked_for(unset, tmp_path):
  given = os.stat

  def closed(path, *args, **kwargs):
    if str(path).startswith(f"{tmp_path}/caches"):
      raise PermissionError(13, "Permission denied", str(path))
    return given(path, *args, **kwargs)

  unset.setattr(os, "stat", closed)
  unset.setattr(os, "access", lambda *_: False)
  cache.keep_programs()
  assert cache.VARIABLE not in os.environ


def test_programs_of_another_processor_are_not_taken(unset, tmp_path):
  cache.keep_programs()
  here = os.environ.pop(cache.VARIABLE)
  unset.setattr(cache.platform, "processor", lambda: "another")
  cache.keep_programs()
  assert os.environ[cache.VARIABLE] != here


def test_a_command_compiles_into_it(unset, tmp_path):
  code = (
    "from mrpo_jax import cli; cli.main(['report', '--workdir=none']);"
    "import jax; jax.config.update("
    "'jax_persistent_cache_min_compile_time_secs', 0.0);"
    "jax.jit(lambda x: x + 1)(1.0)"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
  assert list(tmp_path.glob("caches/mrpo_jax/xla-*/jit_*"))
