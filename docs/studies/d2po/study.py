# SPDX-License-Identifier: Apache-2.0
"""D2PO: is gold better spent on a discriminator that learns?

  python -m docs.studies.d2po --workdir=/tmp/d2po

writes `d2po.md` and `d2po.svg` one folder up.  Every method is trained on as
many gold labels, and answers the same held-out prompts.  Started again, it goes
on where it was.
"""

from docs.studies.d2po.page import draw, page
from docs.studies.d2po.results import Results
from docs.studies.d2po.runs import Grid, Runs
from docs.studies.grid.models import make_starts
from docs.studies.grid.study import PAGES, command
from mrpo_jax import files
from mrpo_jax.progress import stage


def main():
  command(study, __doc__.split("\n")[0])


def study(workdir, grid=None, *, to=PAGES):
  """Trains what is left to train, and writes the page into folder `to`.

  Args:
    workdir: folder of models and runs.
    grid: Grid.
    to: folder of the page and its figure.
  """
  grid = grid or Grid()
  make_starts(workdir)
  found, tuned = Runs(workdir, grid)()
  with stage("writing the page"):
    results = Results(grid, found)
    draw(results, to / "d2po.svg")
    files.write_atomically(
      to / "d2po.md", page(results, tuned, workdir).encode()
    )
