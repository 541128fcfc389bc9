# SPDX-License-Identifier: Apache-2.0
"""The command `mrpo`: from its arguments to an exit code."""

import errno
import logging
import os
import sys

from mrpo_jax.cli.commands import COMMANDS
from mrpo_jax.cli.parser import MEETING, parse, parsers, process_flags
from mrpo_jax.errors import InputError, StoppedRun, did_you_mean


class Lines(logging.Handler):
  """Prints what is logged, a plain line each, on the first process."""

  def emit(self, record):
    from mrpo_jax import processes

    if processes.is_first():
      print(record.getMessage(), flush=True)


LINES = Lines()


def main(argv=None):
  """Runs one command; returns the exit code."""
  argv = list(sys.argv[1:] if argv is None else argv)
  try:
    topic = _help_topic(argv)
    if topic is not None:
      print(_help(*topic))
      return 0 if argv else 2
  except InputError as error:
    return _fail(*_said(error))
  return _run(argv)


def _help_topic(argv):
  """The words after `mrpo help`, however it was asked for; else None."""
  if not argv or argv[0] in ("-h", "--help"):
    return []
  if argv[0] == "help":
    return argv[1:]
  if argv[0] not in COMMANDS:
    near = did_you_mean(argv[0], COMMANDS)
    known = ", ".join(COMMANDS)
    raise InputError(
      f"unknown command {argv[0]!r}; known: {known}{near and ';' + near}"
    )
  if "--help=config" in argv:
    return ["config"]
  return argv[:1] if "--help" in argv or "-h" in argv else None


def _help(command="", *rest):
  if command == "config" and len(rest) < 2:
    from mrpo_jax.runs.config.explain import explain

    return explain(*(key.removeprefix("config.") for key in rest))
  known = parsers()
  if command not in known or rest:
    raise InputError(
      f"no help on {' '.join([command, *rest])!r}; known: "
      f"{', '.join(COMMANDS)}, config [KEY]"
    )
  return known[command].format_help().rstrip()


def _run(argv):
  # transformers serves as a tokenizer here and need not ask for torch.
  os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
  from absl import logging as absl_logging

  from mrpo_jax import processes

  # What a library logs on its way up is said once, by `_fail` or a traceback.
  absl_logging.set_verbosity(absl_logging.FATAL)
  logger = logging.getLogger("mrpo_jax")
  logger.setLevel(logging.INFO)
  logger.addHandler(LINES)  # once, however often
  logger.propagate = False  # libraries give the root handlers of their own
  try:
    if argv[0] in MEETING:
      from mrpo_jax.cli.flags import meet

      meet(*process_flags(argv))  # first: what is wrong then ends all of them
    COMMANDS[argv[0]](parse(argv))
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
  if isinstance(error, StoppedRun):
    return 1, _one_line(error)
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
