# SPDX-License-Identifier: Apache-2.0
"""Offline tasks are the harness's own, but for where their rows are."""

import importlib.util
import json
import logging
import multiprocessing
import pathlib

import lm_eval
import numpy as np
import pytest
import yaml
from lm_eval import evaluator, utils
from lm_eval.api import metrics
from lm_eval.api import task as of_tasks
from lm_eval.utils import apply_template

from mrpo_jax.errors import InputError
from mrpo_jax.evaluation import (
  check_shots,
  evaluate_tasks,
  figures,
  find,
  standard_errors,
  table,
)
from mrpo_jax.evaluation.quiet import quiet
from mrpo_jax.evaluation.tasks import find as found
from mrpo_jax.evaluation.tasks import local
from mrpo_jax.files import write_lines

THEIRS = pathlib.Path(lm_eval.__file__).parent / "tasks"
MMLU = THEIRS / "mmlu/default"


class Loader(yaml.SafeLoader):
  """Functions that a file names are left as their names."""


Loader.add_constructor("!function", lambda _, node: node.value)


def theirs(path):
  config = yaml.load((THEIRS / path).read_text(), Loader)
  if base := config.pop("include", None):
    config = {**theirs(pathlib.Path(path).parent / base), **config}
  return config


ELSEWHERE = {  # where rows come from, and what changes no figure
  *("dataset_path", "dataset_name", "tag", "should_decontaminate"),
  *("doc_to_decontamination_query", "process_results"),
}


@pytest.mark.parametrize(
  "name,path",
  [
    ("gsm8k", "gsm8k/gsm8k.yaml"),
    ("truthfulqa_mc1", "truthfulqa/truthfulqa_mc1.yaml"),
    ("truthfulqa_mc2", "truthfulqa/truthfulqa_mc2.yaml"),
  ],
)
def test_a_task_is_the_harness_s_own(name, path):
  mine, own = found.read_config(name), theirs(path)
  doc = {"question": "Is it {cold}?\nOr 'warm'", "answer": "x #### 3"}
  for key in ("doc_to_text", "doc_to_target"):
    texts = (str(mine.pop(key)), str(own.pop(key)))
    assert apply_template(texts[0], doc) == apply_template(texts[1], doc)
  own = {key: one for key, one in own.items() if key not in ELSEWHERE}
  assert mine == {key: one for key, one in own.items() if one is not None}


def test_mmlu_is_the_harness_s_own():
  config = found.read_config("mmlu")
  each = theirs("mmlu/default/_default_template_yaml")
  del each["dataset_path"]
  assert config["each"] == each
  group = theirs("mmlu/default/_mmlu.yaml")
  assert config["metadata"] == group["metadata"]
  assert config["aggregate_metric_list"] == group["aggregate_metric_list"]
  assert group["task"] == [f"mmlu_{part}" for part in config["subjects"]]
  parts = {}
  for path in sorted(MMLU.glob("mmlu_*.yaml")):
    own = yaml.load(path.read_text(), Loader)
    subject = own["dataset_name"]
    parts.setdefault(own["tag"], []).append(subject)
    assert own["task"] == f"mmlu_{subject}" and own["task_alias"] == subject
    about = config["description"].format(subject.replace("_", " "))
    assert own["description"] == about
  assert parts == {
    f"mmlu_{part}_tasks": subjects
    for part, subjects in config["subjects"].items()
  }
  assert sum(map(len, parts.values())) == 57


def test_the_mass_on_right_answers_is_the_harness_s_own(rng):
  spec = importlib.util.spec_from_file_location(
    "upstream", THEIRS / "truthfulqa/utils.py"
  )
  upstream = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(upstream)
  for _ in range(10):
    labels = [1, *rng.integers(0, 2, 5).tolist()]
    doc = {"mc2_targets": {"labels": labels}}
    results = [(float(logp), False) for logp in rng.normal(size=6) * 5]
    want = upstream.process_results_mc2(doc, results)["acc"]
    assert local.truth_mass(doc, results)["acc"] == pytest.approx(want)
  # By hand, and where exp gives 0: e^-1000 against twice e^-1000.
  results = [(-1000.0, False), (-1000.0, False), (-1000.0, False)]
  doc = {"mc2_targets": {"labels": [1, 0, 0]}}
  assert local.truth_mass(doc, results)["acc"] == pytest.approx(1 / 3)


def test_choices_are_made_of_the_columns(benchmarks):
  rows = local.truthfulqa(str(benchmarks))["validation"]
  assert rows[0]["question"] == "Is it cold?"
  assert rows[0]["mc1_targets"] == {
    "choices": ["Yes, it is", "No", "Never", "It is\nhot"],
    "labels": [1, 0, 0, 0],
  }
  assert rows[0]["mc2_targets"] == {
    "choices": ["Yes, it is", "Very", "No", "Never", "It is\nhot"],
    "labels": [1, 1, 0, 0, 0],
  }


