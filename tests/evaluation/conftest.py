# SPDX-License-Identifier: Apache-2.0
"""A model for the harness, and rows of benchmarks in files."""

import gzip
import json

import pytest

from mrpo_jax import hub
from mrpo_jax.data.tokenizer import load_tokenizer
from mrpo_jax.evaluation import HarnessLM
from mrpo_jax.files import write_lines

GSM8K = [
  {"question": f"What is {n} and {n}?", "answer": f"It is.\n#### {2 * n}"}
  for n in range(1, 9)
]
TRUTHFUL = """\
Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source
A,B,Is it cold?,"Yes, it is","Yes, it is; Very; ","No; Never;It is
hot",here
A,B,Who?,Nobody,Nobody,Everybody; Me,there
"""
SUBJECTS = (
  "abstract_algebra",
  "anatomy",
  "virology",
  "sociology",
  "philosophy",
)


def mmlu_rows(count):
  return [
    {
      "subject": subject,
      "question": f" Which of {subject} is number {n}? ",
      "choices": ["one", "two", "three", f"{n}"],
      "answer": n % 4,
    }
    for subject in SUBJECTS
    for n in range(count + len(subject) % 3)
  ]


@pytest.fixture(scope="session")
def benchmarks(shared):
  """A folder with the files that the offline tasks read, some of them .gz."""

  def write(folder):
    write_lines(folder / "gsm8k_test.jsonl", GSM8K[:3])
    write_lines(folder / "mmlu_dev.jsonl", mmlu_rows(2))
    (folder / "TruthfulQA.csv").write_text(TRUTHFUL, encoding="utf-8")
    for name, rows in (
      ("gsm8k_train.jsonl.gz", GSM8K[3:]),
      ("mmlu_test.jsonl.gz", mmlu_rows(4)),
    ):
      with gzip.open(folder / name, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)

  return shared("benchmarks", write)


@pytest.fixture(scope="session")
def lm(inputs):
  config, params = hub.load(inputs / "base", dtype="float32")
  return HarnessLM(config, params, load_tokenizer(inputs / "base"))
