# SPDX-License-Identifier: Apache-2.0
"""Responses of several models to the same prompts, from files of samples."""

import hashlib
import json
import os
import pathlib
import re
from typing import NamedTuple

from mrpo_jax import files, snapshots
from mrpo_jax.data.reading.row_files import rows_of
from mrpo_jax.errors import InputError

NAME = re.compile(r"\w[\w.-]*")
SUFFIXES = (".jsonl.gz", ".jsonl", ".json.gz", ".json")


class Responses(NamedTuple):
  """What one model says: a text for each (prompt, sample)."""

  name: str
  texts: dict

  @property
  def fingerprint(self):
    texts = json.dumps(sorted(self.texts.items()))
    return hashlib.sha256(texts.encode()).hexdigest()


def read_responses(name, path, prompts):
  """The Responses of a file, as `mrpo generate` or another engine wrote it.

  A row has `response`, and may have `index` of its prompt and `sample`, both
  from 0; else the rows are those of the prompts, in order.  A row's `prompt`,
  where it has one, has to be that one.

  Args:
    name: of its model.
    path: of the file.
    prompts: list of prompts.Prompt.

  Raises:
    InputError: names the row that is wrong, or what is missing.
  """
  texts = {}
  for number, (where, row) in enumerate(rows_of(path)):
    if not isinstance(row, dict) or not isinstance(row.get("response"), str):
      raise InputError(f"{where}: has no response, a text")
    index, sample = row.get("index", number), row.get("sample", 0)
    if type(index) is not int or not 0 <= index < len(prompts):
      raise InputError(
        f"{where}: is of prompt {index!r}, and there are {len(prompts)} prompts"
      )
    if type(sample) is not int or sample < 0:
      raise InputError(f"{where}: sample is {sample!r}; want a number from 0")
    prompt = prompts[index]
    if row.get("prompt", prompt.row["prompt"]) != prompt.row["prompt"]:
      raise InputError(f"{where}: its prompt is not that of {prompt.where}")
    if (index, sample) in texts:
      raise InputError(
        f"{where}: a second response to prompt {index}, sample {sample}"
      )
    texts[index, sample] = row["response"]
  samples = 1 + max((sample for _, sample in texts), default=0)
  for index, prompt in enumerate(prompts):
    for sample in range(samples):
      if (index, sample) not in texts:
        raise InputError(
          f"{path}: has no response to prompt {index}, sample {sample} "
          f"({prompt.where})"
        )
  return Responses(name, texts)


def refuse_other_samples(responses):
  """InputError where models have other numbers of samples of a prompt."""
  counts = {
    one.name: 1 + max(sample for _, sample in one.texts) for one in responses
  }
  if len(set(counts.values())) > 1:
    said = ", ".join(f"{name} {count}" for name, count in counts.items())
    raise InputError(f"samples of a prompt have to be equally many: {said}")


class Contestant(NamedTuple):
  """A path that is compared, and what it is called."""

  name: str
  path: str


def named(texts, taken=()):
  """A Contestant of each text NAME=PATH or PATH; see `names_of` for the latter.

  A path with = in it that is there is a path.

  Args:
    texts: of paths of folders, and of files of responses.
    taken: names that none may have.

  Raises:
    InputError: a path is given twice, or a name is taken or is none.
  """
  split = [_split(text) for text in texts]
  given = [name for name, _ in split if name]
  for name in given:
    if name in taken or given.count(name) > 1:
      raise InputError(f"the name {name!r} is taken; give another before =")
  found = names_of([path for _, path in split], [*taken, *given])
  return [
    Contestant(name or other, path)
    for (name, path), other in zip(split, found, strict=True)
  ]


def _split(text):
  """(name or "", path) of NAME=PATH or PATH."""
  name, _, path = text.partition("=")
  path = files.at_home(path)
  is_here = os.path.exists(path) or snapshots.is_name(path)
  is_name = NAME.fullmatch(name) and is_here
  if os.path.exists(text) or not is_name:
    return "", text
  return name, path


def names_of(paths, taken=()):
  """A short name for each path: its last part, or more where two share it.

  Args:
    paths: of folders, and of files of responses.
    taken: names that none may have.

  Raises:
    InputError: a path is given twice.
  """
  whole = [os.path.abspath(path) for path in paths]
  for place, path in enumerate(whole):
    if path in whole[:place]:
      raise InputError(f"{paths[place]} is given twice; it would tie")
  parts = [_without_suffix(path).parts for path in whole]
  for count in range(1, max(map(len, parts)) + 1):
    names = [
      re.sub(r"[^\w.-]", "_", "-".join(one[-count:])).strip(".-") or "model"
      for one in parts
    ]
    if len(set(names)) == len(names) and not {*names} & {*taken}:
      return names
  return [f"{name}-{place}" for place, name in enumerate(names, 1)]


def _without_suffix(path):
  ends = (end for end in SUFFIXES if path.lower().endswith(end))
  return pathlib.Path(path[: -len(next(ends, "")) or None])