def nats_of(lm, context, continuation):
  ids = lm.tok_encode(context)
  whole = lm.tok_encode(context + continuation)
  ((logp, _),) = lm._loglikelihood_tokens([(None, ids, whole[len(ids) :])])
  return logp


def test_results_are_those_of_the_requests_by_hand(lm, benchmarks):
  tasks = ["truthfulqa_mc1", "truthfulqa_mc2", "gsm8k"]
  got = evaluate_tasks(lm, tasks, data=str(benchmarks), log_samples=True)
  json.dumps(got, allow_nan=False)
  rows = local.truthfulqa(str(benchmarks))["validation"]
  text = found.read_config("truthfulqa_mc1")["doc_to_text"]
  right, mass = [], []
  for row in rows:
    context = apply_template(text, row)
    assert context.endswith(f"Barcelona, Spain.\n\nQ: {row['question']}\nA:")
    one, two = (
      [nats_of(lm, context, f" {choice}") for choice in row[key]["choices"]]
      for key in ("mc1_targets", "mc2_targets")
    )
    right.append(int(np.argmax(one)) == 0)
    share = np.exp(two) / np.exp(two).sum()
    mass.append(share[np.array(row["mc2_targets"]["labels"]) == 1].sum())
  results = got["results"]
  assert results["truthfulqa_mc1"]["acc,none"] == np.mean(right)
  assert results["truthfulqa_mc2"]["acc,none"] == pytest.approx(np.mean(mass))
  assert got["n-shot"] == {**dict.fromkeys(tasks, 0), "gsm8k": 5}
  for kind in ("strict-match", "flexible-extract"):
    assert f"exact_match,{kind}" in results["gsm8k"]
  (arguments,) = got["samples"]["gsm8k"][0]["arguments"]
  assert arguments[0].count("Question:") == 6
  assert arguments[0].endswith("Question: What is 1 and 1?\nAnswer:")
  said = figures(got)
  assert said["truthfulqa_mc1/acc,none"] == np.mean(right)
  assert not any("stderr" in name for name in said)
  errors = standard_errors(got)
  right = np.array(right, float)
  want = right.std(ddof=1) / np.sqrt(len(right))
  assert errors["truthfulqa_mc1/acc_stderr,none"] == pytest.approx(want)
  assert {name.replace("_stderr", "") for name in errors} == {*said}
  assert "|truthfulqa_mc2|" in table(got)


def test_shots_that_a_task_fixes_stay_and_that_is_said(lm, benchmarks, caplog):
  with caplog.at_level(logging.INFO, "mrpo_jax"):
    got = evaluate_tasks(
      *(lm, ["truthfulqa_mc1", "gsm8k"]),
      data=str(benchmarks),
      limit=1,
      num_fewshot=2,
    )
  assert got["n-shot"] == {"truthfulqa_mc1": 0, "gsm8k": 2}
  assert table(got).startswith(
    "model HarnessLM, at most 1 documents of each task, 2 shots where a task "
    "does not fix them, no chat template\n\n|"
  )
  assert "truthfulqa_mc1: shots are fixed by the task; num_fewshot=2" in (
    caplog.text
  )


@pytest.mark.parametrize(
  "tasks,shots,message",
  [
    (["gsm8k"], 6, "gsm8k: 6 few-shot examples .* there are 5 to take"),
    (["mmlu_anatomy"], 4, "mmlu_anatomy: 4 .* give a num_fewshot of at most 3"),
    (["mmlu"], 3, "mmlu_sociology: 3 .* there are 2 "),
    (["truthfulqa_mc1", "gsm8k"], 10**12, "gsm8k: 1000000000000 "),
  ],
)
def test_more_shots_than_rows_are_refused(
  lm, benchmarks, five_subjects, tasks, shots, message
):
  with pytest.raises(InputError, match=message):
    evaluate_tasks(lm, tasks, data=str(benchmarks), num_fewshot=shots)
  found_tasks = find(tasks, str(benchmarks))
  with pytest.raises(InputError, match=message):
    check_shots(found_tasks, shots)


def test_shots_that_a_task_asks_for_itself_have_to_be_there(lm, tmp_path):
  for name in local.FILES["gsm8k"]:
    rows = [{"question": f"q{n}", "answer": "#### 1"} for n in range(4)]
    write_lines(tmp_path / name, rows)
  with pytest.raises(InputError, match="gsm8k: 5 few-shot .* there are 4 "):
    evaluate_tasks(lm, ["gsm8k"], data=str(tmp_path))
  assert evaluate_tasks(lm, ["gsm8k"], data=str(tmp_path), num_fewshot=4)


