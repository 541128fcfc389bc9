# SPDX-License-Identifier: Apache-2.0
"""Downstream: do DPO and MRPO change benchmarks, length and repetition?

  bash launch/real.sh /tmp/mrpo_real
  python -m docs.studies.downstream --workdir=/tmp/downstream \
    --real=/tmp/mrpo_real

writes `downstream.md` one folder up.  It trains nothing: it asks the start and
both trained policies of that folder the same documents.  `--data=DIR` takes
whole benchmarks in the place of the embedded slices.  Started again, it goes on
where it was.
"""

import argparse
import logging
import pathlib
from typing import NamedTuple

from docs.studies.downstream.measure import MODELS, TASKS, measure
from docs.studies.downstream.page import page
from mrpo_jax import configs, files
from mrpo_jax.errors import InputError

PAGES = pathlib.Path(__file__).parents[1]
SLICES = configs.SHIPPED / "benchmarks"


class Asked(NamedTuple):
  """What the models are asked."""

  tasks: tuple = TASKS
  data: pathlib.Path = SLICES  # of the benchmarks
  limit: int | None = None  # documents of each
  prompts: int = 64  # held-out ones, that are answered
  max_new_tokens: int = 80
  longest_prompt: int = 400  # characters


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--real", required=True, help="of launch/real.sh")
  parser.add_argument("--data", default=SLICES, help="folder of benchmarks")
  parser.add_argument("--limit", type=int, help="documents of each")
  given = parser.parse_args()
  logger = logging.getLogger("mrpo_jax")
  logger.setLevel(logging.INFO)
  logger.propagate = False  # libraries give the root handlers of their own
  logger.addHandler(logging.StreamHandler())
  asked = Asked(data=pathlib.Path(given.data), limit=given.limit)
  try:
    workdir = pathlib.Path(given.workdir).absolute()
    study(workdir, pathlib.Path(given.real).absolute(), asked)
  except InputError as error:
    parser.exit(2, f"error: {error}\n")


def study(workdir, real, asked=None, *, to=PAGES):
  """Asks what is left to ask, and writes the page into folder `to`.

  Args:
    workdir: folder of what the models say.
    real: folder that `launch/real.sh` left.
    asked: Asked.
    to: folder of the page.

  Raises:
    InputError: a model of that folder is missing, or a benchmark.
  """
  asked = asked or Asked()
  for name, source in MODELS.items():
    place = real / (source.model or source.workdir)
    if not place.is_dir():
      raise InputError(
        f"--real={real}: {name} is missing ({place}); bash launch/real.sh "
        f"{real} makes it"
      )
  found, seconds = measure(workdir, real, asked)
  text = page(found, seconds, asked)
  files.write_atomically(to / "downstream.md", text.encode())
