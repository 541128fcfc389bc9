# SPDX-License-Identifier: Apache-2.0
"""Flags that argparse leaves: keys of a config, and where processes meet."""

import importlib.util
import pathlib
import sys

from absl import flags
from ml_collections import config_dict, config_flags

from mrpo_jax import processes
from mrpo_jax.errors import InputError
from mrpo_jax.runs.config import read_config, with_defaults


def changed_config(given, changes):
  """The checked config of FILE[:args] with some --config.a.b=value."""
  parsed = flags.FlagValues()
  config = with_defaults(_load_config(given))
  try:
    config_flags.DEFINE_config_dict(
      "config",
      config_dict.ConfigDict(config),
      flag_values=parsed,
      lock_config=False,
      accept_new_attributes=True,  # `read_config` knows what may be given
      sys_argv=["mrpo", *changes],
    )
    rest = parsed(["mrpo", *changes])[1:]
  except KeyError as error:
    raise InputError(f"config has no section {error}") from None
  except flags.Error as error:
    raise InputError(str(error).strip().split("\n")[-1]) from None
  if rest:
    raise InputError(f"unexpected argument {rest[0]!r}; flags start with --")
  return read_config(parsed["config"].value.to_dict())


def load_config(given):
  """The checked config of FILE[:args]; see `config.read_config`."""
  return read_config(with_defaults(_load_config(given)))


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


def meet(coordinator, count, index):
  """Joins the run's other processes, where these flags or the cluster say."""
  if not (coordinator or count or index):
    processes.start()
  elif count != "1" or coordinator or index:
    _check_meeting(coordinator, count, index)
    processes.start(coordinator, int(count), int(index))


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