def test_a_document_is_no_example_of_itself(lm, tmp_path):
  # Both rows are documents and examples: of each, the other one is left.
  shots = "fewshot_split: test\n"
  own = own_task(tmp_path, more=shots)
  assert evaluate_tasks(lm, [own], num_fewshot=1)
  with pytest.raises(InputError, match="own: 2 .* there are 1 to take"):
    evaluate_tasks(lm, [own], num_fewshot=2)


def test_a_group_without_rows_of_a_subject_is_refused(lm, benchmarks):
  names = ["mmlu_stem", "mmlu_virology"]
  with pytest.raises(InputError, match="no dev rows of astronomy"):
    evaluate_tasks(lm, names, data=str(benchmarks))


@pytest.fixture
def five_subjects(monkeypatch):
  """mmlu with the five subjects that the files have."""
  read = found.read_config

  def fewer(name):
    config = read(name)
    if name == "mmlu":
      config["subjects"] = {
        "stem": ["abstract_algebra", "anatomy"],
        "other": ["virology"],
        "social_sciences": ["sociology"],
        "humanities": ["philosophy"],
      }
    return config

  monkeypatch.setattr(found, "read_config", fewer)


def test_mmlu_has_figures_of_subjects_and_of_all(lm, benchmarks, five_subjects):
  tasks = find(["mmlu"], str(benchmarks))  # before there is a model
  got = evaluate_tasks(lm, tasks, num_fewshot=2)
  results = got["results"]
  names = ["abstract_algebra", "anatomy", "virology", "sociology", "philosophy"]
  # 4 rows, and as many more as the name's length leaves after thirds.
  sizes = [4 + len(name) % 3 for name in names]
  scores = [results[f"mmlu_{name}"]["acc,none"] for name in names]
  assert results["mmlu"]["acc,none"] == pytest.approx(
    np.average(scores, weights=sizes)
  )
  assert results["mmlu_stem"]["acc,none"] == pytest.approx(
    np.average(scores[:2], weights=sizes[:2])
  )
  assert got["groups"]["mmlu"]["alias"] == "mmlu"
  assert got["n-shot"]["mmlu_virology"] == 2
  assert "social sciences" in table(got)


@pytest.mark.parametrize(
  "tasks,message",
  [
    ([], "--tasks names none"),
    (
      ["gsm8k", "gsm8kk"],
      "unknown task 'gsm8kk'; did you mean gsm8k.* known: ",
    ),
    (["mmlu_virologie"], "did you mean mmlu_virology"),
    (["none.yaml"], "--tasks=none.yaml: no such file"),
  ],
)
def test_unknown_tasks_are_refused_and_the_known_named(
  lm, benchmarks, tasks, message
):
  with pytest.raises(InputError, match=message):
    evaluate_tasks(lm, tasks, data=str(benchmarks))


def test_missing_files_are_named(lm, tmp_path):
  with pytest.raises(InputError, match=f"--data={tmp_path}/no: no such folder"):
    evaluate_tasks(lm, ["gsm8k"], data=str(tmp_path / "no"))
  (tmp_path / "gsm8k_train.jsonl").touch()
  with pytest.raises(
    InputError, match="gsm8k needs gsm8k_test.jsonl .or as .gz"
  ):
    evaluate_tasks(lm, ["gsm8k"], data=str(tmp_path))


@pytest.mark.parametrize(
  "content,message",
  [
    (b"", "has no rows"),
    (b'{"question": "x"}\n', "line 1: 'answer' is no str"),
    (b'\n{"question"\n', "line 2 is not JSON"),
    (b"[" * 200_000, "line 1 is not JSON"),
    (b'{"question": "a", "question": "b"}', "line 1: .*question"),
    (b'{"question": "\\ud800", "answer": "b"}', "'question' holds half a ch"),
    (b"\xff\n", "is not UTF-8"),
  ],
)
def test_files_that_are_not_as_they_should_be_are_refused(
  tmp_path, content, message
):
  for name in local.FILES["gsm8k"]:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(InputError, match=message):
    local.gsm8k(str(tmp_path))


def test_a_table_without_a_column_is_refused(tmp_path):
  (tmp_path / "TruthfulQA.csv").write_text("Question,Best Answer\nx,y\n")
  with pytest.raises(InputError, match="no column Correct Answers and Incorr"):
    local.truthfulqa(str(tmp_path))
  columns = ",".join(local.COLUMNS)
  (tmp_path / "TruthfulQA.csv").write_text(f"{columns}\nx,y,z,\n")
  with pytest.raises(InputError, match="line 2: a cell of Question"):
    local.truthfulqa(str(tmp_path))
  for cell, message in (
    (" ; ", "line 2: a cell"),
    ("z" * 200_000, "line 2 is"),
  ):
    (tmp_path / "TruthfulQA.csv").write_text(f"{columns}\nx,y,{cell},z\n")
    with pytest.raises(InputError, match=message):
      local.truthfulqa(str(tmp_path))


