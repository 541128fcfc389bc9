# SPDX-License-Identifier: Apache-2.0
"""The parser of `mrpo`: flags of every command, with defaults and meaning."""

import argparse
import difflib
import functools
import inspect
import re
from collections.abc import Callable
from typing import NamedTuple

from mrpo_jax.cli.commands import COMMANDS, STORE_ACTIONS
from mrpo_jax.cli.values import (
  DTYPES,
  count_from,
  dtype,
  new_file,
  new_folder,
  positive,
  share,
  two_lengths,
)
from mrpo_jax.errors import InputError, did_you_mean
from mrpo_jax.files import at_home

EPILOG = """\
mrpo train --help lists the flags of that command, mrpo help config [KEY] the
keys of a config; mrpo --version says which one this is.

On several hosts every one runs the same command.  A TPU pod, Slurm (a task per
process) and Open MPI are found out; elsewhere train and score are told

  --coordinator=HOST:PORT --processes=N --process=I

where process 0 of N listens at HOST:PORT; --processes=1 is one by itself
wherever it runs.  All see one workdir; process 0 writes.  When one ends, all
end: with its message, or where it was killed within a minute.

Exit codes: 0 done; 2 the input is wrong, said in one line; 1 a fault; 130
interrupted.
"""
PATHS = ("DIR", "FILE", "FILE[:args]")  # values in which ~ is the user's home


class Flag(NamedTuple):
  """A flag of a command: --name, or --name=VALUE."""

  name: str
  about: str
  value: str = ""  # how help shows its value; "": it is a switch
  default: object = ""
  type: Callable = str  # of its text; raises ArgumentTypeError
  required: bool = False  # and not empty


class Command(NamedTuple):
  """The flags of a command, and what it takes besides."""

  usage: str
  flags: tuple
  takes: str = ""  # "keys" of its config, or "words"
  actions: tuple = ()  # of which the first word is one


# Flags.

CONFIG = Flag(
  "config",
  "file, and the argument of its get_config",
  "FILE[:args]",
  required=True,
)
WORKDIR = Flag("workdir", "folder of the run", "DIR", required=True)
STORE = Flag("store", "scores of references (default: in the workdir)", "DIR")
ALLOW_CHANGED = Flag(
  "allow-changed", "go on though config, data or a reference differs"
)
JSON = Flag("json", "write all figures to this file", "FILE", type=new_file)
HBM = Flag(
  "hbm", "what a device holds (default: the chip's)", "GIB", None, positive
)
LENGTHS = Flag(
  *("lengths", "mean tokens of each (default: half the limits)"),
  *("PROMPT,RESPONSE", None, two_lengths),
)
PROCESSES = (
  Flag("coordinator", "where process 0 of several listens", "HOST:PORT"),
  Flag("processes", "how many processes; 1: this one by itself", "N"),
  Flag("process", "which one this is, from 0 on", "I"),
)
FLAGS = {
  "train": Command(
    "--config=FILE[:args] --workdir=DIR [flags]",
    (
      *(CONFIG, WORKDIR, STORE),
      Flag("no-autoscore", "refuse to start where scores are missing"),
      *(ALLOW_CHANGED, *PROCESSES),
    ),
    takes="keys",
  ),
  "score": Command(
    "--config=FILE[:args] --workdir=DIR [flags]",
    (
      *(CONFIG, WORKDIR, STORE),
      Flag("part", "the i-th of n shares of the data", "i/n", "0/1", share),
      *(ALLOW_CHANGED, *PROCESSES),
    ),
    takes="keys",
  ),
  "store": Command(
    f"{'|'.join(STORE_ACTIONS)} [KEY ...] --store=DIR [--to=FILE]",
    (
      Flag("store", "folder of the store", "DIR", required=True),
      Flag("to", "export: a file .parquet, .jsonl or .csv", "FILE"),
    ),
    takes="words",
    actions=STORE_ACTIONS,
  ),
  "export": Command(
    "--workdir=DIR --to=DIR [flags]",
    (
      WORKDIR,
      Flag("to", "folder to write", "DIR", required=True),
      Flag("step", "checkpoint: newest, best or a step", "STEP", "newest"),
      Flag("merge-adapters", "write a whole model, not its adapter"),
      Flag(
        "dtype",
        f"{', '.join(DTYPES)} (default: as trained)",
        "TYPE",
        None,
        dtype,
      ),
    ),
  ),
  "report": Command(
    "--workdir=DIR",
    (WORKDIR._replace(about="folder of a run, or with runs in it"),),
  ),
  "bench": Command(
    "--config=FILE[:args] [flags]",
    (
      CONFIG,
      Flag("steps", "steps to time", "N", 20, count_from(1)),
      Flag("warmup", "steps before those", "N", 3, count_from(0)),
      STORE._replace(about="scores of references (default: none are kept)"),
      JSON,
      Flag(
        *("trace", "write a profile of the timed steps here", "DIR"),
        type=new_folder,
      ),
    ),
    takes="keys",
  ),
  "plan": Command(
    "--config=FILE[:args] --topology=NAME [flags]",
    (
      CONFIG,
      Flag("topology", "v5p:4x4x4, cpu:8 or local", "NAME", required=True),
      HBM,
      LENGTHS,
      Flag("fit", "search for settings that fit"),
      JSON,
      Flag("program", "write the compiled step here", "FILE", type=new_file),
    ),
    takes="keys",
  ),
  "inspect": Command(
    "FOLDER [--mesh=data=1,fsdp=4,model=2]",
    (Flag("mesh", "sizes of its axes (default: one device)", "AXIS=N,..."),),
    takes="words",
  ),
  "prepare": Command(
    "--data=FILE --to=DIR [--split=NAME]",
    (
      Flag(
        "data", "rows, as config.data.train names them", "FILE", required=True
      ),
      Flag(
        *("to", "the data set is preference_pairs/1.0.0 in it", "DIR"),
        required=True,
      ),
      Flag("split", "its split", "NAME", "train"),
    ),
  ),
}


