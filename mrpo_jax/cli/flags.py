# SPDX-License-Identifier: Apache-2.0
"""What is said on the command line, as plain values."""

import importlib.util
import pathlib
import sys

from absl import flags
from ml_collections import config_dict, config_flags

from mrpo_jax.errors import InputError
from mrpo_jax.runs.config import read_config, with_defaults


def parse(argv, *required, config=False, switches=(), **optional):
  """Values of the flags of one command, by name.

  Args:
    argv: the command and its flags.
    *required: names of flags that must be given.
    config: is --config=FILE[:args] one, every key of which can be changed?
    switches: names of flags without a value.
    **optional: names of others, with their defaults.
  """
  argv = argv[1:]
  parsed = flags.FlagValues()
  for name in (*required, *optional):
    flags.DEFINE_string(name, optional.get(name), "", flag_values=parsed)
  for name in switches:
    flags.DEFINE_boolean(name, False, "", flag_values=parsed)
  if config:
    argv = _define_config(argv, parsed)
  rest = parsed(["mrpo", *argv])[1:]
  if rest:
    raise InputError(f"unexpected argument {rest[0]!r}; flags start with --")
  names = (*required, *optional, *switches, *(["config"] if config else []))
  values = {name: parsed[name].value for name in names}
  for name in required:
    if not values[name]:
      raise InputError(f"--{name} is missing; see mrpo --help")
  for name in ("workdir", "store", "to"):
    if "://" in values.get(name, ""):  # else a folder `gs:` would be made here
      raise InputError(
        f"--{name}={values[name]} is no folder; mount the bucket and name the "
        "folder where it is"
      )
  return values


def load_config(given):
  """The checked config of FILE[:args]; see `config.read_config`."""
  return read_config(with_defaults(_load_config(given)))


def _define_config(argv, parsed):
  """Takes --config=FILE[:args] out of argv; every key becomes a flag."""
  given = [a.split("=", 1)[1] for a in argv if a.startswith("--config=")]
  if len(given) != 1:
    raise InputError("give one --config=FILE[:args]; see mrpo --help")
  argv = [a for a in argv if not a.startswith("--config=")]
  config = with_defaults(_load_config(given[0]))
  try:
    config_flags.DEFINE_config_dict(
      "config",
      config_dict.ConfigDict(config),
      flag_values=parsed,
      lock_config=False,
      accept_new_attributes=True,  # `read_config` knows what may be given
      sys_argv=["mrpo", *argv],
    )
  except KeyError as error:
    raise InputError(f"config has no section {error}") from None
  return argv


def _load_config(given):
  """What get_config of FILE[:args] returns, as a nested dict."""
  path, *arg = given.split(":", 1)
  path = pathlib.Path(path)
  if not path.is_file():
    raise InputError(f"--config {path}: no such file")
  # A config imports its neighbours as `configs.name`.
  sys.path.insert(0, str(path.resolve().parent.parent))
  try:
    spec = importlib.util.spec_from_file_location("mrpo_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*arg).to_dict()
  except Exception as error:  # it is code, and fails as code does
    reason = f"{type(error).__name__}: {error}".split("\n")[0]
    raise InputError(f"--config {path}: {reason}") from error


def meet(argv):
  """Joins the run's other processes; argv without the flags that say how."""
  from mrpo_jax import processes

  parsed = flags.FlagValues()
  for name in ("coordinator", "processes", "process"):
    flags.DEFINE_string(name, "", "", flag_values=parsed)
  parsed.set_gnu_getopt()
  rest = parsed(["mrpo", *argv[1:]], known_only=True)[1:]
  coordinator, count, index = (
    parsed[name].value for name in ("coordinator", "processes", "process")
  )
  if not (coordinator or count or index):
    processes.start()
  elif count != "1" or coordinator or index:
    _check_meeting(coordinator, count, index)
    processes.start(coordinator, int(count), int(index))
  return [argv[0], *rest]


def _check_meeting(coordinator, count, index):
  if not (coordinator and count and index):
    raise InputError("--coordinator, --processes and --process go together")
  host, _, port = coordinator.rpartition(":")
  if not (host and port.isdecimal() and 0 < int(port) < 2**16):
    raise InputError(
      f"--coordinator: {coordinator!r}; want HOST:PORT, where process 0 listens"
    )
  if not (count.isdecimal() and int(count)):
    raise InputError(f"--processes: {count!r}; want a number from 1 on")
  if not (index.isdecimal() and int(index) < int(count)):
    raise InputError(
      f"--process: {index!r}; want a number from 0 to {int(count) - 1}"
    )


def positive(name, given, kind):
  """The number that --name is given as, of that type."""
  try:
    value = kind(given)
  except ValueError:
    value = 0
  if not 0 < value < float("inf"):
    raise InputError(f"--{name}: {given!r}; want a positive number")
  return value


def new_file(name, path):
  """The path that --name is given as, in a folder that is there; or ""."""
  if path and not pathlib.Path(path).resolve().parent.is_dir():
    raise InputError(f"--{name} {path}: no such folder")
  return path
