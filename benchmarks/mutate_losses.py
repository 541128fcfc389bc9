# SPDX-License-Identifier: Apache-2.0
"""Breaks `mrpo_jax/losses` one operator or number at a time; do tests notice?

  pip install -e ".[test,mutation]"
  python benchmarks/mutate_losses.py [--every=5] [--workers=2] [MODULE ...]

Cosmic Ray makes the mutants, in copies of the repository.  `--every=5` runs a
random fifth of them, the same one each time.  Prints, for each module, how
many were killed, and every survivor as a diff.  All mutants of all modules
take hours on two cores.
"""

import argparse
import concurrent.futures
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The tests of each module, those that fail first at the front.
TESTS = {
  "pair": ("pair", "fixture", "all"),
  "rewards": ("rewards", "fixture", "all"),
  "batch": ("batch", "fixture", "all"),
  "dispersion": ("dispersion", "fixture"),
  "token_weights": ("token_weights", "fixture"),
  "unreferenced": ("unreferenced", "fixture", "all"),
  "related": ("related", "rewards", "fixture", "all"),
  "mixture": ("mixture", "fixture"),
  "multi": ("mixture", "fixture"),
  "weighting": ("weighting", "scales", "mixture"),
  "metrics": ("metrics",),
  "arguments": ("arguments", "methods"),
  "sequence": ("sequence",),
  "methods/choices": ("methods",),
  "methods/inputs": ("inputs", "methods"),
  "methods/mixing": ("methods", "scales", "betas"),
  "methods/method": ("methods", "scales", "betas"),
  "methods/build": ("methods", "scales", "betas"),
}
# Of the replacements of an operator the likely slips: a sign, a factor, an
# edge.  Any other would be noticed by the same tests.
KEPT = (
  r"core/(?!Replace(Binary|Comparison)Operator)"
  r"|core/ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Div_Mul|Pow_Mul)$"
  r"|core/ReplaceBinaryOperator_(BitAnd_BitOr|BitOr_BitAnd)$"
  r"|core/ReplaceComparisonOperator_(Lt_LtE|LtE_Lt|Gt_GtE|GtE_Gt)$"
  r"|core/ReplaceComparisonOperator_(Lt_Gt|Gt_Lt|Eq_NotEq|NotEq_Eq)$"
  r"|core/ReplaceComparisonOperator_(Is_IsNot|IsNot_Is)$"
)
CONFIG = """\
[cosmic-ray]
module-path = "mrpo_jax/losses/{module}.py"
timeout = {seconds}.0
excluded-modules = []
test-command = "{python} -m pytest -x -q -p no:cacheprovider {tests}"

[cosmic-ray.distributor]
name = "local"

[cosmic-ray.filters.operators-filter]
exclude-operators = ['^(?!{kept}).*$']
"""


def mutate(module, every, seconds):
  """(killed, survivors as diffs) of one module, in a copy of its own."""
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder) / "copy"
    ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=ignored)
    tests = " ".join(f"tests/losses/test_{t}.py" for t in TESTS[module])
    config = CONFIG.format(
      module=module,
      seconds=seconds,
      python=sys.executable,
      tests=tests,
      kept=KEPT,
    )
    (copy / "mutation.toml").write_text(config)
    run = lambda *argv: subprocess.run(  # noqa: E731
      argv, cwd=copy, check=True, stdout=subprocess.DEVNULL
    )
    run("cosmic-ray", "init", "mutation.toml", "session.sqlite")
    run("cr-filter-operators", "session.sqlite", "mutation.toml")
    with use_db(copy / "session.sqlite", WorkDB.Mode.open) as db:
      skip(db, every)
    run("cosmic-ray", "exec", "mutation.toml", "session.sqlite")
    with use_db(copy / "session.sqlite", WorkDB.Mode.open) as db:
      done = [
        result
        for _, result in db.results
        if result.worker_outcome == WorkerOutcome.NORMAL
      ]
  survived = [r for r in done if r.test_outcome == TestOutcome.SURVIVED]
  return len(done) - len(survived), [result.diff for result in survived]


def skip(db, every):
  """Marks all but a random share of the pending mutants as skipped."""
  pending = sorted(db.pending_work_items, key=lambda item: item.job_id)
  places = lambda item: [  # noqa: E731
    (m.operator_name, m.start_pos, m.occurrence) for m in item.mutations
  ]
  pending.sort(key=places)  # job ids differ from run to run
  random.Random(0).shuffle(pending)
  for item in pending[len(pending) // every or 1 :]:
    skipped = WorkResult(worker_outcome=WorkerOutcome.SKIPPED)
    db.set_result(item.job_id, skipped)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("modules", nargs="*", default=list(TESTS))
  parser.add_argument("--every", type=int, default=1)
  parser.add_argument("--workers", type=int, default=2)
  parser.add_argument("--seconds", type=int, default=180, help="per mutant")
  given = parser.parse_args()
  killed = total = 0
  with concurrent.futures.ThreadPoolExecutor(given.workers) as pool:
    jobs = {
      pool.submit(mutate, module, given.every, given.seconds): module
      for module in given.modules
    }
    for job in concurrent.futures.as_completed(jobs):
      dead, alive = job.result()
      killed, total = killed + dead, total + dead + len(alive)
      print(f"{jobs[job]}: {dead} of {dead + len(alive)} killed", flush=True)
      for diff in alive:
        print(diff, flush=True)
  print(f"all: {killed} of {total} killed, {killed / max(total, 1):.1%}")


if __name__ == "__main__":
  main()
