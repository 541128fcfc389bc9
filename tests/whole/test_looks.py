# SPDX-License-Identifier: Apache-2.0
"""Whole runs that look at the policy on the way: they train as without."""

import json
import math

import pytest

from mrpo_jax import files
from tests.material.benchmarks import write_benchmarks
from tests.material.runs import (
  assert_equal_runs,
  lines_of,
  mrpo,
  train_debug,
  untimed,
)

PROMPTS = [
  {"prompt": [{"role": "user", "content": "Which bird flies by night?"}]},
  {"prompt": "\n\nHuman: Name a cat.\n\nAssistant:"},
]
LENGTH = 12
TASKS = ("truthfulqa_mc2", "mmlu_anatomy")


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
  folder = tmp_path_factory.mktemp("benchmarks")
  write_benchmarks(folder)
  return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
  path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
  path.write_text("".join(json.dumps(one) + "\n" for one in PROMPTS))
  return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory, prompts, benchmarks):
  """(a run that looks every second step, the same without looks)."""
  folder = tmp_path_factory.mktemp("runs")
  looks = looking(prompts, benchmarks)
  assert train_debug(folder / "looks", *looks) == 0
  assert train_debug(folder / "plain") == 0
  return folder / "looks", folder / "plain"


def looking(prompts, benchmarks):
  return (
    f"--config.evaluation.tasks={','.join(TASKS)}",
    f"--config.evaluation.data={benchmarks}",
    "--config.evaluation.every=2",
    "--config.evaluation.num_fewshot=2",
    "--config.evaluation.apply_chat_template=True",
    f"--config.samples.prompts={prompts}",
    "--config.samples.every=2",
    f"--config.samples.max_new_tokens={LENGTH}",
  )


def test_samples_stand_in_the_lines_of_their_steps(runs):
  lines = lines_of(runs[0])
  last = lines[-1]["step"]
  looked = [one["step"] for one in lines if "samples" in one]
  assert looked == sorted({*range(0, last + 1, 2), last})
  assert {*lines[0]} == {"step", "samples", *FIGURES}
  for line in lines:
    for number, one in enumerate(line.get("samples", ())):
      assert one["index"] == number and 0 < one["tokens"] <= LENGTH
  assert [one["prompt"] for one in lines[0]["samples"]] == [
    "Which bird flies by night?",
    PROMPTS[1]["prompt"],
  ]


FIGURES = (
  "eval/truthfulqa_mc2/acc,none",
  "eval/mmlu_anatomy/acc,none",
  "eval/truthfulqa_mc2/acc_stderr,none",
  "eval/mmlu_anatomy/acc_stderr,none",
)


def test_benchmarks_stand_in_the_same_lines(runs, benchmarks, tmp_path):
  lines = [one for one in lines_of(runs[0]) if "samples" in one]
  for line in lines:
    assert all(math.isfinite(line[name]) for name in FIGURES)
  assert lines[0][FIGURES[0]] != lines[-1][FIGURES[0]]  # it has learned
  code = mrpo(
    "evaluate",
    *(f"--workdir={runs[0]}", f"--tasks={','.join(TASKS)}"),
    *(f"--data={benchmarks}", f"--to={tmp_path}/results"),
    *("--num_fewshot=2", "--apply_chat_template"),
  )
  assert code == 0
  results = files.read_json(tmp_path / "results" / "results.json")["results"]
  for name in FIGURES:
    _, task, metric = name.split("/")
    assert lines[-1][name] == pytest.approx(results[task][metric], abs=1e-6)


def test_the_steps_are_those_of_a_run_without(runs):
  steps = [
    {
      name: value
      for name, value in line.items()
      if name not in ("samples", *FIGURES)
    }
    for line in untimed(runs[0])[1:]
  ]
  assert steps == untimed(runs[1])


def test_the_last_samples_are_what_generate_says_of_that_step(
  runs, prompts, tmp_path
):
  code = mrpo(
    "generate",
    f"--workdir={runs[0]}",
    f"--prompts={prompts}",
    f"--to={tmp_path}/said.jsonl",
    "--temperature=0",
    f"--max_new_tokens={LENGTH}",
  )
  assert code == 0
  said = files.read_lines(tmp_path / "said.jsonl")
  assert [one["response"] for one in said] == [
    one["response"] for one in lines_of(runs[0])[-1]["samples"]
  ]


def test_a_run_that_goes_on_has_the_same_looks(
  runs, prompts, benchmarks, tmp_path
):
  last = lines_of(runs[0])[-1]["step"]
  part = (*looking(prompts, benchmarks), "--config.checkpoint_every=1")
  assert train_debug(tmp_path, *part, f"--config.steps={last}") == 0
  # As if it had been killed after the second of its newest checkpoints.
  newest = tmp_path / "checkpoints" / str(last)
  newest.rename(tmp_path / "gone")
  assert train_debug(tmp_path, *part) == 0
  assert_equal_runs(tmp_path, runs[0], last)


@pytest.mark.parametrize(
  "key, value, problem",
  [
    ("tasks", "truthfulqa_mc3", "truthfulqa_mc2"),
    ("tasks", "truthfulqa_mc2, truthfulqa_mc3", "unknown task 'truthfulqa_mc3"),
    ("data", "/nowhere", "config.evaluation: --data=/nowhere: no such folder"),
    ("limit", "-1", "config.evaluation.limit"),
    ("limit", "9" * 20, "config.evaluation.limit"),
    ("num_fewshot", "-2", "config.evaluation.num_fewshot"),
    ("num_fewshot", "9", "config.evaluation: mmlu_anatomy: 9 few-shot"),
  ],
)
def test_benchmarks_that_cannot_be_had_are_refused_before_anything(
  tmp_path, benchmarks, capfd, key, value, problem
):
  given = {"tasks": ",".join(TASKS), "data": benchmarks, key: value}
  flags = [f"--config.evaluation.{name}={one}" for name, one in given.items()]
  assert train_debug(tmp_path / "run", *flags) == 2
  error = capfd.readouterr().err.strip().split("\n")[-1]
  assert error.startswith("error: ") and problem in error
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  "content, problem",
  [
    (None, "no such file"),
    ('{"prompt": ""}\n', "line 1"),
    ('{"question": 1}\n', "line 1"),
    ("", "has no rows"),
  ],
)
def test_prompts_that_cannot_be_given_are_refused_before_anything(
  tmp_path, capfd, content, problem
):
  path = tmp_path / "prompts.jsonl"
  if content is not None:
    path.write_text(content)
  flag = f"--config.samples.prompts={path}"
  assert train_debug(tmp_path / "run", flag) == 2
  error = capfd.readouterr().err.strip().split("\n")[-1]
  assert error.startswith(f"error: config.samples: {path}")
  assert problem in error
  assert not (tmp_path / "run").exists()
