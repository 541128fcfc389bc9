# SPDX-License-Identifier: Apache-2.0
"""Rows of benchmarks in files, in the forms of the real ones."""

import gzip
import json

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


def write_benchmarks(folder):
  """The files that the offline tasks read, some of them .gz."""
  write_lines(folder / "gsm8k_test.jsonl", GSM8K[:3])
  write_lines(folder / "mmlu_dev.jsonl", mmlu_rows(2))
  (folder / "TruthfulQA.csv").write_text(TRUTHFUL, encoding="utf-8")
  for name, rows in (
    ("gsm8k_train.jsonl.gz", GSM8K[3:]),
    ("mmlu_test.jsonl.gz", mmlu_rows(4)),
  ):
    with gzip.open(folder / name, "wt") as file:
      file.writelines(json.dumps(row) + "\n" for row in rows)
