# SPDX-License-Identifier: Apache-2.0
"""Disagreement: does a model's entropy say where people disagree?

  python -m docs.studies.disagreement --workdir=/tmp/disagreement \
    --pandalm=testset-v1.jsonl --qa-feedback=dev_feedback.jsonl \
    --model=/tmp/mrpo_real/models/smollm2 --model=/tmp/mrpo_real/models/gemma3

writes `disagreement.md` one folder up.  It trains nothing but the quickstart's
two starts; the other models are folders.  Started again, it goes on where it
was.
"""

import argparse
import logging
import pathlib
import time

from docs.studies.bad_reference import make_model
from docs.studies.disagreement import labels as human
from docs.studies.disagreement.page import page
from docs.studies.disagreement.scores import score_labels
from mrpo_jax import files
from mrpo_jax.errors import InputError

PAGES = pathlib.Path(__file__).parents[1]
STARTS = ("sft-base", "sft-second")  # of the quickstart


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


def study(workdir, labels, models=(), *, starts=STARTS, to=PAGES):
  """Scores the items under every model, and writes the page into `to`.

  Args:
    workdir: folder of models and scores.
    labels: two of labels.Labels.
    models: folders.
    starts: names of the quickstart's models, which are made where missing.
    to: folder of the page.

  Raises:
    InputError: two models have one name, or one cannot be read.
  """
  folders = {}
  for path in (*(workdir / "models" / name for name in starts), *models):
    name = path.absolute().name
    if name in folders:
      raise InputError(
        f"--model={path}: {name} is the name of another model; rename the "
        "folder"
      )
    folders[name] = path.absolute()
  for name in starts:
    make_model(workdir, name)
  started = time.monotonic()
  found = {
    name: score_labels(workdir, name, path, labels)
    for name, path in folders.items()
  }
  text = page(labels, found, time.monotonic() - started)
  files.write_atomically(to / "disagreement.md", text.encode())
