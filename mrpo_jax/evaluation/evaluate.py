# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of a model: lm-evaluation-harness's results of a HarnessLM."""

import contextlib
import logging
import math
import random

import lm_eval
import numpy as np
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

from mrpo_jax.evaluation.quiet import quiet
from mrpo_jax.evaluation.tasks.find import find

logger = logging.getLogger(__name__)


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
  with quiet(), _own_random_numbers():
    found = find(tasks, data)
    if num_fewshot is not None:
      _say_fixed_shots(found, num_fewshot)
    found = lm_eval.simple_evaluate(
      model=lm,
      tasks=found,
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


def _say_fixed_shots(found, asked):
  """The harness leaves a task alone that has no shots by its own word."""
  fixed = [one.task_name for one in found if _shots(one) == 0]
  if fixed and asked:
    logger.info(
      f"{', '.join(fixed)}: shots are fixed by the task; --num_fewshot="
      f"{asked} does not count"
    )


def _shots(task):
  """Shots before each document of a task; None for a group or no word of it."""
  return getattr(getattr(task, "config", None), "num_fewshot", None)


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
