# SPDX-License-Identifier: Apache-2.0
"""Imports point down: a module may use only its own floor and those below."""

import ast
import pathlib
import subprocess
import sys

import pytest

FLOORS = (
  "shapes errors processes|losses|models|data|references"
  "|parallel optimizer train_state checkpoints hub adapters"
  "|objective flops train evaluate tabular inspection writer report"
  " chips hlo published"
  "|settings inputs loading scoring setups workdirs card runs bench bandit"
  " places planned plan_table plan arguments cli __main__"
).split("|")
LEVEL = {name: i for i, names in enumerate(FLOORS) for name in names.split()}
PLAIN = {"jax", "mrpo_jax", *sys.stdlib_module_names}
MODEL = PLAIN | {"flax", "numpy", "qwix", "tokamax"}
MAY_USE = {"shapes": PLAIN, "errors": set(), "losses": PLAIN, "models": MODEL}
ROOT = pathlib.Path(__file__).parents[1] / "mrpo_jax"
MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_down(path):
  floor = path.parts[0].removesuffix(".py")
  if floor == "__init__":
    assert not list(imports(ROOT / path))
    return
  assert floor in LEVEL, "a new module needs a floor"
  for name in imports(ROOT / path):
    top, _, rest = name.partition(".")
    if top == "mrpo_jax":
      assert LEVEL[rest.split(".")[0]] <= LEVEL[floor], name
    assert floor not in MAY_USE or top in MAY_USE[floor], name


def test_losses_import_alone():
  heavy = "transformers tensorflow_datasets orbax grain flax ml_collections"
  code = (
    "import sys; from mrpo_jax import losses; "
    f"print([m for m in '{heavy}'.split() if m in sys.modules])"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == "[]"
