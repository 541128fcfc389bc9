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

from mrpo_jax.evaluation.asked import what_was_asked
from mrpo_jax.evaluation.quiet import quiet
from mrpo_jax.evaluation.tasks.find import find
from mrpo_jax.evaluation.tasks.shots import check_shots

logger = logging.getLogger(__name__)

DRAWS = 1000  # of a bootstrap: within 3 % of the error that more would find


def evaluate_tasks(
  lm,
  tasks,
  *,
  data="",
  limit=None,
  num_fewshot=None,
  apply_chat_template=False,
  log_samples=False,
  bootstrap_iters=DRAWS,
):
  """The harness's results of a model, a dict that is JSON.

  Args:
    lm: HarnessLM.
    tasks: names, files .yaml, or what `tasks.find.find` has found of them, with
      shots that `tasks.shots.check_shots` has passed.
    data: folder of the files that the offline tasks read; see `find`.
    limit: documents of each task; None is all.
    num_fewshot: shots before each document; None is what the task says.
    apply_chat_template: are prompts conversations?
    log_samples: also every document, what was asked and answered, by task as
      `samples`.
    bootstrap_iters: draws of the standard error of a metric that has no
      formula for it (f1, perplexity, bleu, ...), in this process; 0: no
      standard errors at all.

  Raises:
    InputError: a task is not known, cannot be loaded, or has fewer few-shot
      examples than are asked for.
  """
  with quiet(), _own_random_numbers():
    found = find(tasks, data)
    if any(isinstance(one, str) for one in tasks):
      check_shots(found, num_fewshot)
    results = lm_eval.simple_evaluate(
      model=lm,
      tasks=found,
      limit=limit,
      num_fewshot=num_fewshot,
      apply_chat_template=apply_chat_template,
      log_samples=log_samples,
      bootstrap_iters=bootstrap_iters,
      task_manager=TaskManager(include_defaults=False),
      torch_random_seed=None,  # would import torch where it is installed
    )
  results["config"] |= {
    "num_fewshot": num_fewshot,
    "apply_chat_template": apply_chat_template,
  }
  _say_not_finite(results)
  return _finite(results)


def table(results):
  """What was asked of which model, and the harness's own tables below it.

  They are of tasks, and of groups where there are some.
  """
  config = results.get("config", {})
  names = ("limit", "num_fewshot", "apply_chat_template")
  found = what_was_asked(
    f"model {config.get('model')}", **{name: config.get(name) for name in names}
  )
  found += "\n\n" + make_table(results)
  if results.get("groups"):
    found += "\n" + make_table(results, "groups")
  return found.rstrip()


def figures(results):
  """{"task/metric,filter": value} of results, without standard errors."""
  return _numbers(results, are_errors=False)


def standard_errors(results):
  """{"task/metric_stderr,filter": value}, over the documents of each task."""
  return _numbers(results, are_errors=True)


def _numbers(results, are_errors):
  found = {}
  for task, metrics in results["results"].items():
    for name, value in metrics.items():
      is_asked = "," in name and _is_error(name) == are_errors
      if is_asked and isinstance(value, int | float):
        found[f"{task}/{name}"] = float(value)
  return found


def _say_not_finite(results):
  """Of which tasks a figure is NaN or infinite: it is left out of `figures`."""
  for task, metrics in results["results"].items():
    for name, value in metrics.items():
      if _is_error(name) or not isinstance(value, float | np.floating):
        continue
      if not math.isfinite(value):
        logger.warning(
          f"warning: {task}/{name} is {value}, no finite number: null in the "
          "results, and no figure"
        )


def _is_error(name):
  """Is it of "metric_stderr,filter"?"""
  return name.partition(",")[0].endswith("_stderr")


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
  """The same as JSON has it: None in place of what is no finite number.

  A standard error is "N/A" then, as where the harness knows none: its table
  formats all others.
  """
  if isinstance(value, dict):
    found = {str(key): _finite(one) for key, one in value.items()}
    for key, one in found.items():
      if one is None and _is_error(key):
        found[key] = "N/A"
    return found
  if isinstance(value, list | tuple):
    return [_finite(one) for one in value]
  if isinstance(value, np.generic):
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return None
  if value is None or isinstance(value, str | int | float):
    return value
  return str(value)
