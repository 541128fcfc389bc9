# SPDX-License-Identifier: Apache-2.0
"""Disagreement: does a model's entropy say where people disagree?

  python -m docs.studies.disagreement --workdir=/tmp/disagreement \
    --pandalm=testset-v1.json --qa-feedback=dev_feedback.json \
    --model=/tmp/mrpo_real/models/smollm2 --model=/tmp/mrpo_real/models/gemma3

writes `disagreement.md` one folder up.  It trains nothing but the two starts of
the quickstart; the other models are folders.  Started again, it goes on where
it was.
"""

import argparse
import logging
import pathlib

from docs.studies.disagreement import labels as human
from docs.studies.disagreement.page import page
from docs.studies.disagreement.scores import score_labels
from docs.studies.grid.models import STARTS, make_starts
from mrpo_jax import files
from mrpo_jax.errors import InputError

PAGES = pathlib.Path(__file__).parents[1]


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--pandalm", required=True, help="its file of labels")
  parser.add_argument("--qa-feedback", required=True, help="its rankings")
  parser.add_argument("--model", action="append", default=[], help="a folder")
  given = parser.parse_args()
  logger = logging.getLogger("mrpo_jax")
  logger.setLevel(logging.INFO)
  logger.propagate = False  # libraries give the root handlers of their own
  logger.addHandler(logging.StreamHandler())
  workdir = pathlib.Path(given.workdir).absolute()
  try:
    labels = human.pandalm(given.pandalm), human.qa_feedback(given.qa_feedback)
    study(workdir, labels, [pathlib.Path(one) for one in given.model])
  except InputError as error:
    parser.exit(2, f"error: {error}\n")


def study(workdir, labels, models=(), *, to=PAGES):
  """Scores the items under every model, and writes the page into `to`.

  Args:
    workdir: folder of models and scores.
    labels: two of labels.Labels.
    models: folders.
    to: folder of the page.

  Raises:
    InputError: two models have one name, or one cannot be read.
  """
  folders = {}
  for path in (*(workdir / "models" / name for name in STARTS), *models):
    name = path.absolute().name
    if name in folders:
      raise InputError(
        f"--model={path}: {name} is the name of another model; rename the "
        "folder"
      )
    folders[name] = path.absolute()
  make_starts(workdir)
  found = {
    name: score_labels(workdir, name, path, labels)
    for name, path in folders.items()
  }
  text = page(labels, found)
  files.write_atomically(to / "disagreement.md", text.encode())
