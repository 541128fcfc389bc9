# SPDX-License-Identifier: Apache-2.0
"""The command `mrpo`.

  mrpo train   --config=FILE[:args] --workdir=DIR [--config.a.b=value ...]
               [--store=DIR] [--no-autoscore] [--allow-changed] [processes]
  mrpo score   --config=FILE[:args] --workdir=DIR [--config.a.b=value ...]
               [--store=DIR] [--part=0/1] [--allow-changed] [processes]
  mrpo store   ls|verify|prune [KEY ...] --store=DIR
  mrpo store   export KEY --store=DIR --to=FILE
  mrpo export  --workdir=DIR --to=DIR [--step=newest|best|N]
               [--merge-adapters]
  mrpo report  --workdir=DIR
  mrpo bench   --config=FILE[:args] [--config.a.b=value ...] [--steps=20]
               [--warmup=3] [--store=DIR] [--json=FILE] [--trace=DIR]
  mrpo plan    --config=FILE[:args] --topology=v5p:4x4x4|cpu:8|local
               [--config.a.b=value ...] [--hbm=GIB] [--lengths=256,256]
               [--fit] [--json=FILE] [--program=FILE]
  mrpo inspect FOLDER [--mesh=data=1,fsdp=4,model=2]
  mrpo prepare --data=FILE --to=DIR [--split=NAME]

On several hosts every one runs the same command.  A TPU pod, Slurm (a task per
process) and Open MPI are found out; elsewhere [processes] is

  --coordinator=HOST:PORT --processes=N --process=I

where process 0 of N listens at HOST:PORT; --processes=1 is one by itself
wherever it runs.  All see one workdir; process 0 writes.  When one ends, all
end: with its message, or where it was killed within a minute.

Exit codes: 0 done; 2 the input is wrong, said in one line; 1 a fault.
"""

import errno
import os
import sys

from absl import flags as absl_flags
from absl import logging

from mrpo_jax.cli.commands import COMMANDS
from mrpo_jax.errors import InputError, StoppedRun


def main(argv=None):
  """Runs one command; returns the exit code."""
  # transformers serves as a tokenizer here and need not ask for torch.
  os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
  # What a library logs on its way up is said once, by `_fail` or a traceback.
  logging.set_verbosity(logging.FATAL)
  argv = list(sys.argv[1:] if argv is None else argv)
  if not argv or argv[0] in ("-h", "--help", "help"):
    print(__doc__.strip())
    return 0 if argv else 2
  if argv[0] not in COMMANDS:
    known = ", ".join(COMMANDS)
    return _fail(2, f"unknown command {argv[0]!r}; known: {known}")
  if "--help" in argv or "-h" in argv:
    print(COMMANDS[argv[0]].__doc__)
    print(__doc__.strip())
    return 0
  return _run(COMMANDS[argv[0]], argv)


def _run(command, argv):
  from mrpo_jax import processes

  try:
    command(argv)
    processes.leave()
  except Exception as error:
    said = _said(error)
    if processes.several():
      processes.end(*(said or processes.fault(error)))
    if said is None:
      raise
    return _fail(*said)
  except KeyboardInterrupt:
    if processes.several():
      processes.end(130, "interrupted")
    raise
  return 0


def _said(error):
  """(exit code, line) of what the user can mend; None for a fault."""
  if isinstance(error, InputError):
    return 2, _one_line(error)
  if isinstance(error, absl_flags.Error):
    return 2, str(error).strip().split("\n")[-1]
  if isinstance(error, StoppedRun):
    return 1, _one_line(f"{error}; the last checkpoint is kept")
  if isinstance(
    error, (PermissionError, FileNotFoundError, NotADirectoryError)
  ):
    return 2, f"{error.filename}: {error.strerror}"
  if _disk_is_full(error):
    return 1, "the disk is full; make room, the same command resumes"
  return None


def _disk_is_full(error):
  """Checkpoint libraries wrap what the system said, or only quote it."""
  while error is not None:
    if getattr(error, "errno", None) == errno.ENOSPC:
      return True
    if os.strerror(errno.ENOSPC) in str(error):
      return True
    error = error.__cause__ or error.__context__
  return False


def _one_line(message):
  return " ".join(str(message).split("\n"))


def _fail(code, line):
  print(f"error: {line}", file=sys.stderr)
  return code