@pytest.mark.parametrize("choices", [[1, 2, 3, 4], ["a", "b", None, {}]])
def test_choices_that_are_no_texts_are_refused(tmp_path, choices):
  row = {"subject": "s", "question": "q", "choices": choices, "answer": 0}
  for name in local.FILES["mmlu"]:
    write_lines(tmp_path / name, [row])
  with pytest.raises(InputError, match="line 1: 'choices' holds .*is no text"):
    local.mmlu(str(tmp_path), "s")


def own_task(folder, metric="acc", aggregation="mean", more=""):
  """A file of a task of two rows."""
  rows = folder / "rows.jsonl"
  rows.write_text('{"a": "It is", "b": " warm"}\n{"a": "So", "b": " what"}\n')
  config = folder / "own.yaml"
  config.write_text(
    f"task: own\ndataset_path: json\noutput_type: loglikelihood\n"
    f"dataset_kwargs: {{data_files: {{test: {rows}}}}}\ntest_split: test\n"
    f"doc_to_text: a\ndoc_to_target: b\n{more}"
    f"metric_list: [{{metric: {metric}, aggregation: {aggregation}, "
    "higher_is_better: true}]\n"
  )
  return str(config)


def test_a_file_describes_a_task(lm, tmp_path, monkeypatch):
  # Alone it needs no index of thousands of files.
  monkeypatch.setattr(found, "_harness", None)
  got = evaluate_tasks(lm, [own_task(tmp_path)])
  assert got["results"]["own"]["acc,none"] == 0.0
  other = tmp_path / "other.yaml"
  other.write_text("include: own.yaml\ntask: other\n")
  assert find([str(other)])[0].task_name == "other"


def test_a_file_of_a_group_is_refused(tmp_path):
  group = tmp_path / "both.yaml"
  group.write_text("group: both\ntask: [own]\n")
  with pytest.raises(InputError, match="both.yaml describes a group; name"):
    find([str(group)])


def test_a_figure_that_is_not_finite_is_said_and_has_a_table(
  lm, tmp_path, caplog
):
  (tmp_path / "odd.py").write_text(
    "def scores(doc, results): return {'acc': float('nan')}\n"
  )
  odd = own_task(tmp_path, more="process_results: !function odd.scores\n")
  with caplog.at_level(logging.WARNING, "mrpo_jax"):
    got = evaluate_tasks(lm, [odd])
  assert got["results"]["own"]["acc,none"] is None
  assert got["results"]["own"]["acc_stderr,none"] == "N/A"
  assert figures(got) == {}
  assert "warning: own/acc,none is nan" in caplog.text
  assert "N/A" in table(got)


def test_a_bootstrap_is_the_harness_s_own_and_forks_nothing(
  lm, tmp_path, monkeypatch
):
  monkeypatch.setattr(multiprocessing, "Pool", None)
  own = own_task(tmp_path, "perplexity", "perplexity")
  got = evaluate_tasks(lm, [own], bootstrap_iters=50)["results"]["own"]
  monkeypatch.setenv("DISABLE_MULTIPROC", "1")
  texts = (("It is", " warm"), ("So", " what"))
  logps = [nats_of(lm, *one) for one in texts]
  want = metrics.bootstrap_stderr(metrics.perplexity, logps, 50)
  assert got["perplexity_stderr,none"] == pytest.approx(want)
  none = evaluate_tasks(lm, [own], bootstrap_iters=0)["results"]["own"]
  assert none["perplexity_stderr,none"] == "N/A"
  assert none["perplexity,none"] == got["perplexity,none"]


def test_the_random_numbers_of_others_stay_theirs(lm, benchmarks):
  np.random.seed(7)
  want = np.random.get_state()[1].copy()
  evaluate_tasks(lm, ["truthfulqa_mc1"], data=str(benchmarks), limit=1)
  np.testing.assert_array_equal(np.random.get_state()[1], want)


def test_the_harness_is_afterwards_as_it_was(lm, benchmarks):
  def theirs():
    git = evaluator.get_git_commit_hash
    return of_tasks.tqdm, git, metrics.bootstrap_stderr

  before = theirs()
  evaluate_tasks(lm, ["truthfulqa_mc1"], data=str(benchmarks), limit=1)
  assert theirs() == before
  assert "from_string" not in vars(utils.env)
  assert not logging.getLogger("lm_eval").handlers


def test_a_warning_of_the_harness_is_said_once(caplog):
  theirs = logging.getLogger("lm_eval.api.task")
  with caplog.at_level(logging.INFO, "mrpo_jax"), quiet(), quiet():
    for text in ("it is odd", "it is odd", "x: Custom kwargs can be passed to"):
      theirs.warning(text)
  assert caplog.messages == ["warning: of the harness: it is odd"]
