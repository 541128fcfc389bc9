# SPDX-License-Identifier: Apache-2.0
"""Tasks by name: those that read local files, and the harness's own."""

import contextlib
import functools
import itertools
import pathlib

import yaml

from mrpo_jax.errors import InputError, did_you_mean, first_line
from mrpo_jax.evaluation.quiet import quiet
from mrpo_jax.evaluation.tasks import local

HERE = pathlib.Path(__file__).parent
MMLU = "mmlu_"
DATA = {  # `custom_dataset` of each
  "gsm8k": local.gsm8k,
  "truthfulqa_mc1": local.truthfulqa,
  "truthfulqa_mc2": local.truthfulqa,
}


def find(names, data=""):
  """Tasks and groups of tasks, as `lm_eval.simple_evaluate` takes them.

  Args:
    names: of tasks, or paths of files .yaml that describe one; what is found
      already stays as it is.
    data: folder with the files of `local.FILES`; "" reads none, and then all
      names are the harness's own, which it loads from the hub.

  Raises:
    InputError: a name is not known, a file is missing, or the harness cannot
      load a task.
  """
  names = [one.strip() if isinstance(one, str) else one for one in names]
  if not any(names):
    raise InputError("--tasks names none; give one like --tasks=truthfulqa_mc2")
  asked = [one for one in names if isinstance(one, str)]
  asked = list(dict.fromkeys(filter(None, asked)))
  own = own_names() if data else ()
  for name in asked:
    if name in own:
      local.check(data, "mmlu" if name.startswith("mmlu") else name)
  with quiet():
    manager = _manager([name for name in asked if name not in own], data)
    found = [one for one in names if not isinstance(one, str)]
    for name in asked:
      found += [_own(name, data)] if name in own else _theirs(manager, name)
  return found


def own_names():
  """Names of the tasks and groups that read local files."""
  config = read_config("mmlu")
  below = [*config["subjects"], *itertools.chain(*config["subjects"].values())]
  return (*DATA, "mmlu", *(f"{MMLU}{name}" for name in below))


def read_config(name):
  """The content of NAME.yaml, a task or a group that reads local files."""
  config = yaml.safe_load((HERE / f"{name}.yaml").read_text("utf-8"))
  if base := config.pop("include", ""):
    config = {**read_config(base.removesuffix(".yaml")), **config}
  return config


def _own(name, data):
  from lm_eval.api.task import ConfigurableTask

  if name.startswith("mmlu"):
    return _mmlu(name, data)
  config = read_config(name) | {
    "custom_dataset": DATA[name],
    "dataset_kwargs": {"data": str(data)},
  }
  if name == "truthfulqa_mc2":
    config["process_results"] = local.truth_mass
  return ConfigurableTask(config=config)


def _mmlu(name, data):
  """The group mmlu, one of its four, or the task of a subject."""
  from lm_eval.api.group import Group
  from lm_eval.api.task import ConfigurableTask
  from lm_eval.config.group import AggMetricConfig

  config = read_config("mmlu")

  def group(name, alias, members):
    means = [AggMetricConfig(**one) for one in config["aggregate_metric_list"]]
    found = Group(name, alias, means, dict(config["metadata"]))
    for one in members:
      found.add(one)
    return found

  def task(subject):
    about = config["description"].format(subject.replace("_", " "))
    return ConfigurableTask(
      config=config["each"]
      | {
        "task": f"{MMLU}{subject}",
        "task_alias": subject,
        "description": about,
        "custom_dataset": local.mmlu,
        "dataset_kwargs": {"data": str(data), "subject": subject},
      }
    )

  def part(part):
    tasks = map(task, config["subjects"][part])
    return group(f"{MMLU}{part}", part.replace("_", " "), tasks)

  below = name.removeprefix(MMLU)
  if name == "mmlu":
    return group("mmlu", None, map(part, config["subjects"]))
  return part(below) if below in config["subjects"] else task(below)


@functools.cache
def _harness():
  """The harness's TaskManager, which looks through thousands of files."""
  from lm_eval.tasks import TaskManager

  return TaskManager()


def _manager(names, data):
  """The TaskManager of these names, all of them known; None for no names."""
  others = [name for name in names if not _is_file(name)]
  for name in names:
    if name not in others:
      _check_file(name)
  if not others:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=False) if names else None
  manager = _harness()
  for name in others:
    if name in manager.task_index:
      continue
    known = [*own_names(), *manager.all_tasks] if data else manager.all_tasks
    offline = ", ".join((*DATA, "mmlu"))
    raise InputError(
      f"--tasks: unknown task {name!r};{did_you_mean(name, known)} known: "
      f"{offline}, which read --data=DIR, and {len(manager.all_tasks)} of "
      "the harness (lm-eval ls tasks)"
    )
  return manager


def _is_file(name):
  return name.endswith((".yaml", ".yml"))


def _check_file(path):
  """InputError where a file is missing, or no task's."""
  from lm_eval.tasks._yaml_loader import load_yaml

  if not pathlib.Path(path).is_file():
    raise InputError(f"--tasks={path}: no such file")
  content = {}
  with contextlib.suppress(Exception):  # said where it is loaded
    content = load_yaml(path, resolve_func=False)
  if "group" in content:
    raise InputError(
      f"--tasks={path} describes a group; name the tasks, or a file of each"
    )


def _theirs(manager, name):
  """The tasks and groups of a name that the harness has, or of a file."""
  try:
    loaded = manager.load([name])
  except Exception as error:
    hint = ""
    if name in (*DATA, "mmlu"):
      hint = "; --data=DIR reads local files"
    raise InputError(
      f"--tasks={name} cannot be loaded: {first_line(error)}{hint}"
    ) from None
  below = {*itertools.chain(*loaded["group_map"].values())}
  found = {**loaded["groups"], **loaded["tasks"]}
  return [one for name, one in found.items() if name not in below]
