# SPDX-License-Identifier: Apache-2.0
"""The parser of `mrpo`: from arguments to checked flags, and their help."""

import argparse
import functools
import inspect
import re

from mrpo_jax.buckets import is_bucket, path_of
from mrpo_jax.cli.commands import COMMANDS
from mrpo_jax.cli.table import FLAGS, PROCESSES
from mrpo_jax.errors import InputError, did_you_mean
from mrpo_jax.files import at_home

EPILOG = """\
mrpo train --help lists the flags of that command, mrpo help config [KEY] the
keys of a config; mrpo --version says which one this is.

On several hosts every one runs the same command.  On a TPU pod, and under
Slurm (a task per process) or Open MPI, the processes find each other;
elsewhere train, score, generate and evaluate are told

  --coordinator=HOST:PORT --processes=N --process=I

where process 0 of N listens at HOST:PORT; --processes=1 is one by itself
wherever it runs.  All see one workdir; process 0 writes.  When one ends, all
end: with its message, or where it was killed within a minute.

Exit codes: 0 done; 2 the input is wrong, said in one line; 1 a fault; 130
interrupted.
"""
PATHS = (
  "DIR",
  "FILE",
  "FILE[:args]",
  "[NAME=]DIR",
  "[NAME=]FILE",
)  # values in which ~ is the user's home


# Flags whose folders may be in a bucket, of each command.
IN_BUCKETS = {
  "train": ("workdir", "store"),
  "score": ("workdir", "store"),
  "store": ("store", "to"),
  "export": ("workdir", "to"),
  "report": ("workdir",),
  "generate": ("workdir",),
  "chat": ("workdir",),
}


class Parser(argparse.ArgumentParser):
  """argparse that guesses no flag and refuses with InputError."""

  def __init__(self, **given):
    formatter = functools.partial(
      argparse.RawDescriptionHelpFormatter, max_help_position=29, width=80
    )
    super().__init__(**given, allow_abbrev=False, formatter_class=formatter)

  def add(self, flag):
    about, kind = flag.about, dict(action="store_true")
    if flag.value:
      read = at_home if flag.value in PATHS and flag.type is str else flag.type
      kind = dict(metavar=flag.value, default=flag.default, type=read)
      about += " (required)" if flag.required else ""
      about += f" (default: {flag.default})" if flag.default else ""
    if flag.many:
      kind |= dict(action="append", default=[])
    self.add_argument(f"--{flag.name}", help=about, **kind)

  def error(self, message):
    message = message.removeprefix("argument ")
    if switch := re.fullmatch(
      "(--.*): ignored explicit argument (.*)", message
    ):
      flag, value = switch.groups()
      message = f"{flag}: a switch takes no {value}; give {flag} alone, or not"
    raise InputError(message)


def parsers():
  """{command: its Parser}; "" is the one of `mrpo`, which has them all."""
  whole = Parser(
    prog="mrpo",
    usage="mrpo COMMAND [flags]",
    description="Multi-reference preference optimization in JAX.",
    epilog=EPILOG,
  )
  # argparse leaves names the room of its metavar, less what they are indented.
  below = whole.add_subparsers(
    title="commands", metavar="COMMAND FLAGS", dest="subcommand"
  )
  each = {"": whole}
  for name, (usage, flags, takes, _) in FLAGS.items():
    about = inspect.cleandoc(COMMANDS[name].__doc__)
    each[name] = below.add_parser(
      name,
      usage=f"mrpo {name} {usage}",
      description=about,
      help=about.split("\n")[0].rstrip("."),
    )
    for flag in flags:
      each[name].add(flag)
    if takes == "keys":
      each[name].add_argument_group(
        "keys of the config",
        "key=value, or --config.key=value, changes one;\n"
        "mrpo help config [KEY] explains them",
      )
  return each


MEETING = {name for name, one in FLAGS.items() if {*PROCESSES} <= {*one.flags}}


def process_flags(argv):
  """The values of --coordinator, --processes and --process, the rest unread."""
  parser = Parser(add_help=False)
  for flag in PROCESSES:
    parser.add(flag)
  given, _ = parser.parse_known_args(argv[1:])
  return given.coordinator, given.processes, given.process