# Parsing.


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
    if flag is CONFIG:
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
  below = whole.add_subparsers(
    title="commands", metavar="COMMAND", dest="command"
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
        "--config.a.b=value changes one; mrpo help config [KEY] explains them",
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
  from mrpo_jax.runs.config.explain import keys

  asked = re.sub(r"^--?(config[.:_-]?)?", "", name)
  # By its last part too; one at the top goes before one in a section.
  whole = sorted(keys(), key=lambda key: -key.count("."))
  whole = {key.rpartition(".")[2]: key for key in whole} | {k: k for k in whole}
  if asked in whole:
    return f" did you mean --config.{whole[asked]}?"
  near = did_you_mean(name, known)
  for found in [] if near else difflib.get_close_matches(asked, whole, 1, 0.8):
    near = f" did you mean --config.{whole[found]}?"
  return near


def parse(argv):
  """Namespace of a command's flags, checked.

  Its `rest` is what stands beside them: words, or flags of config keys.
  """
  _refuse_spaces(argv)
  given, rest = parsers()[""].parse_known_args(argv)
  command = f"mrpo {given.command}"
  _, flags, takes, actions = FLAGS[given.command]
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
  if actions and not {*rest[:1]} & {*actions}:
    action = rest[0] if rest else ""
    raise InputError(f"{given.command} {action!r}; known: {', '.join(actions)}")
  if takes == "keys":
    if len(given.config) != 1:
      keys = [f".{one}" for one in given.config[1:2] if "=" in one]
      files = [f"={one}" for one in rest if ".py" in one and not given.config]
      near = "".join(f"; did you mean --config{one}?" for one in keys + files)
      raise InputError(
        f"give one --config=FILE[:args]; see {command} --help{near}"
      )
    (given.config,) = given.config
  for flag in flags:
    if flag.required and not getattr(given, flag.name):
      raise InputError(f"--{flag.name} is missing; see {command} --help")
  for name in ("workdir", "store", "to"):
    folder = getattr(given, name, "")
    if "://" in folder:  # else a folder `gs:` would be made here
      raise InputError(
        f"--{name}={folder} is no folder; mount the bucket and name the folder "
        "where it is"
      )
  given.rest = rest
  return given
