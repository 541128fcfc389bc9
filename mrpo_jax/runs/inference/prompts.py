# SPDX-License-Identifier: Apache-2.0
"""Prompts of a file, as rows and as token ids of a model."""

import dataclasses
import logging

from mrpo_jax import files
from mrpo_jax.data import formats
from mrpo_jax.data.chat.sandbox import sandbox
from mrpo_jax.data.prompts import encode_prompts
from mrpo_jax.data.reading.row_files import check_file, rows_of
from mrpo_jax.errors import InputError, StoppedRun

logger = logging.getLogger(__name__)

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".txt")


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A prompt of a file."""

  where: str  # "prompts.jsonl line 3"
  row: dict
  pair: formats.PreferencePair  # its responses do not count

  @property
  def is_chat(self):
    return isinstance(self.pair.prompt, list)


def read_prompts(path, *, keys, conversations=""):
  """Every prompt of a file, each a Prompt.

  Args:
    path: rows of JSON with a `prompt`, or .txt with one on each line.
    keys: that rows may not have, for something else has them.
    conversations: as `source.load` takes it.

  Raises:
    InputError: names the line that is wrong.
  """
  found = []
  for where, row in _rows(path):
    pair = formats.prompt_of(row, where)
    if conversations == "hh":
      pair = formats.in_turns(pair, where)
    taken = [key for key in row if key in keys]
    if taken:
      raise InputError(
        f"{where}: its key {taken[0]!r} is one that a sample has; rename it"
      )
    try:
      files.as_json(row, where)
    except StoppedRun:
      raise InputError(
        f"{where}: holds NaN or an infinite number, which JSON cannot; leave "
        "it out"
      ) from None
    found.append(Prompt(where, row, pair))
  if not found:
    raise InputError(f"{path}: has no rows; give at least one prompt")
  return found


def _rows(path):
  name = files.path_of(path).name.lower()
  if not name.endswith(SUFFIXES):
    raise InputError(
      f"{path}: unknown file type; prompts are {', '.join(SUFFIXES)}"
    )
  if not name.endswith(".txt"):
    yield from rows_of(path)
    return
  check_file(path)
  lines = files.path_of(path).read_bytes().removesuffix(b"\n").split(b"\n")
  for number, line in enumerate(lines, 1):
    where = f"{path} line {number}"
    try:
      text = line.removesuffix(b"\r").decode("utf-8-sig")
    except UnicodeDecodeError:
      raise InputError(
        f"{where}: is not UTF-8; save the file as UTF-8"
      ) from None
    yield where, {"prompt": text}


def prompt_ids(model, prompts, new, *, name="--max_new_tokens", most=None):
  """The ids of each Prompt, and of all of them that can be answered.

  Args:
    model: model.InferenceModel.
    prompts: list of Prompt.
    new: how many tokens may be generated.
    name: of the flag that says how many.
    most: of a prompt with more tokens the ids are None; None: all are given.

  Raises:
    InputError: names the first that the model cannot be given.
  """
  encoded = encode_prompts(model.tokenizer, [one.pair for one in prompts])
  sandbox.close()
  size = model.config.vocab_size
  for one, found in zip(prompts, encoded, strict=True):
    if found.dropped:
      raise InputError(f"{one.where}: {found.dropped}")
    if max(found.ids) >= size:
      token = model.tokenizer.convert_ids_to_tokens(max(found.ids))
      raise InputError(
        f"{one.where}: has the token {token!r}, id {max(found.ids)}; "
        f"{model.name} has only {size}"
      )
    if most is None or len(found.ids) <= most:
      _check_length(model, one.where, len(found.ids), new, name)
  if left := sum(bool(found.left_out) for found in encoded):
    first = next(found.left_out for found in encoded if found.left_out)
    logger.warning(
      f"warning: of {left} of {len(encoded)} prompts the chat template leaves "
      f"out what they say, of the first {first}"
    )
  kept = [
    one.ids if most is None or len(one.ids) <= most else None for one in encoded
  ]
  longest = max((len(ids) for ids in kept if ids is not None), default=0)
  if longest + new > model.config.max_positions:
    logger.warning(
      f"warning: {longest} tokens of a prompt and {new} new ones are more than "
      f"the {model.config.max_positions} that {model.name} was made for"
    )
  return kept


def _check_length(model, where, length, new, name):
  config = model.config
  if length > config.max_positions:
    raise InputError(
      f"{where}: {length} tokens are more than the {config.max_positions} that "
      f"{model.name} takes; shorten it"
    )
  if config.longest is not None and length + new > config.longest:
    raise InputError(
      f"{where}: {length} tokens and {new} new ones are more than the "
      f"{config.longest} that {model.name} takes; shorten it, or give a "
      f"smaller {name}"
    )
