# SPDX-License-Identifier: Apache-2.0
"""Dispersion: does MallowsPO's factor on margins help DPO, SimPO and MRPO?

  python -m docs.studies.dispersion --workdir=/tmp/dispersion \
    --second=helpful.jsonl.gz --source="hh-rlhf, helpful-base, test.jsonl.gz"

writes `dispersion.md` and `dispersion.svg` one folder up, from 30 runs for each
of two pair sets: the embedded one, and a file of pairs that is named.  Without
one there is a single set, and no verdict.  Started again, it goes on where it
was.
"""

import functools

from docs.studies.dispersion.page import draw, page
from docs.studies.dispersion.runs import DISPERSED, PLAIN, Grid, config_of
from docs.studies.grid.models import make_starts
from docs.studies.grid.study import Study

ABOUT = __doc__.split("\n")[0]


def study(grid=None):
  """The Study of a Grid."""
  grid = grid or Grid()
  return Study(
    name="dispersion",
    variants=tuple(
      (method, kind) for method in grid.methods for kind in (PLAIN, DISPERSED)
    ),
    seeds=grid.seeds,
    make_models=make_starts,
    config_of=functools.partial(config_of, grid=grid),
    page=functools.partial(page, grid),
    draw=functools.partial(draw, grid),
  )
