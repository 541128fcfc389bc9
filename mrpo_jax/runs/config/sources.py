# SPDX-License-Identifier: Apache-2.0
"""Where a config comes from: a Python file, YAML, or a name."""

import importlib.util
import pathlib
import sys

import yaml

from mrpo_jax import configs, losses
from mrpo_jax.errors import InputError, did_you_mean
from mrpo_jax.losses.methods.build import taken
from mrpo_jax.losses.methods.catalogue import OF_TOKENS
from mrpo_jax.runs.config.yaml_text import parsed

SHARED = "configs.common"  # where it was that config files shared
YAML = (".yaml", ".yml")
# Peak learning rates of configs by the name of a loss, where they differ from
# that of preferences; all are TRL's defaults.
PEAK_LR = {"nll": 2e-5, "bradley_terry": 1e-4}
PREFERENCES_LR = 1e-6
BASE = "base"  # name of the reference that is the policy's start


def values_of(given):
  """The nested dict of FILE[:args], of a config that ships, or of a loss.

  Raises:
    InputError: no such file or name, or the file cannot be read.
  """
  name, *arg = given.split(":", 1)
  path = pathlib.Path(name)
  if path.is_file() and path.suffix in YAML:
    if arg:
      raise InputError(
        f"--config {given}: YAML takes no arguments; change keys by key=value"
      )
    return _of_yaml(path)
  if path.is_file() and path.suffix == ".py":
    return _of_python(path, arg)
  if name in _shipped():
    return _of_python(_shipped()[name], arg)
  if is_loss(name):
    if arg:
      raise InputError(
        f"--config {given}: a loss takes no arguments; change keys by key=value"
      )
    return of_loss(name)
  if path.is_file():
    raise InputError(f"--config {path}: want a file .py or .yaml")
  raise InputError(_unknown(name))


def is_loss(given):
  """Is what --config says the name of a loss, and of no config?"""
  return given in losses.names() and given not in _shipped()


def _shipped():
  """{name: file} of the configs that ship."""
  return {path.stem: path for path in sorted(configs.SHIPPED.glob("[!_]*.py"))}


def of_loss(name):
  """The nested dict of the common case: an epoch under that loss.

  What compares the policy with its start has it as its reference; model and
  data are given by keys.
  """
  values = {
    "epochs": 1.0,
    "batch": 64,
    "loss": {"name": name},
    "optimizer": {"peak_lr": PEAK_LR.get(name, PREFERENCES_LR)},
  }
  if {"mixture", "weights"} & taken(name).keys() or name in OF_TOKENS:
    values["references"] = {"names": (BASE,), BASE: {"path": "policy"}}
  if name == "bradley_terry":
    values["policy"] = {"head": "scalar"}
  return values


def _unknown(name):
  if "/" in name or pathlib.Path(name).suffix:
    return f"--config {name}: no such file"
  near = did_you_mean(name, [*_shipped(), *losses.names()])
  return (
    f"--config {name}: no such file, and no config or loss of that name;{near} "
    f"configs: {', '.join(_shipped())}; losses: mrpo help config loss.name"
  )


def _of_yaml(path):
  try:
    values = parsed(path.read_text(encoding="utf-8"))
  except yaml.MarkedYAMLError as error:
    line = error.problem_mark.line + 1
    reason = " ".join(filter(None, (error.context, error.problem)))
    raise InputError(f"--config {path}: line {line}: {reason}") from None
  except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
    reason = " ".join(str(error).split())
    raise InputError(f"--config {path}: {reason}") from None
  if not isinstance(values, dict):
    raise InputError(f"--config {path}: want keys and values, one a line")
  return values


def _of_python(path, arg):
  # A config imports its neighbours: as `configs.name`, or by the name alone,
  # which hides no installed package.
  folder = path.resolve().parent
  sys.path[:] = dict.fromkeys([str(folder.parent), *sys.path, str(folder)])
  try:
    spec = importlib.util.spec_from_file_location("mrpo_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*arg).to_dict()
  except Exception as error:  # it is code, and fails as code does
    reason = f"{type(error).__name__}: {error}".split("\n")[0]
    if isinstance(error, ImportError) and error.name in ("configs", SHARED):
      reason += "; what config files share is `from mrpo_jax import configs`"
    raise InputError(f"--config {path}: {reason}") from error
