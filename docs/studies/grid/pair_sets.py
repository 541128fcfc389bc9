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
  folder = workdir / "pairs" / sha256[:12]
  train, held_out = [], []
  for pair in pairs:
    mark = hashlib.sha256(first_turn(pair.prompt).encode()).digest()
    side = train if int.from_bytes(mark) % HELD_OUT else held_out
    side.append(
      {
        "prompt": pair.prompt,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
      }
    )
  if not train or not held_out:
    raise InputError(f"{file}: too few dialogues to hold one in six out")
  folder.mkdir(parents=True, exist_ok=True)
  paths = [folder / "train.jsonl", folder / "eval.jsonl"]
  for path, rows in zip(paths, (train, held_out), strict=True):
    files.write_lines(path, rows)
  about = f"{origin} (`{file.name}`, sha256 `{sha256}`)"
  name = file.name.partition(".")[0]
  return PairSet(f"second-{sha256[:8]}", name, about, *paths, len(train))


def first_turn(prompt):
  if isinstance(prompt, str):
    return prompt.partition("\n\nAssistant:")[0].strip()
  return str(prompt[0]["content"])
