# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of a model: lm-evaluation-harness's results of a HarnessLM."""

import contextlib
import functools
import logging
import math
import random

import lm_eval
import numpy as np
from lm_eval.api import task as of_tasks
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

from mrpo_jax.evaluation.tasks.find import find

logger = logging.getLogger(__name__)

NOISE = ("Custom kwargs can be passed", "Overwriting default num_fewshot")


def evaluate_tasks(
  lm,
  tasks,
  *,
  data="",
  limit=None,
  num_fewshot=None,
  apply_chat_template=False,
  log_samples=False,
):
  """The harness's results of a model, a dict that is JSON.

  Args:
    lm: HarnessLM.
    tasks: names, files .yaml, or what `tasks.find.find` has found of them.
    data: folder of the files that the offline tasks read; see `find`.
    limit: documents of each task; None is all.
    num_fewshot: shots before each document; None is what the task says.
    apply_chat_template: are prompts conversations?
    log_samples: also every document, what was asked and answered, by task as
      `samples`.

  Raises:
    InputError: a task is not known or cannot be loaded.
  """
  with _quiet(), _own_random_numbers():
    found = lm_eval.simple_evaluate(
      model=lm,
      tasks=find(tasks, data),
      limit=limit,
      num_fewshot=num_fewshot,
      apply_chat_template=apply_chat_template,
      log_samples=log_samples,
      task_manager=TaskManager(include_defaults=False),
      torch_random_seed=None,  # would import torch where it is installed
    )
  return _finite(found)


def table(results):
  """The harness's own tables: of tasks, and of groups where there are some."""
  found = make_table(results)
  if results.get("groups"):
    found += "\n" + make_table(results, "groups")
  return found.rstrip()


def figures(results):
  """{"task/metric,filter": value} of results, without standard errors."""
  found = {}
  for task, metrics in results["results"].items():
    for name, value in metrics.items():
      metric = name.partition(",")[0]
      is_figure = "," in name and not metric.endswith("_stderr")
      if is_figure and isinstance(value, int | float):
        found[f"{task}/{name}"] = float(value)
  return found


class _Lines(logging.Handler):
  """Warnings of the harness as lines of our own, each once."""

  def __init__(self):
    super().__init__(logging.WARNING)
    self._said = set()

  def emit(self, record):
    text = record.getMessage().strip().split("\n")[0]
    if text not in self._said and not any(one in text for one in NOISE):
      self._said.add(text)
      logger.warning(f"warning: of the harness: {text}")


@contextlib.contextmanager
def _quiet():
  """The harness without a bar for the prompts of each task."""
  bar, theirs = of_tasks.tqdm, logging.getLogger("lm_eval")
  lines, propagate = _Lines(), theirs.propagate
  of_tasks.tqdm = functools.partial(bar, disable=True)
  theirs.addHandler(lines)
  theirs.propagate = False
  try:
    yield
  finally:
    of_tasks.tqdm, theirs.propagate = bar, propagate
    theirs.removeHandler(lines)


@contextlib.contextmanager
def _own_random_numbers():
  """The harness seeds generators that are everybody's."""
  states = random.getstate(), np.random.get_state()
  try:
    yield
  finally:
    random.setstate(states[0])
    np.random.set_state(states[1])


def _finite(value):
  """The same as JSON has it: None in place of what is no finite number."""
  if isinstance(value, dict):
    return {str(key): _finite(one) for key, one in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(one) for one in value]
  if isinstance(value, np.generic):
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return None
  if value is None or isinstance(value, str | int | float):
    return value
  return str(value)
