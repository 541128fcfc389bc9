# SPDX-License-Identifier: Apache-2.0
"""The command `mrpo`: from its arguments to an exit code."""

import contextlib
import logging
import os
import sys

from mrpo_jax import __version__, streams
from mrpo_jax.cli import cache, ends
from mrpo_jax.cli.commands import COMMANDS
from mrpo_jax.cli.parser import MEETING, parse, parsers, process_flags
from mrpo_jax.errors import InputError, blames, did_you_mean


class Lines(logging.Handler):
  """Prints what is logged, a plain line each, on the first process."""

  to = "stdout"

  def emit(self, record):
    import tqdm

    from mrpo_jax import processes

    if not processes.is_first():
      return
    with tqdm.tqdm.external_write_mode():  # a bar steps aside
      print(record.getMessage(), flush=True, file=getattr(sys, self.to))


LINES = Lines()


def main(argv=None):
  """Runs one command; returns the exit code."""
  is_typed = argv is None
  if is_typed:
    streams.take()
  try:
    argv = _words(sys.argv[1:] if is_typed else argv)
    if argv == ["--version"]:
      print(f"mrpo_jax {__version__}")
      return 0
    topic = _help_topic(argv)
    if topic is None:
      _run(argv)
      return 0
    print(_help(*topic))
    return 0 if argv else 2
  except (Exception, KeyboardInterrupt) as error:
    said = ends.said(error)
    if said is None:
      raise
    code, line = said
    is_wish = isinstance(error, KeyboardInterrupt)  # and no error
    print(line if is_wish else f"error: {line}", file=sys.stderr)
    if is_wish and is_typed:
      # Interrupted in a compilation, jax crashes when Python ends in order.
      sys.stdout.flush()
      os._exit(code)
    return code


def _words(argv):
  """The arguments, refused where they are no text."""
  for word in argv:
    with blames(f"{word!r} is not UTF-8", UnicodeError):
      word.encode()
  return list(argv)


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
      f"no help on {' '.join([command, *rest])!r};{_meant_key(command, *rest)} "
      f"known: {', '.join(COMMANDS)}, config [KEY]"
    )
  return known[command].format_help().rstrip()


def _meant_key(*words):
  """ " did you mean mrpo help config KEY?" where the words are one."""
  from mrpo_jax.runs.config.explain import explain

  for key in (".".join(words), words[0]):
    key = key.removeprefix("config.")
    with contextlib.suppress(InputError):
      explain(key)
      return f" did you mean mrpo help config {key}?"
  return ""


def _miss_no_cuda(devices=("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")):
  """Has jax not look for CUDA's libraries where there is no NVIDIA GPU.

  Its compiler for GPUs, which `mrpo plan` takes, comes without them; each other
  command would begin with a traceback about that, and then run on the CPU.
  """
  if not any(map(os.path.exists, devices)):
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")


def _run(argv):
  # transformers serves as a tokenizer here and need not ask for torch.
  os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
  cache.keep_programs()
  _miss_no_cuda()
  from absl import logging as absl_logging

  from mrpo_jax import processes

  # What a library logs on its way up is said once, by `main` or a traceback.
  absl_logging.set_verbosity(absl_logging.FATAL)
  # Of a chat standard output has the answers.
  LINES.to = "stderr" if argv[0] == "chat" else "stdout"
  logger = logging.getLogger("mrpo_jax")
  logger.setLevel(logging.INFO)
  logger.addHandler(LINES)  # once, however often
  logger.propagate = False  # libraries give the root handlers of their own
  try:
    with ends.of_threads():
      if argv[0] in MEETING:
        from mrpo_jax.cli.flags import meet

        meet(*process_flags(argv))  # first: what is wrong then ends all of them
      COMMANDS[argv[0]](parse(argv))
    processes.leave()
  except (Exception, KeyboardInterrupt) as error:
    if processes.several():
      processes.end(*(ends.said(error) or processes.fault(error)))
    raise