def _refuse_spaces(argv):
  """Refuses `--flag= value`, `--flag =value`, `--flag = value`, `--config. x`.

  Each would be read as another value than the one that was meant.
  """
  for place, word in enumerate(argv):
    after = [one for one in argv[place + 1 : place + 3] if one[:2] != "--"]
    after = after[: 2 if after[:1] == ["="] else 1]
    name, equals, value = word.partition("=")
    given = " ".join([word, *after])
    if not word.startswith("--"):
      continue
    if name.endswith("."):
      raise InputError(f"{given}: a key follows the point, without a space")
    starts = not equals and "".join(after).startswith("=")
    if starts or after and equals and not value:
      meant = f"{name}={''.join(after).removeprefix('=')}"
      raise InputError(f"{given}: no space beside =; write {meant}")


def _meant(name, flags, takes):
  """ " did you mean --...?" of the flag or key most like an unknown flag."""
  known = [f"--{flag.name}" for flag in flags]
  if takes != "keys":
    return did_you_mean(name, known)
  from mrpo_jax.runs.config.explain import nearest

  asked = re.sub(r"^--?(config[.:_-]?)?", "", name)
  key = nearest(asked)
  is_whole = f".{key}".endswith(f".{asked}")
  near = "" if is_whole else did_you_mean(name, known)
  return near or (f" did you mean --config.{key}?" if key else "")


def _names_and_keys(words, flags):
  """(bare words, --config.key=value for each key=value and key).

  Args:
    words: what stands beside flags, in order.
    flags: names of the command's flags, for whom forgets the --.
  """
  names, keys, words = [], [], [*words]
  while words:
    word = words.pop(0)
    key, equals, value = word.partition("=")
    if word.startswith("--"):
      # Of `--config.key value` the next word is the value, and no name.
      has_value = not equals and words and not words[0].startswith("--")
      keys.append(f"{word}={words.pop(0)}" if has_value else word)
    elif not equals:
      names.append(at_home(word))
    elif key in flags:
      raise InputError(f"{word}: --{key} is a flag; write --{word}")
    else:
      keys.append(f"--config.{key.removeprefix('config.')}={value}")
  return names, keys


def _check_places(given):
  """InputError where a folder is a URL that the command does not take."""
  for name in ("workdir", "store", "to"):
    folders = getattr(given, name, "")
    for folder in folders if isinstance(folders, list) else [folders]:
      if "://" not in folder:
        continue
      if not is_bucket(folder):  # else a folder `http:` would be made here
        raise InputError(
          f"--{name}={folder} is no folder; name one of a disk, or "
          "gs://BUCKET/NAME or s3://BUCKET/NAME"
        )
      if name not in IN_BUCKETS.get(given.subcommand, ()):
        raise InputError(
          f"--{name}={folder}: mrpo {given.subcommand} needs a folder of a "
          "disk; copy it from the bucket, or to it afterwards"
        )
      path_of(folder)


def parse(argv):
  """Namespace of a command's flags, checked.

  Its `rest` is what stands beside them: words, or flags of config keys.
  """
  _refuse_spaces(argv)
  given, rest = parsers()[""].parse_known_args(argv)
  command = f"mrpo {given.subcommand}"
  _, flags, takes, actions = FLAGS[given.subcommand]
  for word in rest:
    name = word.partition("=")[0]
    is_key = takes == "keys" and name.startswith("--config.")
    if name.startswith(("--", "-config")) and not is_key:
      known = [f"--{flag.name}" for flag in flags]
      raise InputError(
        f"unknown flag {name};{_meant(name, flags, takes)} known to {command}: "
        f"{', '.join(known)}"
      )
  if rest and not takes:
    raise InputError(f"unexpected argument {rest[0]!r}; flags start with --")
  if takes == "keys":
    names, rest = _names_and_keys(rest, {flag.name for flag in flags})
    given.config += names
  if actions and not {*rest[:1]} & {*actions}:
    action = rest[0] if rest else ""
    raise InputError(
      f"{given.subcommand} {action!r}; known: {', '.join(actions)}"
    )
  if takes == "keys":
    needed = any(flag.name == "config" and flag.required for flag in flags)
    if len(given.config) > 1 or needed and not given.config:
      keys = [f".{one}" for one in given.config[1:2] if "=" in one]
      near = "".join(f"; did you mean --config{one}?" for one in keys)
      both = f", not {' and '.join(given.config)}" if given.config else ""
      raise InputError(
        f"give one --config=FILE[:args] or NAME{both}; see {command} "
        f"--help{near}"
      )
    given.config = "".join(given.config)
  for flag in flags:
    if flag.required and not getattr(given, flag.name):
      raise InputError(f"--{flag.name} is missing; see {command} --help")
  _check_places(given)
  given.rest = rest
  return given
