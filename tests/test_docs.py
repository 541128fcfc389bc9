# SPDX-License-Identifier: Apache-2.0
"""The page of losses says what the docstrings say, and their examples run."""

import doctest
import importlib
import pathlib
import re
import runpy
import subprocess
import sys

import pytest

from mrpo_jax import evaluation, generation, hub, losses
from mrpo_jax.cli.table import FLAGS
from mrpo_jax.models.families import FAMILIES
from mrpo_jax.runs.config import BEST
from mrpo_jax.runs.config.explain import keys
from mrpo_jax.runs.workdir import FIXED, HARMLESS

DOCS = pathlib.Path(__file__).parents[1] / "docs"
MAKER = runpy.run_path(str(DOCS / "make_losses.py"))
MODULES = (
  *(
    "arguments",
    "sequence",
    "pair",
    "rewards",
    "regression",
    "batch",
    "unreferenced",
    "dispersion",
  ),
  *("token_weights", "mixture", "weighting", "multi", "metrics", "related"),
  *("methods.build", "methods.catalogue", "methods.inputs"),
  *("methods.mixing", "methods.method", "methods.token_loss"),
)


def test_the_table_of_losses_is_made_from_the_docstrings():
  made = MAKER["page"]()
  written = (DOCS / "guide/losses.md").read_text(encoding="utf-8")
  assert made == written, "run python docs/make_losses.py"
  assert len(made.splitlines()) < 150


def test_the_table_of_losses_holds_every_name():
  page = MAKER["page"]()
  for name in losses.names():
    assert page.count(f"\n| `{name}` |") == 1, name


def test_the_reference_of_losses_holds_every_public_name():
  text = (DOCS / "reference/losses.md").read_text(encoding="utf-8")
  shown = re.findall(r"^::: mrpo_jax\.losses\.(\S+)$", text, re.MULTILINE)
  assert [*MODULES] == shown
  homes = {f"mrpo_jax.losses.{module}" for module in shown}
  for name, value in MAKER["public"]().items():
    assert name == "TRL_NAMES" or value.__module__ in homes, name


def test_the_reference_holds_what_rooms_offer():
  pages = [one.read_text("utf-8") for one in (DOCS / "reference").glob("*.md")]
  shown = {*re.findall(r"^::: (\S+)$", "\n".join(pages), re.MULTILINE)}
  homes = {getattr(generation, name).__module__ for name in generation.__all__}
  homes |= {one.__module__ for one in vars(hub).values() if callable(one)}
  homes |= {f"mrpo_jax.evaluation.{one}" for one in evaluation.LAZY.values()}
  assert homes <= shown, homes - shown


def test_the_page_of_models_names_every_family():
  page = (DOCS / "guide/models.md").read_text(encoding="utf-8")
  for family in FAMILIES:
    assert f"| `{family}` |" in page and f"| {family} |" in page, family


def test_the_page_of_resuming_names_what_may_change_and_what_may_not():
  page = (DOCS / "guide/resume.md").read_text(encoding="utf-8")
  for key in (*HARMLESS, *FIXED, *BEST):
    assert f"`{key}`" in page, key


NAMED = re.compile(
  r"\b(?:tests|benchmarks|configs|docs|launch|mrpo_jax)/[\w/]+\.(?:py|md|sh|yaml)"
)


# What a reader is told to make.
EXAMPLES = ("configs/mine.py", "mrpo_jax/models/families/starcoder.py")


def test_files_that_are_named_are_there():
  root = DOCS.parent
  pages = [*root.glob("*.md"), *root.glob("*/*.md"), *DOCS.glob("*/*.md")]
  gone = {
    f"{page.relative_to(root)}: {name}"
    for page in pages
    for name in NAMED.findall(page.read_text(encoding="utf-8"))
    if name not in EXAMPLES and not (root / name).exists()
  }
  assert not gone


def test_every_key_and_every_flag_is_on_a_page():
  pages = [DOCS.parent / "README.md", *DOCS.glob("**/*.md")]
  text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
  words = {*re.findall(r"\w+", text)}
  parts = {key.rpartition(".")[2] for key in keys()} - {"<name>"}
  assert parts <= words, parts - words
  for command, (_, flags, *_) in FLAGS.items():
    for flag in flags:
      assert f"--{flag.name}" in text, (command, flag.name)


def test_keys_beside_those_of_others_are_keys():
  """A word of the column "here" is a key, a flag, or a value of one."""
  page = (DOCS / "learn/your_flag_here.md").read_text("utf-8")
  known = {re.sub("<name>", "base", key) for key in keys()}
  rows = [line.split("|") for line in page.split("\n") if line[:1] == "|"]
  cells = [row[2] for row in rows if row[2].strip(" -") not in ("", "here")]
  assert len(cells) > 30
  for cell in cells:
    for word in re.findall(r"`([^`]+)`", cell):
      key = word.partition("=")[0]
      is_loss = key.removeprefix("mrpo train ") in losses.names()
      assert key in known or is_loss or key == "--workdir", word


def test_extras_are_quoted_as_shells_want_it():
  """zsh takes [plan] for a pattern."""
  pages = [*DOCS.parent.glob("*.md"), *DOCS.glob("*/*.md")]
  for page in pages:
    bare = re.findall(r"-e \.\[\w+\]", page.read_text(encoding="utf-8"))
    assert not bare, page


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


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings(name):
  module = importlib.import_module(f"mrpo_jax.losses.{name}")
  public = [
    key
    for key, value in MAKER["public"]().items()
    if getattr(value, "__module__", None) == module.__name__
  ]
  finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
  for function in public:
    # By itself: where a decorator wraps it, doctest does not find it.
    (test,) = finder.find(getattr(module, function), globs={**vars(module)})
    assert test.examples, f"{function} has no example"
    runner.run(test)
  assert not runner.failures
  failed, _ = doctest.testmod(module)
  assert not failed
