# SPDX-License-Identifier: Apache-2.0
"""Diffusion-DPO on digits: what beta costs, and what a mixture keeps.

  python -m docs.studies.diffusion_dpo --workdir=/tmp/diffusion_dpo

writes `diffusion_dpo.md` and `diffusion_dpo.png` one folder up, from three
seeds of three supervised runs and ten alignments.  Started again, it goes on
where it was.
"""

from docs.studies.diffusion_dpo.page import page, picture
from docs.studies.diffusion_dpo.runs import Grid, Runs
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
    to: folder of the page and its picture.
  """
  grid = grid or Grid()
  runs = Runs(workdir, grid)
  found = runs()
  with stage("writing the page"):
    files.write_atomically(to / "diffusion_dpo.png", picture(grid, runs))
    text = page(grid, runs.judge, found)
    files.write_atomically(to / "diffusion_dpo.md", text.encode())
