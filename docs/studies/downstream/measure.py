# SPDX-License-Identifier: Apache-2.0
"""Figures of every document of benchmarks, and of samples, by model."""

import hashlib
import shutil
import time

import numpy as np
import yaml

from mrpo_jax import configs, files
from mrpo_jax.data import source as pairs_of
from mrpo_jax.errors import InputError
from mrpo_jax.evaluation.tasks import local
from mrpo_jax.runs.evaluation import tasks
from mrpo_jax.runs.inference.generate import generate
from mrpo_jax.runs.inference.model import Source, find_model
from mrpo_jax.runs.workdir import differences

START = "start"
# That of the runs.  The start's folder is bfloat16, which by itself changes an
# answer here and there.
DTYPE = "float32"
MODELS = {  # where each is, below the folder of launch/real.sh
  START: Source(model="models/smollm2", dtype=DTYPE),
  "dpo": Source(workdir="dpo", dtype=DTYPE),
  "mrpo": Source(workdir="mrpo", dtype=DTYPE),
}
SOLUTION = "gsm8k_solution"
TASKS = ("truthfulqa_mc1", "truthfulqa_mc2", "gsm8k", SOLUTION)
SAMPLES = "samples"
WORDS = 3  # in a row
# The solution that GSM8K gives, after the shots of the task gsm8k.
SOLUTION_TASK = """
task: gsm8k_solution
output_type: loglikelihood
training_split: train
fewshot_split: train
test_split: test
num_fewshot: 5
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: " {{answer}}"
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def measure(workdir, real, asked):
  """({figure: {model: value_N}}, seconds): the same documents of all models.

  Args:
    workdir: folder of what the models say; what is there is not asked again.
    real: folder that `launch/real.sh` left.
    asked: study.Asked.

  Raises:
    InputError: what is there was asked otherwise.
  """
  models = {
    name: place._replace(
      model=place.model and str(real / place.model),
      workdir=place.workdir and str(real / place.workdir),
    )
    for name, place in MODELS.items()
  }
  prompts = prompts_of(workdir, asked)
  _claim(workdir, models, prompts, asked)
  found, seconds = {}, 0.0
  for name, model in models.items():
    for what in (*asked.tasks, SAMPLES):
      folder = workdir / name / what
      seconds += _once(folder, model, what, prompts, asked)
      for figure, values in _figures(folder, what).items():
        found.setdefault(figure, {})[name] = values
  return {name: _aligned(name, one) for name, one in found.items()}, seconds


def prompts_of(workdir, asked):
  """The file of held-out prompts that are answered."""
  path = workdir / "prompts.jsonl"
  pairs = pairs_of.load(
    configs.HH_HARMLESS / "eval.jsonl.gz", conversations="hh"
  )
  found = {}
  for pair in pairs:
    if (
      sum(len(turn["content"]) for turn in pair.prompt) <= asked.longest_prompt
    ):
      mark = hashlib.sha256(repr(pair.prompt).encode()).digest()
      found[mark] = {"prompt": pair.prompt}
  some = [found[mark] for mark in sorted(found)][: asked.prompts]
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_lines(path, some)
  return path


def _claim(workdir, models, prompts, asked):
  """Says in asked.json what the folder is of, or refuses another."""
  files_of = {name for task in asked.tasks for name in _files(task)}
  paths = [local.path_of(asked.data, name) for name in sorted(files_of)]
  content = {
    "models": {name: find_model(one).identity for name, one in models.items()},
    "dtype": DTYPE,
    "data": {
      path.name: files.sha256_of(path) for path in paths if path is not None
    },
    "limit": asked.limit,
    "prompts": files.sha256_of(prompts),
    "max_new_tokens": asked.max_new_tokens,
  }
  path = workdir / "asked.json"
  if not path.exists():
    files.write_json(path, content)
    return
  found = [str(one) for one in differences(content, files.read_json(path))]
  if found:
    raise InputError(
      f"--workdir {workdir} was asked otherwise: {'; '.join(found)}; use "
      "another --workdir"
    )


def _files(task):
  return local.FILES["gsm8k" if task == SOLUTION else task]


def _once(folder, model, what, prompts, asked):
  """Asks a model what is not there yet; the seconds that it took."""
  done = folder.with_name(f"{what}.done.json")
  if not done.exists():
    started = time.monotonic()
    if what == SAMPLES:
      folder.mkdir(parents=True, exist_ok=True)  # goes on where it was
      generate(
        *(model, prompts, folder / "samples.jsonl"),
        given=dict(temperature=1.0, max_new_tokens=asked.max_new_tokens),
      )
    else:
      one = _solution_task(asked.data) if what == SOLUTION else what
      given = dict(data=str(asked.data), limit=asked.limit, log_samples=True)
      shutil.rmtree(folder, ignore_errors=True)  # made, but not marked
      tasks.evaluate(model, [one], folder, **given)
    files.write_json(done, {"seconds": time.monotonic() - started})
  return files.read_json(done)["seconds"]


def _solution_task(data):
  from lm_eval.api.task import ConfigurableTask

  local.check(data, "gsm8k")
  config = yaml.safe_load(SOLUTION_TASK) | {
    "custom_dataset": local.gsm8k,
    "dataset_kwargs": {"data": str(data)},
  }
  return ConfigurableTask(config=config)


# Of what was said.


def _figures(folder, what):
  """{figure: {document: value}} of what one model was asked."""
  rows = files.read_lines(folder / _file(what))
  if what == SAMPLES:
    return of_samples(rows)
  if what == SOLUTION:
    return {what: {one["doc_id"]: one["resps"][0][0][0] for one in rows}}
  if what == "gsm8k":
    found = {}
    for one in rows:
      values = found.setdefault(f"{what} {one['filter']}", {})
      values[one["doc_id"]] = one["exact_match"]
    return found
  return {what: {one["doc_id"]: one["acc"] for one in rows}}


def _file(what):
  return "samples.jsonl" if what == SAMPLES else f"samples_{what}.jsonl"


def of_samples(rows):
  """{figure: {prompt: value}} of the lines that `mrpo generate` writes."""
  return {
    "tokens": {one["index"]: one["tokens"] for one in rows},
    "cut": {one["index"]: one["finish"] == "length" for one in rows},
    "repetition": {one["index"]: repetition(one["response"]) for one in rows},
  }


def repetition(text):
  """Share of the runs of WORDS words that stand there a second time.

  >>> repetition("no no no no no")  # three runs, all the same
  0.6666666666666666
  """
  words = text.lower().split()
  runs = [tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)]
  return 1 - len({*runs}) / len(runs) if runs else 0.0


def _aligned(figure, by_model):
  """{model: value_N} of the documents that all of them have."""
  first = next(iter(by_model.values()))
  for name, values in by_model.items():
    if {*values} != {*first}:
      raise InputError(f"{figure}: {name} has other documents than {START}")
  order = sorted(first)
  return {
    name: np.array([float(values[one]) for one in order])
    for name, values in by_model.items()
  }
