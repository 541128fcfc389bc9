# SPDX-License-Identifier: Apache-2.0
"""Flags that argparse leaves: keys of a config, and where processes meet."""

import re

from absl import flags
from ml_collections import config_dict, config_flags

from mrpo_jax import processes
from mrpo_jax.cli.values import whole_number
from mrpo_jax.errors import InputError, did_you_mean
from mrpo_jax.runs.config import (
  RENAMED,
  is_loss,
  read,
  say_renamed,
  values_of,
  with_defaults,
)
from mrpo_jax.runs.config.explain import nearest

NAMES = re.compile(r"[A-Za-z][\w-]*(,[A-Za-z][\w-]*)*,?")


def changed_config(given, changes):
  """The Config of FILE[:args] with some --config.a.b=value."""
  return read(changed_values(given, changes))


def changed_values(given, changes):
  """The nested dict of the same, with every default, not yet checked."""
  parsed, changes = flags.FlagValues(), _renamed(changes)
  values = values_of(given)
  if is_loss(given):
    values = _completed(values, changes)
  config = with_defaults(values)
  changes = [_checked(config, word) for word in changes]
  try:
    config_flags.DEFINE_config_dict(
      "config",
      config_dict.ConfigDict(config),
      flag_values=parsed,
      lock_config=False,
      accept_new_attributes=True,  # `read` knows what may be given
      sys_argv=["mrpo", *changes],
    )
    rest = parsed(["mrpo", *changes])[1:]
  except flags.IllegalFlagValueError as error:
    raise InputError(_wrong_value(config, changes, str(error))) from None
  except flags.Error as error:
    raise InputError(str(error).strip().split("\n")[-1]) from None
  if rest:
    raise InputError(f"unexpected argument {rest[0]!r}; flags start with --")
  return parsed["config"].value.to_dict()


def _completed(values, changes):
  """The config of a loss, with what its keys say of others.

  References are those whose keys are given, in that order; steps go before
  epochs.
  """
  references = {"names": (), **values.get("references", {})}
  if any(word.startswith("--config.steps") for word in changes):
    values = {key: one for key, one in values.items() if key != "epochs"}
  for word in changes:
    section, _, rest = word.removeprefix("--config.").partition(".")
    name = rest.partition("=")[0].partition(".")[0]
    if section == "references" and name not in references:
      references[name] = {}
      references["names"] = (*references["names"], name)
  return {**values, "references": references}


def _renamed(changes):
  """The flags with old keys under their names; each is said."""
  found = []
  for place, flag in enumerate(changes):
    name, *value = flag.split("=", 1)
    key = name.removeprefix("--config.")
    if key in RENAMED:
      found.append(key)
      changes = [*changes]
      changes[place] = "=".join([f"--config.{RENAMED[key]}", *value])
  say_renamed(found)
  return changes


def _checked(config, word):
  """--config.key=value as absl reads it, of a key that may be changed.

  A tuple of names may be given as a,b.
  """
  if not word.startswith("--config."):
    return word
  key, equals, value = word.removeprefix("--config.").partition("=")
  here = _check_key(config, key, equals, value)
  if isinstance(here, tuple) and NAMES.fullmatch(value):
    value = repr(tuple(filter(None, value.split(","))))
  return f"--config.{key}{equals}{value}"


def _check_key(config, key, equals, value):
  """The value that a key has; None where it is new.

  Raises:
    InputError: it has no section or value, or is a section.
  """
  where, section, names = "config", config, key.split(".")
  if "" in names:
    raise InputError(f"--config.{key}: a key is missing beside a point")
  for name in names[:-1]:
    sections = [one for one in section if isinstance(section[one], dict)]
    if name not in section:
      known = ", ".join(sorted(sections)) or "none"
      raise InputError(
        f"{where} has no section {name!r};{did_you_mean(name, sections)} "
        f"known: {known}"
      )
    where, section = f"{where}.{name}", section[name]
    if not isinstance(section, dict):
      raise InputError(f"{where} has no keys: it is {section!r}, no section")
  meant = nearest(key, config) if len(names) == 1 and key not in config else ""
  if "." in meant:
    raise InputError(f"config.{key} is not known; did you mean {meant}?")
  here = section.get(names[-1])
  if not equals and not isinstance(here, bool):
    raise InputError(f"--config.{key}: its value is missing")
  if isinstance(here, dict) and here and not value.startswith("{"):
    raise InputError(
      f"config.{key} is a section; give one of its keys: "
      + ", ".join(f"--config.{key}.{name}" for name in sorted(here))
    )
  return here


def _wrong_value(config, changes, error):
  """The sentence on a value that is not of the type that its key has."""
  for word in changes:
    if error.startswith(f"flag {word}:"):
      break
  else:
    return error
  key, _, value = word.removeprefix("--").partition("=")
  for name in key.split(".")[1:]:
    config = config[name]
  wanted = f"of type {type(config).__name__}"
  if isinstance(config, dict):
    wanted = "a section like {'key': 1}"
  return f"{key} must be {wanted}, got {value!r}"


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
  if not (host and whole_number(port, 2**16 - 1)):
    raise InputError(
      f"--coordinator: {coordinator!r}; want HOST:PORT, where process 0 listens"
    )
  total = whole_number(count)
  if not total:
    raise InputError(f"--processes: {count!r}; want a number from 1 on")
  place = whole_number(index)
  if place is None or place >= total:
    raise InputError(
      f"--process: {index!r}; want a number from 0 to {total - 1}"
    )
