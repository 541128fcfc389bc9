# SPDX-License-Identifier: Apache-2.0
"""Which room may import which: a table, and no circles between files.

python tests/test_rooms.py   # writes the table in docs/learn/house.md
"""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1] / "mrpo_jax"
# Each may import those before it.
GROUND = (
  *("errors", "shapes", "text", "buckets", "files", "external", "rows"),
  *("streams", "meeting", "processes", "progress", "snapshots"),
)
WINGS = ("losses", "models", "data")
ENGINES = ("references", "training")
MAY = {
  **{name: {*GROUND[:place]} for place, name in enumerate(GROUND)},
  "losses": {"errors", "shapes"},
  "models": {"errors", "shapes", "rows"},
  "data": {*GROUND} - {"streams", "meeting", "external"},
  "parallel": {*GROUND, "models"},
  "hub": {*GROUND, "models", "parallel"},
  "references": {*GROUND, "models", "data"},
  "training": {*GROUND, "losses", "models", "parallel"},
  "generation": {*GROUND, "models", "parallel"},
  "evaluation": {*GROUND, *WINGS, "parallel", "generation"},
  "online": {*GROUND, *WINGS, "training", "generation"},
  "diffusion": {*GROUND, "losses", "models", "parallel", "hub", "training"},
  "runs": {
    *(*GROUND, *WINGS, "parallel", "hub", *ENGINES, "generation"),
    *("evaluation", "online", "diffusion", "configs"),
  },
  "reports": {*GROUND, *ENGINES, "evaluation", "runs"},
  "sweeps": {*GROUND, "training", "runs", "reports"},
  "performance": {*GROUND, *WINGS, "parallel", "hub", *ENGINES, "runs"},
}
MAY["cli"] = {*MAY}
MAY["configs"] = {"errors"}
MAY["__main__"] = {"cli"}
# Outside libraries, of the rooms that have to stay light.
PLAIN = {"jax", *sys.stdlib_module_names}
LIBRARIES = {
  "errors": {"contextlib", "difflib", "errno", "re"},
  "shapes": PLAIN,
  "losses": PLAIN,
  "models": PLAIN | {"flax", "numpy", "qwix"},
}
MODULES = sorted(ROOT.rglob("*.py"))


def module_of(path):
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(("mrpo_jax", *parts)).removesuffix(".__init__")


FILES = {module_of(path): path for path in MODULES}


def imports(path):
  """Modules of this package, and packages beside it, that a file imports."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      for alias in node.names:
        whole = f"{node.module}.{alias.name}"
        yield whole if whole in FILES else node.module


def room_of(module):
  return (*module.split("."), "")[1]


@pytest.mark.parametrize("module", FILES)
def test_a_file_imports_what_its_room_may(module):
  room = room_of(module)
  for name in imports(FILES[module]):
    top = name.partition(".")[0]
    if top == "mrpo_jax":
      other = room_of(name)
      # The package itself holds its version, and imports no room.
      known = {"", room, *MAY[room]}
      assert other in known, f"{module} imports {name}"
    elif room in LIBRARIES:
      assert top in LIBRARIES[room], f"{module} imports {name}"


def test_no_circles():
  graph = {
    module: {name for name in imports(path) if name in FILES} - {module}
    for module, path in FILES.items()
  }
  graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, naming them


PAGE = ROOT.parent / "docs/learn/house.md"
START, END = "<!-- rooms: python tests/test_rooms.py -->\n", "<!-- end -->\n"


def subject(room):
  """The first line of the room's docstring."""
  path = FILES[f"mrpo_jax.{room}"]
  return ast.get_docstring(ast.parse(path.read_text())).split("\n")[0]


def may(room):
  """The rooms that it may import, in words."""
  names, found = MAY[room], []
  if room in GROUND:
    return "those above" if names else "-"
  groups = {"the ground": GROUND, "the wings": WINGS, "the engines": ENGINES}
  for name, members in groups.items():
    if names.issuperset(members):
      found.append(name)
      names = names - {*members}
  return ", ".join([*found, *(f"`{name}`" for name in MAY if name in names)])


def table():
  """The page's table, from the one above and the rooms' docstrings."""
  lines = ["| room | holds | may import |", "|---|---|---|"]
  lines += [
    f"| `{room}` | {subject(room)} | {may(room)} |"
    for room in MAY
    if room != "__main__"
  ]
  return "\n".join(lines) + "\n"


def test_the_page_shows_the_table():
  text = PAGE.read_text(encoding="utf-8")
  shown = text.partition(START)[2].partition(END)[0]
  assert shown == table(), "run python tests/test_rooms.py"


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


if __name__ == "__main__":
  text = PAGE.read_text(encoding="utf-8")
  before, _, rest = text.partition(START)
  after = rest.partition(END)[2]
  PAGE.write_text(before + START + table() + END + after, encoding="utf-8")
