# SPDX-License-Identifier: Apache-2.0
"""Few-shot examples: how many a task asks for, and how many there are."""

import collections
import logging

from lm_eval.api import samplers

from mrpo_jax.errors import InputError

logger = logging.getLogger(__name__)


def check_shots(found, asked=None):
  """Refuses more few-shot examples than a task has rows to take them from.

  Says of which tasks the number is fixed: the harness leaves a task alone that
  has none by its own word.

  Args:
    found: tasks and groups, as `find` gives them.
    asked: examples before each document; None is what each task says.

  Raises:
    InputError: names the task, and how many it has.
  """
  tasks = _tasks(found)
  fixed = [task.task_name for task in tasks if _own(task) == 0]
  if asked and fixed:
    logger.info(
      f"{', '.join(fixed)}: shots are fixed by the task; num_fewshot={asked} "
      "does not count"
    )
  for task in tasks:
    own = _own(task)
    shots = own if asked is None or own == 0 else asked
    there = _available(task) if shots else None
    if there is not None and shots > there:
      raise InputError(
        f"{task.task_name}: {shots} few-shot examples are asked for, and there "
        f"are {there} to take them from; give a num_fewshot of at most {there}"
      )


def _tasks(found):
  """The tasks among tasks and groups, those of the groups with them."""
  tasks = []
  for one in found:
    tasks += one.get_all_tasks() if hasattr(one, "get_all_tasks") else [one]
  return tasks


def _own(task):
  """Shots that a task asks for itself; None where it says nothing."""
  return getattr(getattr(task, "config", None), "num_fewshot", None)


def _available(task):
  """Examples that the harness's samplers can find for any document.

  None where that is not known: the task has a sampler of its own.
  """
  sampler = getattr(task, "sampler", None)
  if type(sampler) not in samplers.SAMPLER_REGISTRY.values():
    return None
  rows = sampler.df
  config = task.config
  split = getattr(config.fewshot_config, "split", None)
  if split is None or split != config.test_split:
    return len(rows)
  # A document is no example of itself, nor is one that equals it.
  return len(rows) - max(
    collections.Counter(map(repr, rows)).values(), default=0
  )
