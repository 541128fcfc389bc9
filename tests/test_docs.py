# SPDX-License-Identifier: Apache-2.0
"""The page of losses says what the docstrings say, and their examples run."""

import doctest
import importlib
import pathlib
import runpy
import subprocess
import sys

import pytest

from mrpo_jax import losses
from mrpo_jax.models.families import FAMILIES
from mrpo_jax.runs.config import BEST
from mrpo_jax.runs.workdir import FIXED, HARMLESS

DOCS = pathlib.Path(__file__).parents[1] / "docs"
MAKER = runpy.run_path(str(DOCS / "make_losses.py"))


def test_the_page_is_made_from_the_docstrings():
  made = MAKER["page"]()
  written = (DOCS / "losses.md").read_text(encoding="utf-8")
  assert made == written, "run python docs/make_losses.py"


def test_the_page_holds_every_public_name():
  page = MAKER["page"]()
  missing = [name for name in losses.__all__ if f"### `{name}`" not in page]
  assert missing == ["TRL_NAMES"]
  for name in losses.names():
    assert f"| `{name}` |" in page, name


def test_the_page_of_models_names_every_family():
  page = (DOCS / "guide/models.md").read_text(encoding="utf-8")
  for family in FAMILIES:
    assert f"| `{family}` |" in page and f"| {family} |" in page, family


def test_the_page_of_resuming_names_what_may_change_and_what_may_not():
  page = (DOCS / "guide/resume.md").read_text(encoding="utf-8")
  for key in (*HARMLESS, *FIXED, *BEST):
    assert f"`{key}`" in page, key


def test_the_site_builds_without_a_warning(tmp_path):
  pytest.importorskip("mkdocstrings_handlers.python")
  pytest.importorskip("material")
  command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
  done = subprocess.run(
    [*command, f"--site-dir={tmp_path}/site"],
    cwd=DOCS.parent,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "site" / "learn" / "words" / "index.html").exists()


@pytest.mark.parametrize("name", MAKER["MODULES"])
def test_examples_of_docstrings(name):
  module = importlib.import_module(f"mrpo_jax.losses.{name}")
  public = [f.__name__ for f in MAKER["public"](module)]
  for test in doctest.DocTestFinder().find(module):
    function = test.name.split(".")[-1]
    if function in public and test.name != module.__name__:
      assert test.examples, f"{function} has no example"
  failed, _ = doctest.testmod(module)
  assert not failed
