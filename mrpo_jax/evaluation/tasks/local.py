# SPDX-License-Identifier: Apache-2.0
"""Benchmarks from local files: their splits as the harness wants them."""

import csv
import functools
import gzip
import io
import pathlib

import numpy as np

from mrpo_jax.errors import InputError
from mrpo_jax.files import opened, parsed

FILES = {  # of each task; each may also be there as .gz
  "gsm8k": ("gsm8k_train.jsonl", "gsm8k_test.jsonl"),
  "truthfulqa_mc1": ("TruthfulQA.csv",),
  "truthfulqa_mc2": ("TruthfulQA.csv",),
  "mmlu": ("mmlu_dev.jsonl", "mmlu_test.jsonl"),
}
MMLU = {"subject": str, "question": str, "choices": list, "answer": int}
QUESTION = {"question": str, "answer": str}
COLUMNS = ("Question", "Best Answer", "Correct Answers", "Incorrect Answers")


def path_of(folder, name):
  """The file of that name, packed or not; None where it is missing."""
  for ending in ("", ".gz"):
    path = pathlib.Path(folder) / f"{name}{ending}"
    if path.is_file():
      return path
  return None


def check(folder, task):
  """Raises InputError where files of a task are missing, and names them."""
  if not pathlib.Path(folder).is_dir():
    raise InputError(f"--data={folder}: no such folder")
  missing = [name for name in FILES[task] if path_of(folder, name) is None]
  if missing:
    raise InputError(
      f"--data={folder}: {task} needs {' and '.join(missing)} (or as .gz) there"
    )


# What the harness calls: `custom_dataset` of a task.


def gsm8k(data, **_):
  train, test = FILES["gsm8k"]
  return {
    "train": _table(_rows(data, train, QUESTION)),
    "test": _table(_rows(data, test, QUESTION)),
  }


def mmlu(data, subject, **_):
  dev, test = FILES["mmlu"]
  splits = {"dev": _by_subject(data, dev), "test": _by_subject(data, test)}
  for split, rows in splits.items():
    if subject not in rows:
      raise InputError(f"--data={data}: mmlu has no {split} rows of {subject}")
  return {split: _table(rows[subject]) for split, rows in splits.items()}


def truthfulqa(data, **_):
  """Choices of TruthfulQA, made from the columns of its table.

  The best answer first, as the harness expects it, then the wrong ones; of
  mc2 all that are right, then all that are wrong.
  """
  (name,) = FILES["truthfulqa_mc1"]
  return {"validation": _table(_questions(path_of(data, name)))}


def truth_mass(doc, results):
  """mc2's figure: the share of probability that is on right answers."""
  logp = np.array([logp for logp, _ in results])
  mass = np.exp(logp - logp.max())  # of which no sum is 0
  is_right = np.array(doc["mc2_targets"]["labels"]) == 1
  return {"acc": float(mass[is_right].sum() / mass.sum())}


# Reading.


def _table(rows):
  import datasets

  return datasets.Dataset.from_list(rows)


def _text(path):
  with opened(path) as file:
    content = file.read()
  try:
    if path.suffix == ".gz":
      content = gzip.decompress(content)
    return content.decode("utf-8-sig")
  except (OSError, EOFError, gzip.zlib.error) as error:
    raise InputError(f"{path} cannot be unpacked: {error}") from None
  except UnicodeDecodeError:
    raise InputError(f"{path} is not UTF-8; save it as UTF-8") from None


def _rows(folder, name, kinds):
  """Rows of a JSON lines file that have these keys."""
  path, found = path_of(folder, name), []
  for number, line in enumerate(_text(path).split("\n"), 1):
    if not line.strip():
      continue
    where = f"{path} line {number}"
    row = parsed(line.encode(), where)
    for key, kind in kinds.items():
      if type(row.get(key)) is not kind:
        raise InputError(f"{where}: {key!r} is no {kind.__name__}")
      for text in row[key] if kind is list else [row[key]]:
        if kind is not int:
          _check_text(text, f"{where}: {key!r}")
    found.append({key: row[key] for key in kinds})
  if not found:
    raise InputError(f"{path} has no rows")
  return found


def _check_text(text, where):
  if not isinstance(text, str):
    raise InputError(f"{where} holds {text!r:.40}, which is no text")
  try:
    text.encode()
  except UnicodeError:
    raise InputError(f"{where} holds half a character, no Unicode") from None


def _by_subject(folder, name):
  stat = path_of(folder, name).stat()
  return _sorted_out(folder, name, (stat.st_mtime_ns, stat.st_size))


@functools.lru_cache(maxsize=4)
def _sorted_out(folder, name, _):
  """{subject: its rows}; a file is read once for all subjects."""
  found = {}
  for row in _rows(folder, name, MMLU):
    if len(row["choices"]) != 4 or not 0 <= row["answer"] < 4:
      raise InputError(
        f"{path_of(folder, name)}: {row['question'][:40]!r} has no four "
        "choices and an answer from 0 to 3"
      )
    found.setdefault(row["subject"], []).append(row)
  return found


def _questions(path):
  # A text of its own, since quoted cells hold line ends.
  table = csv.DictReader(io.StringIO(_text(path), newline=""))
  if missing := [one for one in COLUMNS if one not in (table.fieldnames or ())]:
    raise InputError(f"{path} has no column {' and '.join(missing)}")
  found = []
  for row in _lines(table, path):
    cells = [row[name] for name in COLUMNS]
    if None in cells or not all(cell.strip(" ;\t\r\n") for cell in cells):
      raise InputError(
        f"{path} line {table.line_num}: a cell of {', '.join(COLUMNS)} is empty"
      )
    question, best, *lists = cells
    right, wrong = map(_parts, lists)
    one = [best.strip(), *wrong]
    found.append(
      {
        "question": question,
        "mc1_targets": {"choices": one, "labels": _labels(1, len(wrong))},
        "mc2_targets": {
          "choices": right + wrong,
          "labels": _labels(len(right), len(wrong)),
        },
      }
    )
  if not found:
    raise InputError(f"{path} has no rows")
  return found


def _lines(table, path):
  try:
    yield from table
  except csv.Error as error:  # a cell that is too long, say
    raise InputError(
      f"{path} line {table.line_num + 1} is no CSV ({error})"
    ) from None


def _parts(cell):
  return [part.strip() for part in cell.split(";") if part.strip()]


def _labels(right, wrong):
  return [1] * right + [0] * wrong
