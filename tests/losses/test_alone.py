# SPDX-License-Identifier: Apache-2.0
"""The losses with jax alone: what README shows, where nothing else is."""

import importlib.metadata
import importlib.util
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tests.material.pages import python_of

ROOT = pathlib.Path(__file__).parents[2]
(EXAMPLE,) = python_of("README.md")


def of_jax():
  """Names of jax and of the packages that it requires."""
  names = {"jax"}
  for package in ("jax", "jaxlib"):
    for line in importlib.metadata.requires(package):
      if "extra ==" not in line:
        names.add(re.match(r"[\w-]+", line)[0].replace("-", "_"))
  return names


def run(*command, **given):
  done = subprocess.run(
    [sys.executable, *command], capture_output=True, text=True, **given
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.fixture
def site(tmp_path):
  """A folder of this package, built, and of jax with what it requires."""
  pytest.importorskip("setuptools")
  source, site = tmp_path / "source", tmp_path / "site"
  source.mkdir()  # the build leaves files where it runs
  for name in ("setup.py", "pyproject.toml", "README.md"):
    shutil.copy(ROOT / name, source)
  for name in ("mrpo_jax", "configs"):
    shutil.copytree(ROOT / name, source / name)
  run("setup.py", "-q", "build", f"--build-lib={site}", cwd=source)
  for name in of_jax():
    place = pathlib.Path(importlib.util.find_spec(name).origin)
    whole = place.parent if place.name == "__init__.py" else place
    (site / whole.name).symlink_to(whole)
    for libraries in whole.parent.glob(f"{name}.libs"):
      (site / libraries.name).symlink_to(libraries)
  return site


def test_the_example_prints_what_it_says(capsys):
  exec(EXAMPLE, {})
  (said,) = re.findall(r"print\(.*\)  # \[(.*)\]", EXAMPLE)
  assert float(capsys.readouterr().out.strip("[]\n")) == pytest.approx(
    float(said), rel=1e-5
  )


def test_an_installation_without_dependencies_has_the_losses(site, tmp_path):
  assert (site / "mrpo_jax" / "py.typed").is_file()
  code = f"""
import importlib.util, sys
sys.path.append({str(site)!r})
assert not importlib.util.find_spec("pydantic")
assert not importlib.util.find_spec("ml_collections")
{EXAMPLE}
print(losses.__file__, float(loss(policy_logp_BC, ref_logp_BCK)[0]))
"""
  # Isolated, and without the packages of this environment.
  *_, place, value = run("-I", "-S", "-c", code, cwd=tmp_path).split()
  assert place.startswith(str(site))
  assert 0.0 < float(value) < 1.0
