# SPDX-License-Identifier: Apache-2.0
"""Pair sets of a study: the embedded one, and files divided by dialogue."""

import hashlib
import pathlib
from typing import NamedTuple

from mrpo_jax import configs, files
from mrpo_jax.data import source
from mrpo_jax.errors import InputError

HELD_OUT = 6  # a dialogue in six, as the embedded pairs are divided


class PairSet(NamedTuple):
  """Pairs to train on, and held-out ones."""

  name: str  # in the names of folders
  title: str
  about: str  # which file, and from where
  train: pathlib.Path
  held_out: pathlib.Path
  pairs: int  # to train on
  validation: pathlib.Path | None = None  # neither of the two


def embedded():
  """The PairSet of the repository."""
  train, held_out = (
    configs.HH_HARMLESS / f"{split}.jsonl.gz" for split in ("train", "eval")
  )
  about = "HH-RLHF, harmless-base, as `configs/hh_harmless/NOTICE.md` says"
  pairs = len(source.load(train))
  return PairSet("harmless", "HH harmless", about, train, held_out, pairs)


def divided(workdir, file, origin):
  """The PairSet of a file; one dialogue in HELD_OUT is held out.

  By a hash of its first turn, so that no dialogue stands on both sides.
  """
  file = pathlib.Path(file)
  pairs, sha256 = source.load(file), files.sha256_of(file)
  paths = _sides(pairs, workdir / "pairs" / sha256[:12], "train", "eval")
  if paths is None:
    raise InputError(f"{file}: too few dialogues to hold one in six out")
  (train, size), (held_out, _) = paths
  about = f"{origin} (`{file.name}`, sha256 `{sha256}`)"
  name = file.name.partition(".")[0]
  return PairSet(f"second-{sha256[:8]}", name, about, train, held_out, size)


def with_validation(workdir, one):
  """A PairSet of which one training dialogue in HELD_OUT is for validation."""
  sha256 = files.sha256_of(one.train)
  paths = _sides(
    source.load(one.train),
    workdir / "pairs" / sha256[:12],
    *("fit", "validation"),
    salt="validation",
  )
  if paths is None:
    raise InputError(f"{one.train}: too few dialogues to validate on")
  (train, size), (validation, _) = paths
  return one._replace(train=train, pairs=size, validation=validation)


def short_prompts(path, longest):
  """Prompts of a file of pairs, each once, in the order of their hashes.

  Args:
    path: of the pairs.
    longest: characters of a prompt, at most.

  Raises:
    InputError: there is none.
  """
  prompts = {
    hashlib.sha256(str(pair.prompt).encode()).digest(): pair.prompt
    for pair in source.load(path)
    if len(str(pair.prompt)) <= longest
  }
  if not prompts:
    raise InputError(
      f"{path}: no prompt has up to {longest} characters, so there is nothing "
      "to answer"
    )
  return [prompts[one] for one in sorted(prompts)]


def _sides(pairs, folder, *names, salt=""):
  """[(path, how many)] of the most and of the rest; None if a side is empty."""
  sides = [], []
  for pair in pairs:
    mark = hashlib.sha256((salt + first_turn(pair.prompt)).encode()).digest()
    sides[int.from_bytes(mark) % HELD_OUT == 0].append(
      {
        "prompt": pair.prompt,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
      }
    )
  if not all(sides):
    return None
  folder.mkdir(parents=True, exist_ok=True)
  paths = [folder / f"{name}.jsonl" for name in names]
  for path, rows in zip(paths, sides, strict=True):
    files.write_lines(path, rows)
  return [*zip(paths, map(len, sides), strict=True)]


def first_turn(prompt):
  if isinstance(prompt, str):
    return prompt.partition("\n\nAssistant:")[0].strip()
  return str(prompt[0]["content"])
