# SPDX-License-Identifier: Apache-2.0
"""Experiment trackers: TensorBoard, Weights & Biases, Trackio, MLflow.

A tracker has two functions: `write(step, values)` of a line of metrics.jsonl,
finite figures and perhaps samples, and `close(failed)`.
"""

import contextlib
import dataclasses
import importlib.util
import logging
import pathlib
import secrets

from mrpo_jax import files, processes
from mrpo_jax.buckets import is_bucket
from mrpo_jax.errors import InputError, in_one_line
from mrpo_jax.training.trackers.mlflow import MLflow
from mrpo_jax.training.trackers.tensorboard import TensorBoard
from mrpo_jax.training.trackers.trackio import Trackio
from mrpo_jax.training.trackers.wandb import Wandb

logger = logging.getLogger(__name__)

FILE = "tracking.json"  # of a workdir: the id by which a tracker knows the run
SERVICES = {"wandb": Wandb, "trackio": Trackio, "mlflow": MLflow}


@dataclasses.dataclass(frozen=True)
class Run:
  """What a tracker is told of a run, and what it is to be found under."""

  workdir: pathlib.Path
  name: str
  id: str
  config: dict  # content of config.json


def check(tracking):
  """Raises InputError where the library of a service is missing."""
  for name, project in tracking.items():
    if name not in SERVICES or not project:
      continue
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:  # a folder of that name is none
      raise InputError(
        f"config.tracking.{name}={project!r}: {name} is not installed; pip "
        f"install 'mrpo-jax[{name}]'"
      )


def opened(workdir, tracking, config, *, name=""):
  """Opens the trackers of a run, which goes on under the id that it had.

  Args:
    workdir: folder of the run.
    tracking: {"tensorboard": bool, name of SERVICES: project or ""}.
    config: content of config.json.
    name: of the run; that of its folder if empty.

  Returns:
    [tracker], on the first process; none on the others.

  Raises:
    InputError: a service does not take the run.
  """
  if not processes.is_first():
    return []
  asked = {one: tracking[one] for one in SERVICES if tracking[one]}
  name = name or (workdir if is_bucket(workdir) else workdir.absolute()).name
  run = Run(workdir, name, _id(workdir) if asked else "", config)
  found = []
  with contextlib.ExitStack() as on_error:
    if tracking["tensorboard"]:
      found += _tensorboard(workdir)
    for service, project in asked.items():
      found.append(_Guarded(service, _service(service, project, run)))
      on_error.callback(found[-1].close, failed=True)
    on_error.pop_all()
  return found


def _tensorboard(workdir):
  """[TensorBoard of a workdir], or none, which is said, without the library."""
  try:
    return [_Guarded("tensorboard", TensorBoard(workdir))]
  except ImportError:
    logger.info("no TensorBoard events: pip install 'mrpo-jax[tensorboard]'")
    return []


def _id(workdir):
  """The id of a run, which its first start draws; written before it is used."""
  path = workdir / FILE
  if path.exists():
    found = files.read_json(path).get("id")
    if not isinstance(found, str) or not found.isalnum():
      raise InputError(f"{path} holds no id of a run; remove it for a new one")
    return found
  found = secrets.token_hex(4)
  files.write_json(path, {"id": found})
  return found


def _service(name, project, run):
  try:
    return SERVICES[name](project, run)
  except Exception as error:  # each service raises its own, of many kinds
    raise InputError(
      f"config.tracking.{name}={project!r}: {name} does not take the run "
      f"({in_one_line(error)})"
    ) from error


class _Guarded:
  """A tracker whose failure is said, and ends the tracker and not the run."""

  def __init__(self, name, tracker):
    self._name, self._tracker = name, tracker

  def write(self, step, values):
    with self._guard(f"at step {step}"):
      if self._tracker is not None:
        self._tracker.write(step, values)

  def sync(self):
    """Sends what waits here until a checkpoint; services wait for none."""
    with self._guard("at a checkpoint"):
      if isinstance(self._tracker, TensorBoard):
        self._tracker.sync()

  def close(self, failed):
    with self._guard("at its end"):
      if self._tracker is not None:
        self._tracker.close(failed)

  @contextlib.contextmanager
  def _guard(self, when):
    try:
      yield
    except Exception as error:  # each service raises its own, of many kinds
      self._tracker = None
      logger.warning(
        f"{self._name} failed {when} and is told no more of this run "
        f"({in_one_line(error)}); metrics.jsonl has every line"
      )
