# SPDX-License-Identifier: Apache-2.0
"""mrpo evaluate --tasks as it is typed: a table, files, refusals."""

import json
import subprocess
import sys

import pytest

from mrpo_jax import cli, files
from tests.material.benchmarks import write_benchmarks
from tests.material.standing import run_of

TASKS = "--tasks=truthfulqa_mc1,gsm8k"


@pytest.fixture
def here(shared, inputs, tmp_path, monkeypatch):
  """A folder with a model, M, and files of benchmarks, D."""
  (tmp_path / "M").symlink_to(inputs / "base")
  (tmp_path / "D").symlink_to(shared("benchmarks", write_benchmarks))
  monkeypatch.chdir(tmp_path)
  return tmp_path


def mrpo(*argv):
  return cli.main(["evaluate", *map(str, argv)])


def test_a_folder_and_a_run_of_it_have_the_same_results(here, inputs, capsys):
  given = TASKS, "--data=D", "--limit=2", "--num_fewshot=1", "--log_samples"
  assert mrpo("--model=M", *given, "--to=one") == 0
  shown = capsys.readouterr().out
  assert shown.count("truthfulqa_mc1: shots are fixed by the task") == 1
  assert "|truthfulqa_mc1|" in shown and "|flexible-extract|" in shown
  results = files.read_json(here / "one/results.json")
  assert results["n-samples"]["gsm8k"] == {"original": 3, "effective": 2}
  assert results["n-shot"]["gsm8k"] == 1
  assert results["config"]["model"] == "M"
  assert "exact_match,strict-match" in results["results"]["gsm8k"]
  names = sorted(path.name for path in (here / "one").iterdir())
  assert names == [
    "results.json",
    "samples_gsm8k.jsonl",
    "samples_truthfulqa_mc1.jsonl",
  ]
  rows = files.read_lines(here / "one/samples_truthfulqa_mc1.jsonl")
  assert [row["doc_id"] for row in rows] == [0, 1]
  (here / "W").mkdir()
  workdir = run_of(here / "W", inputs / "base")
  assert mrpo(f"--workdir={workdir}", *given, "--to=two") == 0
  assert "step 1 of" in json.dumps(files.read_json(here / "two/results.json"))
  other = files.read_json(here / "two/results.json")
  assert other["results"] == results["results"]


def test_prompts_may_be_conversations(here):
  flags = "--data=D", "--limit=1", "--apply_chat_template", "--log_samples"
  assert mrpo("--model=M", "--tasks=truthfulqa_mc2", *flags, "--to=o") == 0
  (row,) = files.read_lines(here / "o/samples_truthfulqa_mc2.jsonl")
  context, choice = row["arguments"][0]
  assert context.startswith("<bos>\n\nHuman: Q: What is human life")
  assert context.endswith("A:\n\nAssistant:") and choice == "Yes, it is"


@pytest.mark.parametrize(
  "flags,match",
  [
    ([], "give one of --tasks=A,B and --pairs=FILE"),
    ([TASKS, "--pairs=p.jsonl"], "give one of --tasks=A,B and --pairs=FILE"),
    ([TASKS, "--reference=M"], "--reference is of --pairs; --tasks has none"),
    (["--pairs=p.jsonl"], "--data is of --tasks; --pairs has none"),
    (["--pairs=p.jsonl", "--data=", "--limit=0"], "want a number from 1"),
    (["--pairs=p.jsonl", "--data=", "--limit=2"], "--limit is of --tasks"),
    (["--pairs=p.jsonl", "--data=", "--num_fewshot=0"], "--num_fewshot is of"),
    (["--pairs=p.jsonl", "--data=", "--log_samples"], "--log_samples is of"),
    ([TASKS, "--workdir=W"], "give one of --model=FOLDER and --workdir=DIR"),
    ([TASKS, "--model=none"], "none: no such folder"),
    (["--tasks=gsm9k"], "unknown task 'gsm9k'; did you mean gsm8k?"),
    ([TASKS, "--data=none"], "--data=none: no such folder"),
    ([TASKS, "--data=M"], "truthfulqa_mc1 needs TruthfulQA.csv"),
    ([TASKS, "--to=M"], "exists; remove it or name another folder"),
    ([TASKS, "--limit=0"], "want a number from 1"),
    ([TASKS, "--num_fewshot=-1"], "want a number from 0"),
    ([TASKS, "--num_fewshot=9"], "gsm8k: 9 few-shot examples are asked for"),
  ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
  here, capsys, flags, match
):
  flags = ["--model=M", "--data=D", "--to=o", *flags]
  assert mrpo(*flags) == 2
  (line,) = capsys.readouterr().err.strip().split("\n")[-1:]
  assert line.startswith("error: ") and match in line
  assert sorted(path.name for path in here.iterdir()) == ["D", "M"]


def test_without_the_harness_the_extra_is_named(here):
  code = (
    "import sys; sys.modules['lm_eval'] = None; from mrpo_jax import cli; "
    "sys.exit(cli.main(sys.argv[1:]))"
  )
  flags = "evaluate", "--model=M", TASKS, "--data=D", "--to=o"
  done = subprocess.run(
    [sys.executable, "-c", code, *flags], capture_output=True, text=True
  )
  assert done.returncode == 2
  assert "pip install 'mrpo-jax[eval]'" in done.stderr.strip().split("\n")[-1]


def test_tasks_of_the_hub_say_that_files_will_do(here, capsys):
  assert mrpo("--model=M", "--tasks=gsm8k", "--to=o") == 2
  line = capsys.readouterr().err.strip().split("\n")[-1]
  assert "--tasks=gsm8k cannot be loaded" in line
  assert "--data=DIR reads local files" in line
